"""The data sets of the trainer: (training set, validation set, class names). Items are (float32 [3, H, W], label).

A training item is augmented with random numbers of its own, seeded by (seed, epoch, index). So they do not depend on the number
of workers or processes, and a resume in the middle of an epoch draws the same.
"""

import collections
import importlib.util
import io
import pickle
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..photo import rgb
from . import CannotTrain

MEAN = torch.tensor([0.485, 0.456, 0.406], device="cpu").view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], device="cpu").view(3, 1, 1)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def load(name, size, seed):
    """The data set `name`: see `add_options`. Raises CannotTrain."""
    if name == "digits":
        return _digits(seed)
    folder = Path(name)
    if not folder.is_dir():
        raise CannotTrain(f"--data: no such folder: {name} (and the name of no data set but digits)")
    for cifar in (folder, folder / "cifar-10-batches-py"):
        if (cifar / "data_batch_1").exists():
            return _cifar10(cifar, seed)
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        return _image_folders(folder, size, seed)
    raise CannotTrain(f"--data: {name} holds neither train/ and val/ nor CIFAR-10's data_batch_1")


def check_installed(module, package):
    """Raises CannotTrain where `module` of the package `package` cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise CannotTrain(f"this needs {package}: pip install 'resnet_fused[train]'")


def first(dataset, count):
    """The first `count` images of a shuffle that never changes."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0), device="cpu")[:count].tolist()
    return dataset.part(order)


class Memory(Dataset):
    """uint8 images [N, 3, H, W] in memory; `pad`: pixels by which training images are shifted, `flip`: left to right."""

    def __init__(self, images, labels, pad=0, flip=False, seed=0):
        self.images, self.labels, self.pad, self.flip, self.seed = images, labels, pad, flip, seed
        self.epoch = 0

    def __len__(self):
        return len(self.labels)

    def part(self, indices):
        return Memory(self.images[indices], self.labels[indices], self.pad, self.flip, self.seed)

    def __getitem__(self, i):
        image = self.images[i].float() / 255
        if self.pad:
            numbers = random_numbers(self.seed, self.epoch, i)
            h, w = image.shape[1:]
            top, left = (int(n * (2 * self.pad + 1)) for n in numbers[:2])
            image = torch.nn.functional.pad(image, [self.pad] * 4)[:, top : top + h, left : left + w]
            if self.flip and numbers[2] < 0.5:
                image = image.flip(-1)
        return (image - MEAN) / STD, int(self.labels[i])


def random_numbers(seed, epoch, index, count=8):
    """`count` uniform numbers that depend on the three alone."""
    generator = torch.Generator().manual_seed(hash((seed, epoch, index)) & 0x7FFFFFFFFFFFFFFF)
    return torch.rand(count, generator=generator, device="cpu").tolist()


def _digits(seed):
    check_installed("sklearn", "scikit-learn")
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (torch.from_numpy(found.images) * (255 / 16)).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(found.target).long()
    # A fixed split, whatever the seed, so that runs compare.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0), device="cpu")
    train, val = order[360:], order[:360]
    sets = Memory(images[train], labels[train], pad=1, seed=seed), Memory(images[val], labels[val])
    return *sets, [str(n) for n in range(10)]


_ALLOWED = (
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
)


class _Arrays(pickle.Unpickler):
    """Reads a pickle of arrays, strings and lists, and raises at anything else, which could run code from a downloaded file."""

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _cifar10(folder, seed):
    import numpy

    def read(names):
        images, labels = [], []
        for name in names:
            try:
                batch = _Arrays(io.BytesIO((folder / name).read_bytes()), encoding="bytes").load()
                images.append(numpy.asarray(batch[b"data"], dtype=numpy.uint8).reshape(-1, 3, 32, 32))
                labels += list(batch[b"labels"])
            except FileNotFoundError:
                raise CannotTrain(f"--data: {folder} lacks {name}") from None
            except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
                raise CannotTrain(f"--data: {folder / name} is no CIFAR-10 batch: {error!r}") from error
        images, labels = torch.from_numpy(numpy.concatenate(images)), torch.tensor(labels, device="cpu")
        if len(images) != len(labels) or not (labels.min() >= 0 and labels.max() < 10):
            raise CannotTrain(f"--data: {folder}: {len(images)} images, {len(labels)} labels, of 10 classes")
        return images, labels

    train, val = read([f"data_batch_{i}" for i in range(1, 6)]), read(["test_batch"])
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return Memory(*train, pad=4, flip=True, seed=seed), Memory(*val), names


class Files(Dataset):
    """Image files. In training: random crops of 8 to 100 % of the area, every other one flipped. In validation: the middle.
    left_out: how many files of the folder have another ending, {ending: files}."""

    def __init__(self, files, labels, size, train, seed, left_out=None):
        self.files, self.labels, self.size, self.train, self.seed = files, labels, size, train, seed
        self.epoch, self.left_out = 0, left_out

    def __len__(self):
        return len(self.files)

    def part(self, indices):
        files, labels = [self.files[i] for i in indices], [self.labels[i] for i in indices]
        return Files(files, labels, self.size, self.train, self.seed)

    def __getitem__(self, i):
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self.files[i]) as file:
                image = rgb(file, file.format)
        except (OSError, UnidentifiedImageError) as error:
            raise CannotTrain(f"--data: not an image: {self.files[i]} ({error})") from error
        numbers = random_numbers(self.seed, self.epoch, i) if self.train else None
        box = _random_box(*image.size, numbers) if self.train else _middle_box(*image.size, 0.875)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(self.size, self.size, 3)
        pixels = pixels.permute(2, 0, 1).float() / 255
        if numbers is not None and numbers[0] < 0.5:
            pixels = pixels.flip(-1)
        return (pixels - MEAN) / STD, self.labels[i]


def _random_box(width, height, numbers):
    """Area and aspect ratio as in Szegedy et al., arXiv:1409.4842, section 6; too wide or high a box is cut."""
    area = width * height * (0.08 + 0.92 * numbers[1])
    ratio = (3 / 4) * (16 / 9) ** numbers[2]
    w, h = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = (width - w) * numbers[3], (height - h) * numbers[4]
    return left, top, left + w, top + h


def _middle_box(width, height, share):
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def counted(left_out):
    """Such as "12 .tif, 1 .txt"."""
    return ", ".join(f"{count} {ending}" for ending, count in left_out.most_common(5))


def _image_folders(folder, size, seed):
    check_installed("PIL", "pillow")

    def classes(part):
        return sorted(p.name for p in (folder / part).iterdir() if p.is_dir())

    names = classes("train")
    if not names:
        raise CannotTrain(f"--data: {folder / 'train'} holds no folder (one per class is expected)")
    if unknown := sorted(set(classes("val")) - set(names)):
        raise CannotTrain(f"--data: val/ has classes that train/ has not: {', '.join(unknown[:3])}")

    def read(part):
        found, left_out = [], collections.Counter()
        for k, name in enumerate(names):
            for path in sorted((folder / part / name).rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    found.append((path, k))
                elif path.is_file():
                    left_out[path.suffix.lower() or path.name] += 1
        if not found:
            others = f", but {counted(left_out)}" if left_out else ""
            raise CannotTrain(f"--data: no image ({', '.join(SUFFIXES)}) in {folder / part}{others}")
        return Files(*map(list, zip(*found, strict=True)), size, part == "train", seed, left_out)

    return read("train"), read("val"), names
