"""From a photograph to the network's input: ImageNet's preprocessing. A file may be anything, and is checked first."""

import warnings
from pathlib import Path

import torch

SAMPLE = Path(__file__).with_name("data") / "cat.jpg"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE, CROP = 256, 224
MAX_PIXELS = 50_000_000  # a file of a few kilobytes may decompress to gigabytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # not all of Pillow's: it gives EPS files to Ghostscript
MIN_SIDE, MAX_ASPECT = 32, 20  # the resized image has RESIZE * RESIZE * aspect pixels


def load(path=SAMPLE):
    """[3, 224, 224] float32: the shorter side to 256, the central 224x224, normalised per channel.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, damaged, too large, too small or too narrow.
        ImportError: Pillow is not installed.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as image:  # reads the header only
                _check_size(path, *image.size)
                image = rgb(ImageOps.exif_transpose(image), image.format)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError(f"{path} has more than {MAX_PIXELS:,} pixels") from None
        except (OSError, SyntaxError) as e:  # UnidentifiedImageError is an OSError; damaged PNGs raise SyntaxError
            raise ValueError(f"{path} is not an image that can be read ({e})") from None
    return _normalised(_central(image))


def rgb(image, kind):
    """`image`, from a file of the format `kind`, in 8-bit RGB. Pillow itself cuts 16-bit grey values off at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        image = image.convert("I").point(lambda value: value * (255 / 65535) + 0.5).convert("L")
    return image.convert("RGB")


def _check_size(path, width, height):
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path} has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{path} has {width}x{height} pixels, fewer than {MIN_SIDE} along a side")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{path} has {width}x{height} pixels, more than {MAX_ASPECT} times as long as wide")


def _central(image):
    """As torchvision's Resize(256) and CenterCrop(224)."""
    from PIL import Image

    short = min(image.size)
    image = image.resize([int(RESIZE * side / short) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - CROP) / 2) for side in image.size)
    return image.crop((left, top, left + CROP, top + CROP))


def _normalised(image):
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(CROP, CROP, 3).permute(2, 0, 1)
    mean, std = (torch.tensor(values, device="cpu").view(3, 1, 1) for values in (MEAN, STD))
    return ((pixels / 255 - mean) / std).contiguous()
