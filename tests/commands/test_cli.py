"""The command line: what can go wrong is one line and status 2, and the demo does its job on a photograph."""

import itertools
import shlex
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from command_line import check_error, run
from PIL import Image
from torchvision_shim import torchvision

import resnet_fused
from resnet_fused.commands import bench, main, photo
from resnet_fused.reports import info


def png(width, height, pixels=b""):
    """A PNG of a few bytes that promises width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("files")
    model = resnet_fused.resnet18(num_classes=3)
    state = model.state_dict()
    torch.save({"other_" + k: v for k, v in state.items()}, tmp_path / "keys.pth")
    torch.save(state | {"fc.weight": torch.zeros(3, 7)}, tmp_path / "shape.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(model, tmp_path / "pickled.pth")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))  # above Pillow's own limit
    (tmp_path / "large.png").write_bytes(png(8_000, 8_000))  # above ours only
    (tmp_path / "damaged.jpg").write_bytes(photo.SAMPLE.read_bytes()[:9000])
    Image.new("RGB", (20, 300)).save(tmp_path / "small.png")
    Image.new("RGB", (40, 4000)).save(tmp_path / "narrow.png")
    return tmp_path


IMAGES = [
    ("nothing.jpg", "no such image"),
    ("text.jpg", "not an image"),
    ("damaged.jpg", "not an image"),
    ("bomb.png", "more than 50,000,000 pixels"),
    ("large.png", "8000x8000 pixels, more than 50,000,000"),
    ("small.png", "fewer than 32"),
    ("narrow.png", "20 times as long"),
]
WEIGHTS = [
    ("nothing.pth", "no such file"),
    ("text.pth", "without unpickling"),
    ("pickled.pth", "without unpickling"),
    ("list.pth", "no state dict"),
    ("keys.pth", "missing conv1.weight, bn1.weight, bn1.bias and"),
    ("shape.pth", "fc.weight (3, 7) instead of (3, 512)"),
]
ARGUMENTS = [
    ("", "are required"),
    ("dance", "invalid choice: 'dance'"),
    ("demo --model vgg16", "invalid choice: 'vgg16'"),
    ("demo --backend gpu", "invalid choice: 'gpu'"),
    ("demo --output chart.jpg", "must end in .png"),
    ("demo --output /no/such/folder/chart.png", "no such folder"),
    ("demo --batch 1 0", "must be at least 1, not 0"),
    ("bench --batch 0", "must be at least 1, not 0"),
    ("bench --batch many", "'many' is not a number"),
    ("bench --batch 100000000000", "does not fit into memory"),
    ("bench --threads 0", "must be at least 1, not 0"),
    ("bench --seconds nan", "must be at least 0"),
    (
        "bench --model resnet18 --weights IMAGENET1K_V9",
        "neither a file nor one of torchvision's IMAGENET1K_V1, DEFAULT of ResNet18_Weights",
    ),
    ("explain --size 31", "must be at least 32, not 31"),
    ("explain --train --frozen", "exclude each other"),
    ("explain --train --size 32", "more than one value per channel"),
    ("explain --frozen --dtype float16", "dtype should be"),
    ("verify --dtype int8", "invalid choice: 'int8'"),
    ("summary vgg16", "invalid choice: 'vgg16'"),
    ("summary resnet34 --size 16", "must be at least 32, not 16"),
    ("info --all", "unrecognized arguments: --all"),
    ("summary --size 100000", "batch 1 at 100000x100000 does not fit into memory, which has"),
    ("summary resnet20 --size 1000000", "batch 1 at 1000000x1000000 does not fit into memory"),
    ("summary --threads 1000000", "must be at most 4096, not 1000000"),
    ("bench --size 9999999", "batch 8 at 9999999x9999999 does not fit into memory"),
    ("bench --seconds inf", "must be at most"),
    ("bench --weights /", "no such file: /"),
    ("bench --weights ''", "neither a file"),
    ("bench --model resnet20", "invalid choice: 'resnet20'"),
    ("bench --dtype float64", "invalid choice: 'float64'"),
    ("explain --batch -1", "must be at least 1, not -1"),
    ("explain --size 1e3", "'1e3' is not a number"),
    ("explain --weights nothing.safetensors", "no such file: nothing.safetensors"),
    ("demo --batch 99999999", "batch 99999999 at 224x224 does not fit into memory"),
    ("demo --image /", "no such image"),
    ("demo --output .", "must end in .png"),
    ("demo --seconds -1", "must be at least 0, not -1"),
    ("tune resnet34", "the following arguments are required: SHAPE"),
    ("tune resnet34 8x3x224", "should be such as 8x3x224x224, not 8x3x224"),
    ("tune resnet34 8x4x224x224", "needs a batch, 3 channels and at least 32x32 pixels, not 8x4x224x224"),
    ("tune resnet34 99999999x3x224x224", "batch 99999999 at 224x224 does not fit into memory"),
    ("tune resnet34 1x3x32x32 --train", "more than one value per channel"),
    ("tune resnet34 8x3x64x64 --train --frozen", "exclude each other"),
    ("tune resnet34 8x3x64x64 --frozen --dtype float16", "dtype should be"),
    ("tune resnet34 8x3x64x64 --seconds nan", "must be at least 0, not nan"),
    ("verify --quick --threads 0", "must be at least 1, not 0"),
    ("train --sizes 3", "unrecognized arguments: --sizes 3"),
    ("train --size 4", "must be at least 8, not 4"),
    ("train --workers -1", "must be at least 0, not -1"),
]


@pytest.mark.parametrize(("name", "message"), IMAGES)
def test_wrong_image(capsys, files, name, message):
    check_error(run(capsys, "demo", "--image", files / name), message)


@pytest.mark.parametrize(("name", "message"), WEIGHTS)
def test_wrong_weights(capsys, files, name, message):
    check_error(run(capsys, "bench", "--model", "resnet18", "--weights", files / name), message)


@pytest.mark.parametrize(("line", "message"), ARGUMENTS)
def test_wrong_arguments(capsys, line, message):
    check_error(run(capsys, *shlex.split(line)), message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(("line", "message"), [
    ("bench --device cuda", "no CUDA device"),
    ("explain --backend cuda", "backend 'cuda' cannot run here"),
])  # fmt: skip
def test_no_gpu(capsys, line, message):
    check_error(run(capsys, *line.split()), message)


@pytest.mark.parametrize(
    "command", ["", "demo", "check", "verify", "bench", "explain", "summary", "tune", "train", "info"]
)
def test_help_fits_80_columns_and_shows_defaults(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and max(map(len, text.splitlines())) <= 80
    options = main.parser()._subparsers._group_actions[0].choices[command]._actions if command else []
    for action in options:
        assert action.help, action.dest
        default = action.default[0] if isinstance(action.default, list) else action.default
        told = default in (None, "==SUPPRESS==") or default is False or "default" in action.help
        assert told or f"(default: {default}" in " ".join(text.split()), action.dest


@pytest.mark.parametrize("line", [
    "info", "summary resnet50 --size 64", "explain --size 32", "explain --size 64 --train",
    "explain --model resnet18 --size 32 --frozen",
])  # fmt: skip
def test_output_fits_80_columns(capsys, monkeypatch, line):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(capsys, *line.split())
    long = [text for text in out.splitlines() if len(text) > 80]
    assert status == 0 and [text for text in long if " " in text.strip()] == [], "a path alone may be longer"


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"resnet_fused {resnet_fused.__version__}\n"


def test_exit_status_of_the_process():
    command = [sys.executable, "-m", "resnet_fused", "bench", "--batch", "0"]
    result = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    assert result.returncode == 2 and "resnet_fused: error: argument --batch" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_traceback():
    command = [sys.executable, "-m", "resnet_fused", "info"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_info(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0 and torch.__version__ in out and "compiled library" in out
    assert all(name in out for name in (*resnet_fused.backends(), *info.variables()))


def test_explain(capsys):
    line = "explain --model resnet18 --size 64"
    status, out, _ = run(capsys, *line.split())
    assert status == 0 and "layer4.1.conv2+bn2+add+relu" in out
    status, out, _ = run(capsys, *line.split(), "--frozen")
    assert status == 0 and "layer4.1.conv2" in out and "1x3x64x64" in out
    status, out, _ = run(capsys, *line.split(), "--train")
    assert status == 0 and "bn_stats" in out


def test_bench(capsys):
    status, out, _ = run(capsys, "bench", "--model", "resnet18", "--batch", 2, "--size", 32, "--seconds", 0)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[3:]] == ["eager", "eager,", "live", "frozen"]


def test_demo(capsys, tmp_path):
    chart, checkpoint = tmp_path / "chart.png", tmp_path / "weights.pth"
    torch.save(resnet_fused.resnet18(num_classes=7).state_dict(), checkpoint)
    line = f"demo --model resnet18 --batch 1 --seconds 0 --weights {checkpoint} --output {chart}"
    status, out, _ = run(capsys, *line.split())
    assert status == 0
    assert out.count(" equal") == 3, "live, frozen in float32, frozen in bfloat16"
    assert out.count(" %  class ") == 5, "top 5 of 7 classes"
    assert Image.open(chart).format == "PNG" and min(Image.open(chart).size) > 300


def test_the_demo_has_numbers_before_it_measures_kernels(monkeypatch):
    def freeze(*args, **options):
        raise AssertionError("measures every kernel of every layer, which takes time")

    monkeypatch.setattr(bench, "freeze", freeze)
    model, x = resnet_fused.resnet18().eval(), torch.randn(1, 3, 32, 32)
    rows = bench.equality(model, x, [torch.float32], lambda text: None)
    first = [next(rows) for _ in range(3)]
    assert [row["name"] for row in first] == ["eager", "eager, channels_last", "live"]
    lines = [bench.equality_line(row) for row in (bench.EQUALITY, *first)]
    assert len({line.index(word) for line, word in zip(lines, ["dtype", *["float32"] * 3], strict=True)}) == 1
    with pytest.raises(AssertionError, match="measures every kernel"):
        next(rows)


def test_demo_says_when_it_is_not_equal(capsys, tmp_path, monkeypatch):
    """The output of the live model is off by 0.01 of its largest value."""
    equality = bench.equality

    def off(model, x, dtypes, progress):
        fc = model.fc  # copies of the model, which are the eager side, have another
        fc.register_forward_hook(lambda m, a, out: out * 1.01 if m is fc else None)
        return itertools.islice(equality(model, x, dtypes, progress), 3)  # eager twice, and live

    monkeypatch.setattr(bench, "equality", off)
    line = f"demo --model resnet18 --batch 1 --seconds 0 --output {tmp_path / 'chart.png'}"
    status, out, _ = run(capsys, *line.split())
    assert status == 1 and "NOT EQUAL" in out


def test_the_photo_is_preprocessed_as_torchvision_does(tmp_path):
    t = torchvision.transforms
    theirs = t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor(), t.Normalize(photo.MEAN, photo.STD)])
    for size, mode in (((451, 300), "RGB"), ((224, 611), "L"), ((90, 91), "RGBA")):
        image = Image.open(photo.SAMPLE).resize(size).convert(mode)
        image.save(tmp_path / "image.png")
        assert torch.equal(photo.load(tmp_path / "image.png"), theirs(image.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.open(photo.SAMPLE)
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    image.rotate(180).save(tmp_path / "upright.png")
    assert torch.equal(photo.load(tmp_path / "turned.png"), photo.load(tmp_path / "upright.png"))
