"""State dicts from files (never unpickled: `weights_only=True`, or safetensors) and from torchvision's download."""

from pathlib import Path

import torch


def load_file(path):
    """The state dict in `path`: `.safetensors`, else a torch file read with `weights_only=True`.

    A training checkpoint that keeps it under "state_dict", "model" or "model_state_dict" is unwrapped, and the prefix
    "module." that DataParallel and DDP leave is dropped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else than named tensors, or would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file as load_safetensors
        except ImportError as e:
            raise ValueError(f"weights: {path.name} needs the package safetensors: pip install safetensors") from e
        try:
            return load_safetensors(path)
        except Exception as e:  # safetensors' own error class is not exported by every version
            raise ValueError(f"weights: {path} is not a safetensors file ({e})") from e
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises pickle, zip and runtime errors alike
        raise ValueError(f"weights: {path} is not a state dict that can be loaded without unpickling code") from e
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"weights: {path} holds no state dict (a dict of named tensors)")
    return {k.removeprefix("module."): v for k, v in state.items()}


def check_keys(state_dict, model, source):
    """Raises ValueError naming the first wrong keys and shapes, as one line."""
    own = model.state_dict()
    optional = {k for k in own if k.endswith("num_batches_tracked")}  # absent from checkpoints older than torch 0.4.1
    missing = [k for k in own if k not in state_dict and k not in optional]
    unexpected = [k for k in state_dict if k not in own]
    wrong = [
        f"{k} {tuple(state_dict[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state_dict and state_dict[k].shape != own[k].shape
    ]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape:", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"weights: {source} does not fit the model: {problem} {', '.join(names[:3])}{more}")


def _torchvision_weights(name, weights):
    try:
        from torchvision.models import get_model_weights
    except Exception as e:  # a torchvision built for another torch fails with whatever its extension raises
        raise ValueError(
            f"weights: {weights!r} is neither a file nor usable as a torchvision weight name, since torchvision cannot be "
            f"imported ({e}); pass the path of a .pth or .safetensors file"
        ) from e
    try:
        enum = get_model_weights(name)
    except ValueError:
        raise ValueError(f"weights: {weights!r} is not a file, and torchvision has no weights for {name}") from None
    if isinstance(weights, enum):
        return weights
    known = [*enum.__members__, "DEFAULT"]
    key = str(weights).rpartition(".")[2]
    if key not in known:
        raise ValueError(f"weights: {weights!r} is neither a file nor one of torchvision's {', '.join(known)}")
    return enum[key] if key in enum.__members__ else enum.DEFAULT


def _is_path(weights):
    """Whether `weights` names a file; "ResNet34_Weights.DEFAULT" has a suffix too, but names one of torchvision's."""
    if isinstance(weights, str):
        names_an_enum = weights.partition(".")[0].endswith("_Weights")
        return not names_an_enum and ("/" in weights or Path(weights).suffix != "")
    return isinstance(weights, Path)


def resolve(name, weights, progress, kwargs):
    """The state dict that `weights` stands for, or None; sets `num_classes` in `kwargs` as torchvision does."""
    if weights is None:
        return None
    if _is_path(weights):
        return _from_file(weights, kwargs)
    entry = _torchvision_weights(name, weights)
    classes = len(entry.meta["categories"])
    if kwargs.setdefault("num_classes", classes) != classes:
        raise ValueError(f"num_classes={kwargs['num_classes']} but the weights {entry} have {classes} classes")
    try:
        return entry.get_state_dict(progress=progress, check_hash=True)
    except OSError as e:
        raise RuntimeError(
            f"weights: {entry} could not be downloaded ({e}); fetch {entry.url} where there is a network and pass its path"
        ) from e


def _from_file(path, kwargs):
    state = load_file(path)
    if "fc.weight" in state:
        kwargs.setdefault("num_classes", state["fc.weight"].shape[0])
    return state
