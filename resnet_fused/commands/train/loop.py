"""Steps and epochs, and the state that a checkpoint keeps so that a resumed run takes the same steps.

That state has no random numbers: the order of an epoch and the augmentation of an image follow from the seed.
"""

import time

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from ...kernels import layout
from .build import learning_rate
from .report import progress_text

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _autocast(args, device):
    return torch.autocast(device.type, AMP[args.amp], enabled=args.amp != "none")


def _to(images, labels, args, device):
    memory_format = layout.CONTIGUOUS if args.contiguous else layout.CHANNELS_LAST
    images = images.to(device, non_blocking=True, memory_format=memory_format)
    return images, labels.to(device, non_blocking=True)


def batches(length, batch, rank, world, seed, epoch):
    """The indices of every step of this process: a shuffle of all images, cut into whole steps of all processes."""
    numbers = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(length, generator=numbers, device="cpu").tolist()
    steps = length // (batch * world)
    first = (order[step * batch * world + rank * batch :][:batch] for step in range(steps))
    return list(first)


class Loop:
    """epoch, step: the epochs, and steps of the present epoch, that are done. rows: of metrics.csv. sums: loss, correct answers
    and images of the present epoch."""

    def __init__(self, args, train, model, ema, optimizer, scaler, rank, world, device):
        self.args, self.train, self.model, self.ema = args, train, model, ema
        self.optimizer, self.scaler = optimizer, scaler
        self.rank, self.world, self.device = rank, world, device
        self.steps = len(train) // (args.batch * world)
        self.epoch = self.step = 0
        self.rows = []
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "sums": self.sums.cpu(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.step, self.rows = state["epoch"], state["step"], state["rows"]
        if self.rank == 0:  # a checkpoint has the sums of all processes
            self.sums.copy_(state["sums"])

    def _loader(self):
        self.train.epoch = self.epoch
        args = self.args
        order = batches(len(self.train), args.batch, self.rank, self.world, args.seed, self.epoch)
        return DataLoader(
            self.train,
            batch_sampler=order[self.step :],
            num_workers=args.workers,
            pin_memory=self.device.type == "cuda",
        )

    def run_epoch(self, model, save, progress):
        """The rest of the present epoch; save() is called as often as --save-every says."""
        args = self.args
        model.train()
        start, first = time.perf_counter(), self.step
        for images, labels in self._loader():
            images, labels = _to(images, labels, args, self.device)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(args, self.epoch * self.steps + self.step, self.steps)
            self.optimizer.zero_grad(set_to_none=True)
            with _autocast(args, self.device):
                logits = model(images)
                loss = self.criterion(logits, labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None:
                self.ema.update_parameters(self.model)
            right = (logits.detach().argmax(1) == labels).sum()
            self.sums[0] += loss.detach() * len(labels)
            self.sums[1] += right
            self.sums[2] += len(labels)
            self.step += 1
            # The last step of an epoch is saved after its evaluation.
            if args.save_every and self.step % args.save_every == 0 and self.step < self.steps:
                self._gather_and(save)
            if progress is not None and (self.step - first) % 10 in (1, 0):  # reading the loss waits for the device
                rate = (self.step - first) * args.batch * self.world / (time.perf_counter() - start)
                progress.step(progress_text(self.epoch + 1, args.epochs, self.step, self.steps, rate, loss.item()))

    def _gather_and(self, save):
        """Saves, after the first process has taken over the sums of all: a resumed run may have another number of processes."""
        if self.world > 1:
            dist.all_reduce(self.sums)
            if self.rank > 0:
                self.sums.zero_()
        save()

    def row(self, seconds, steps):
        sums = self.sums.clone()
        if self.world > 1:
            dist.all_reduce(sums)
        loss, right, count = sums.tolist()
        images, lr = steps * self.args.batch * self.world, self.optimizer.param_groups[0]["lr"]
        return {
            "epoch": self.epoch + 1, "step": (self.epoch + 1) * self.steps, "lr": lr,
            "train_loss": loss / count, "train_accuracy": right / count, "images_per_s": round(images / seconds, 1),
        }  # fmt: skip

    def end_epoch(self, row):
        self.rows.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.sums.zero_()


@torch.no_grad()
def evaluate(args, model, dataset, rank, world, device):
    """(loss, accuracy) on `dataset`, shared out over the processes."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    own = list(range(rank, len(dataset), world))
    chunks = [own[i : i + args.batch] for i in range(0, len(own), args.batch)]
    for images, labels in DataLoader(dataset, batch_sampler=chunks, num_workers=args.workers):
        images, labels = _to(images, labels, args, device)
        with _autocast(args, device):
            logits = model(images).float()
        sums[0] += nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums[1] += (logits.argmax(1) == labels).sum()
        sums[2] += len(labels)
    model.train(was_training)
    if world > 1:
        dist.all_reduce(sums)
    loss, right, count = sums.tolist()
    return loss / count, right / count
