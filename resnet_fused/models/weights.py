"""State dicts from files (never unpickled: `weights_only=True`, or safetensors) and from torchvision's download."""

import enum
import warnings
from pathlib import Path

import torch

UNDER = ("state_dict", "model_state_dict", "model", "net")  # where training checkpoints keep a state dict
ANCHOR = "layer1.0.conv1.weight"  # a key that every network has, once


def load_file(path):
    """The state dict in `path`: `.safetensors`, else a torch file read with `weights_only=True`.

    A training checkpoint is unwrapped (see UNDER). Where the keys of one network have a prefix, such as "module.",
    "backbone." or "module.encoder_q.", they come without it, and keys without the prefix are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else than the named tensors of one network, or would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    return _without_prefix(_unwrapped(state, path), path)


def _safetensors(path):
    try:
        from safetensors.torch import load_file as load_safetensors
    except ImportError as e:
        raise ValueError(f"weights: {path.name} needs the package safetensors: pip install safetensors") from e
    try:
        return load_safetensors(path)
    except Exception as e:  # safetensors' own error class is not exported by every version
        raise ValueError(f"weights: {path} is not a safetensors file ({e})") from e


def _torch_file(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises pickle, zip and runtime errors alike
        raise ValueError(f"weights: {path} is not a state dict that can be loaded without unpickling code") from e


def _unwrapped(state, path):
    while isinstance(state, dict) and (inside := [key for key in UNDER if isinstance(state.get(key), dict)]):
        if len(inside) > 1:
            raise ValueError(
                f"weights: {path} holds several state dicts, under {_some(inside)}: save one of them alone"
            )
        state = state[inside[0]]
    if not isinstance(state, dict) or not state:
        raise ValueError(f"weights: {path} holds no state dict (a dict of named tensors), but a {type(state).__name__}")
    other = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if other:
        raise ValueError(
            f"weights: {path} holds no state dict (a dict of named tensors): no tensor under {_some(map(repr, other))}"
        )
    return state


def _without_prefix(state, path):
    prefixes = [key.removesuffix(ANCHOR) for key in state if f".{key}".endswith(f".{ANCHOR}")]
    if len(prefixes) > 1:
        found = _some(map(repr, prefixes))
        raise ValueError(f"weights: {path} holds {len(prefixes)} networks, under {found}: save one of them alone")
    if not prefixes:
        return dict(state)  # `filled` names the keys that it misses
    return {key.removeprefix(prefixes[0]): t for key, t in state.items() if key.startswith(prefixes[0])}


def _some(names):
    """The first three of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def filled(model, state_dict, source):
    """`model` with the values of `state_dict`, where that is not None. source: where they come from, for messages.

    Raises ValueError with the first wrong keys and shapes, as one line, before anything is loaded.
    """
    if state_dict is None:
        return model
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
            found = f"; found {_some(state_dict)}" if problem == "missing" else ""
            raise ValueError(f"weights: {source} does not fit the model: {problem} {_some(names)}{found}")
    model.load_state_dict(dict(state_dict))  # torch fills in counters that are absent where no version is named
    return model


def _torchvision_weights(name, weights):
    try:
        from torchvision.models import get_model_weights
    except Exception as e:  # a torchvision built for another torch fails with whatever its extension raises
        raise ValueError(
            f"weights: {weights!r} is neither a file nor usable as a torchvision weight name, since torchvision cannot be "
            f"imported ({e}); pass the path of a .pth or .safetensors file"
        ) from e
    try:
        entries = get_model_weights(name)
    except ValueError:
        raise ValueError(f"weights: {weights!r} is not a file, and torchvision has no weights for {name}") from None
    if isinstance(weights, entries):
        return weights
    known = dict.fromkeys([*entries.__members__, "DEFAULT"])
    of, _, key = str(weights).rpartition(".")
    if of not in ("", entries.__name__) or key not in known or isinstance(weights, enum.Enum):
        raise ValueError(
            f"weights: {weights!r} is neither a file nor one of torchvision's {', '.join(known)} of {entries.__name__}"
        )
    return entries[key] if key in entries.__members__ else entries.DEFAULT


def _is_path(weights):
    """Whether `weights` names a file; "ResNet34_Weights.DEFAULT" has a suffix too, but names one of torchvision's."""
    if isinstance(weights, str):
        names_an_enum = weights.partition(".")[0].endswith("_Weights")
        return not names_an_enum and ("/" in weights or Path(weights).suffix != "")
    return isinstance(weights, Path)


def _named(weights, kwargs):
    """`weights`, or what pretrained=True or False stands for, which torchvision still takes in its place."""
    if "pretrained" in kwargs:
        if weights is not None:
            raise ValueError(f"weights={weights!r} and pretrained={kwargs['pretrained']!r} exclude each other")
        weights = bool(kwargs.pop("pretrained"))
    if not isinstance(weights, bool):
        return weights
    name = "IMAGENET1K_V1" if weights else None
    warnings.warn(f"pretrained={weights} is deprecated, use weights={name!r}", stacklevel=5)
    return name


def resolve(name, weights, progress, kwargs):
    """The state dict that `weights` stands for, or None; sets `num_classes` in `kwargs` as torchvision does."""
    weights = _named(weights, kwargs)
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
