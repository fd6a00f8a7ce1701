"""A pytest plugin (-p fake_gpu): a machine that has a GPU, as far as /dev and torch tell. No kernel runs on it."""

import os

import torch

_exists = os.path.exists
os.path.exists = lambda path: str(path).startswith("/dev/nvidia") or _exists(path)
# The real ones read this variable too, when they are first asked.
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != ""
torch.cuda.device_count = lambda: int(torch.cuda.is_available())
