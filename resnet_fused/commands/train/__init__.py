"""python -m resnet_fused train: a small trainer to start from, made of torch's own loaders, optimizers and DDP."""


class CannotTrain(Exception):
    """What the user asked for cannot be done; the message is one line."""


def add_options(parser, at_least, models, backends, most_threads):
    """The options of the command line."""
    add = parser.add_argument
    add("--data", default="digits", help="a folder with train/ and val/ (one folder per class in each), a folder with"
        " CIFAR-10's batches (python version), or digits: scikit-learn's handwritten digits")  # fmt: skip
    add("--output", default="runs/train", help="folder for checkpoint.pt, metrics.csv and curve.png")
    add("--resume", action="store_true", help="go on from checkpoint.pt in --output, exactly")
    add("--arch", choices=models, default="resnet18", help="the network")
    add("--stem", choices=("auto", "imagenet", "cifar"), default="auto", help="cifar: 3x3 convolution, no pool")
    add("--weights", help="a .pth or .safetensors state dict to start from; its class count must fit")
    add("--epochs", type=at_least(1), default=20, help="passes over the training images")
    add("--batch", type=at_least(1), default=128, help="images per step and process")
    add("--size", type=at_least(8), default=224, help="of the crops of a folder of images")
    add("--limit", type=at_least(1), help="use so many images for training, and for validation; default: all")
    add("--lr", type=at_least(0, float), default=0.05, help="peak learning rate: one epoch of warm-up, then a cosine")
    add("--momentum", type=at_least(0, float), default=0.9, help="of SGD; above 0 it is Nesterov's")
    add("--weight-decay", type=at_least(0, float), default=5e-4, help="of weights; biases and norms have none")
    add("--label-smoothing", type=at_least(0, float, 1), default=0.1, help="share of the other classes in a label")
    add(
        "--ema",
        type=at_least(0, float, 1),
        default=0.0,
        help="decay of an average of the weights, such as 0.999; 0: none",
    )
    add("--amp", choices=("none", "bf16", "fp16"), default="none", help="dtype of autocast")
    add("--contiguous", action="store_true", help="NCHW instead of channels_last")
    add("--memory-efficient", action="store_true", help="keep less for the backward, compute it again")
    add("--sync-bn", action="store_true", help="batch statistics over all processes")
    add("--backend", choices=("auto", *backends), default="auto", help="eager: torch's own modules, for comparison")
    add("--workers", type=at_least(0), default=0, help="processes that load images")
    add("--save-every", type=at_least(1), help="steps between checkpoints; default: one per epoch")
    add("--seed", type=at_least(0, maximum=2**32), default=0, help="of initial weights, order and augmentation")
    add("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    add("--threads", type=at_least(1, maximum=most_threads), help="CPU threads; default: torch's")
