"""What comes from outside, and what is left behind: images, the cache of tuning results, dependencies."""

import pytest
from PIL import Image
from repository import ROOT

from resnet_fused.commands import photo
from resnet_fused.measure import remembered


def test_the_folder_of_tuning_results_belongs_to_the_user(tmp_path):
    remembered.Table({"device": "cpu", "arch": "test"}, tmp_path / "cache").store({})
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o022 == 0 for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("suffix", ["eps", "pdf", "ico", "ppm"])
def test_only_formats_of_photographs_are_opened(tmp_path, suffix):
    """Pillow gives EPS files to Ghostscript, and rare formats have rare bugs."""
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(ValueError, match="is not an image that can be read"):
        photo.load(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_photographs_are_opened(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (64, 64)).save(path)
    assert photo.load(path).shape == (3, 224, 224)


def test_the_only_dependency_is_torch():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'dependencies = ["torch>=2.11"]\n' in text
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in pins)
