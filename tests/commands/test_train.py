"""The trainer: a run and what it leaves, exact resumes also after a kill, data sets, and one line for every mistake."""

import csv
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from resnet_fused import dispatch, resnet18
from resnet_fused.commands import photo
from resnet_fused.commands.main import main
from resnet_fused.commands.train import CannotTrain, checkpoint, data
from resnet_fused.commands.train.loop import batches

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--limit", "64", "--batch", "32", "--epochs", "2", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(folder, *options):
    return main(["train", "--output", str(folder), *SHORT, *options])


def state_of(folder):
    return checkpoint.load(folder / "checkpoint.pt")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_a_run_says_first_what_it_will_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert train(tmp_path / "run", "--epochs", "1") == 0
    said, _, rest = capsys.readouterr().out.partition("results go to")  # the folder's name may fill a line
    begin, end = "training resnet18 on digits: 64 images of 10 classes, 1 epochs", "batch 32, on cpu in one process;"
    assert " ".join(said.split()) == f"{begin} of 2 steps, {end}" and max(map(len, said.splitlines())) <= 80
    assert rest.split()[0] == str(tmp_path / "run") and "\nepoch 1/1: " in rest


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with dispatch.record() as rows:
        assert train(folder, "--ema", "0.9") == 0
    return folder, {op for op, _, _ in rows}


def test_a_run_leaves_a_checkpoint_metrics_and_a_curve(finished, capsys):
    folder, ops = finished
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.pt", "curve.png", "metrics.csv"]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and [row["step"] for row in rows] == ["2", "4"]
    assert all(0 < float(row["train_loss"]) < 10 and 0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    assert float(rows[-1]["ema_accuracy"]) >= 0
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {"conv_stats", "bn_relu", "bn_add_bn_relu", "bn_relu_backward_apply"} <= ops
    model = resnet18(num_classes=10)
    missing = model.load_state_dict(
        {k: v for k, v in state_of(folder)["model"].items() if k != "conv1.weight"}, strict=False
    )
    assert missing.missing_keys == ["conv1.weight"]  # the stem for small images has another shape


def test_eager_runs_no_op_and_learns_the_same(tmp_path, finished):
    with dispatch.record() as rows:
        assert train(tmp_path / "eager", "--backend", "eager", "--ema", "0.9") == 0
    assert not rows
    ours, eager = (state_of(f)["rows"] for f in (finished[0], tmp_path / "eager"))
    assert [r["train_loss"] for r in ours] == pytest.approx([r["train_loss"] for r in eager], rel=1e-3)


def test_a_run_killed_in_the_middle_of_a_save_goes_on_exactly(tmp_path, finished):
    folder = tmp_path / "killed"
    command = [
        sys.executable,
        ROOT / "tests" / "support" / "killed_run.py",
        "train",
        "--output",
        str(folder),
        *SHORT,
        "--ema",
        "0.9",
        "--save-every",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "checkpoint.pt.unfinished").exists()
    kept = state_of(folder)
    assert (kept["epoch"], kept["step"]) == (0, 1)
    assert train(folder, "--ema", "0.9", "--resume") == 0
    again, whole = state_of(folder), state_of(finished[0])
    assert same(again["model"], whole["model"]) and same(again["ema"], whole["ema"])
    for ours, theirs in zip(again["rows"], whole["rows"], strict=True):
        assert {k: v for k, v in ours.items() if k != "images_per_s"} == {
            k: v for k, v in theirs.items() if k != "images_per_s"
        }
    buffers = [again["optimizer"]["state"], whole["optimizer"]["state"]]
    assert all(torch.equal(buffers[0][i]["momentum_buffer"], buffers[1][i]["momentum_buffer"]) for i in buffers[0])


def test_a_finished_run_that_is_resumed_changes_nothing(finished):
    before = (finished[0] / "checkpoint.pt").read_bytes()
    assert train(finished[0], "--ema", "0.9", "--resume") == 0
    assert (finished[0] / "checkpoint.pt").read_bytes() == before


def test_mixed_precision_and_options(tmp_path):
    options = ["--amp", "bf16", "--memory-efficient", "--contiguous", "--epochs", "1", "--workers", "1"]
    assert train(tmp_path / "run", *options) == 0
    assert state_of(tmp_path / "run")["model"]["fc.weight"].dtype == torch.float32


def test_every_image_is_seen_once_in_an_order_of_its_own():
    whole = [batches(100, 8, rank, 3, seed=1, epoch=0) for rank in range(3)]
    seen = [i for steps in whole for step in steps for i in step]
    assert len(seen) == len(set(seen)) == 96 and all(len(steps) == 4 for steps in whole)
    assert batches(100, 8, 0, 3, seed=1, epoch=1) != whole[0] == batches(100, 8, 0, 3, seed=1, epoch=0)


def cifar(folder, classes=10, count=40):
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {
            b"data": generator.integers(0, 256, (count, 3072), dtype=numpy.uint8),
            b"labels": generator.integers(0, classes, count).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def image_folder(folder, parts=("train", "val"), names=("cat", "dog"), count=4):
    from PIL import Image

    for part in parts:
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = numpy.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def test_cifar_and_image_folders(tmp_path):
    train_set, val_set, names = data.load(str(cifar(tmp_path / "c" / "cifar-10-batches-py").parent), 32, 0)
    assert (len(train_set), len(val_set), len(names)) == (200, 40, 10) and train_set[0][0].shape == (3, 32, 32)
    first = train_set[5][0]
    assert torch.equal(first, train_set[5][0])
    train_set.epoch = 1
    assert not torch.equal(first, train_set[5][0])
    train_set, val_set, names = data.load(str(image_folder(tmp_path / "i")), 24, 0)
    assert (
        names == ["cat", "dog"] and train_set[7][0].shape == val_set[0][0].shape == (3, 24, 24) and train_set[7][1] == 1
    )
    assert torch.equal(train_set[7][0], train_set[7][0])
    options = ["--data", str(tmp_path / "i"), "--batch", "4", "--size", "32", "--epochs", "1"]
    assert train(tmp_path / "run", *options) == 0


def test_files_that_are_left_out_are_counted(tmp_path, capsys):
    folder = image_folder(tmp_path / "i")
    for name in ("a.tif", "b.TIFF", "c.tif", "README"):
        (folder / "train" / "cat" / name).write_text("")
    (folder / "val" / "dog" / "d.heic").write_text("")
    options = ["--data", str(folder), "--batch", "4", "--size", "32", "--epochs", "1"]
    assert train(tmp_path / "run", *options) == 0
    err = capsys.readouterr().err
    assert "left out of train: 2 .tif, 1 README, 1 .tiff (images end in .jpg, .jpeg, .png, .webp, .bmp)" in err
    assert "left out of val: 1 .heic (" in err


def test_grey_values_of_16_bits_keep_their_range(tmp_path):
    from PIL import Image

    ramp = numpy.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(numpy.uint16)
    folder = image_folder(tmp_path / "i", count=1)
    for part in ("train", "val"):
        Image.fromarray(ramp).save(folder / part / "cat" / "0.png")
    _, val, _ = data.load(str(folder), 56, 0)
    pixels = val[0][0] * data.STD + data.MEAN
    middle = torch.from_numpy(ramp[4:60, 4:60].astype(numpy.float32) / 65535)  # val takes the middle 7/8
    assert (pixels - middle).abs().max() <= 1 / 255
    whole = photo.load(folder / "val" / "cat" / "0.png") * data.STD + data.MEAN
    assert whole.min() < 0.1 and whole.max() > 0.9 and 0.45 < whole.mean() < 0.55


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_an_environment_that_torchrun_did_not_make(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "two")
    assert train(tmp_path / "run") == 2
    assert f"{name} should be a whole number, as torchrun sets it, not 'two'" in capsys.readouterr().err


def bad_pickle(folder):
    (folder / "data_batch_3").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda p: p, ["--data", "/nowhere"], "--data: no such folder: /nowhere"),
        (lambda p: p, ["--data", "."], "--data: . holds neither train/ and val/ nor CIFAR-10's data_batch_1"),
        (lambda p: bad_pickle(cifar(p / "c")), ["--data", "c"], "data_batch_3 is no CIFAR-10 batch"),
        (lambda p: (cifar(p / "c") / "test_batch").unlink(), ["--data", "c"], "--data: c lacks test_batch"),
        (lambda p: cifar(p / "c", classes=12), ["--data", "c"], "of 10 classes"),
        (
            lambda p: (image_folder(p / "i", ["train"]), image_folder(p / "i", ["val"], ["bird"])),
            ["--data", "i"], "--data: val/ has classes that train/ has not: bird",
        ),
        (
            lambda p: (image_folder(p / "i") / "train" / "cat" / "0.png").write_text("no"),
            ["--data", "i", "--batch", "8"], "--data: not an image: i/train/cat/0.png",
        ),
        (
            lambda p: (image_folder(p / "i") / "train" / "cat" / "0.png").write_text("no"),
            ["--data", "i", "--batch", "8", "--workers", "1"], "--data: not an image: i/train/cat/0.png",
        ),
        (lambda p: image_folder(p / "i"), ["--data", "i"], "--batch: 32 images on 1 processes, but there are 8"),
        (lambda p: p, ["--resume"], "--resume: no checkpoint at run/checkpoint.pt"),
        (lambda p: (p / "run").mkdir() or (p / "run/checkpoint.pt").write_text("x"), ["--resume"], "is not a checkpoint"),
        (
            lambda p: (p / "run").mkdir() or torch.save({"model": {}}, p / "run/checkpoint.pt"),
            ["--resume"], "is not a checkpoint of this trainer",
        ),
        (
            lambda p: torch.save(resnet18(num_classes=7).state_dict(), p / "w.pth"),
            ["--weights", "w.pth"], "--weights: w.pth has 7 classes, the data 10",
        ),
        (lambda p: p, ["--weights", "none.pth"], "--weights: "),
        (lambda p: p, ["--sync-bn"], "--sync-bn needs several processes: torchrun"),
        (lambda p: (p / "run").write_text(""), [], "--output: "),
        (lambda p: p, ["--epochs", "0"], "must be at least 1, not 0"),
        (
            lambda p: image_folder(p / "i"), ["--data", "i", "--batch", "1", "--size", "32", "--stem", "imagenet"],
            "--batch: 1 image of 32x32 ends in one value per channel: a larger --batch or --size",
        ),
        (lambda p: p, ["--batch", "1"], "--batch: 1 image of 8x8 ends in one value per channel"),
        (
            lambda p: [f.rename(f.with_suffix(".TIF")) for f in sorted(image_folder(p / "i").rglob("*.png"))],
            ["--data", "i"], "--data: no image (.jpg, .jpeg, .png, .webp, .bmp) in i/train, but 8 .tif",
        ),
        (lambda p: p, ["--seed", "99999999999999999999"], "argument --seed: must be at most 4294967296, not 9999"),
        (lambda p: p, ["--lr", "inf"], "argument --lr: must be at most"),
        (lambda p: p, ["--lr", "nan"], "argument --lr: must be at least 0, not nan"),
        (lambda p: p, ["--ema", "2"], "argument --ema: must be at most 1, not 2"),
        (lambda p: p, ["--label-smoothing", "1.5"], "argument --label-smoothing: must be at most 1, not 1.5"),
        (lambda p: p, ["--threads", "99999999999"], "argument --threads: must be at most 4096"),
        (lambda p: p, ["--data", "digits.zip"], "--data: no such folder: digits.zip"),
        (lambda p: p, ["--arch", "resnet20"], "invalid choice: 'resnet20'"),
        (lambda p: p, ["--weights", "."], "--weights: "),
    ],
    ids=[
        "no-folder", "no-data", "bad-pickle", "lacks-a-file", "labels", "val-classes", "no-image", "no-image-in-a-worker",
        "batch", "no-checkpoint", "not-a-checkpoint",
         "other-checkpoint", "class-count", "no-weights", "sync-bn", "output", "epochs",
        "one-value", "one-value-of-digits", "only-tiff", "seed", "lr-inf", "lr-nan", "ema", "smoothing", "threads", "file",
        "arch", "weights-folder",
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, prepare, options, message):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    assert main(["train", "--output", "run", *SHORT, *options]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("resnet_fused: error: ") and message in err
    assert "Traceback" not in err


def test_another_run_is_not_resumed_and_not_overwritten(finished, capsys):
    for options, message in (
        (["--ema", "0.9"], "exists: --resume goes on with it, another --output starts afresh"),
        (["--ema", "0.9", "--resume", "--arch", "resnet34"], "the run was started with --arch resnet18, not resnet34"),
        (["--ema", "0.9", "--resume", "--lr", "1"], "the run was started with --lr 0.05, not 1.0"),
    ):
        assert train(finished[0], *options) == 2
        assert message in capsys.readouterr().err


def test_a_checkpoint_of_other_classes_is_refused():
    state = {"classes": ["a", "b"], "settings": {}}
    with pytest.raises(CannotTrain, match="the checkpoint has 2 classes, the data 3"):
        checkpoint.check(state, {}, ["a", "b", "c"])
