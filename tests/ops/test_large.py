"""More than 2**31 elements, which no emulator can run: --device=cuda, about 15 GB of GPU memory.

Evaluation treats every image by itself, so the last images are compared with eager on those images alone.
"""

import pytest
import torch
from cases import channels

from resnet_fused import ops
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.conv_bn_relu import reference

SIZE = 2**31 + 4101  # no multiple of a block, and its tail past the range of 32 bits


@pytest.fixture(autouse=True)
def _needs_memory(device):
    if device == "cpu":
        pytest.skip("only on a GPU: --device=cuda")
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    torch.use_deterministic_algorithms(False)  # filling fresh memory with NaN would double the traffic
    yield
    torch.cuda.empty_cache()


def image_batch(shape):
    """bfloat16, channels_last, more than 2**31 elements; the last image differs from the others."""
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last).normal_()
    assert x.numel() > 2**31
    return x


def test_add_relu(backend, device):
    x = torch.empty(SIZE, dtype=torch.bfloat16, device=device).normal_()
    r = torch.empty_like(x).normal_()
    out = ops.add_relu(x, r)
    for part in (slice(0, 5000), slice(2**30 - 99, 2**30 + 99), slice(2**31 - 5000, None)):
        oracle = (exact(x[part]) + exact(r[part])).relu()
        assert_within_budget(out[part], torch.relu(x[part] + r[part]), oracle, f"out[{part}]")


def test_bn_relu(backend, device):
    x = image_batch((700, 64, 224, 224))
    weight, bias, mean, var = channels(64, device)
    out = ops.bn_relu(x, weight, bias, mean, var)
    for i in (0, 350, 699):
        image = x[i : i + 1]
        eager = torch.relu(torch.nn.functional.batch_norm(image, mean, var, weight, bias))
        wide = [exact(t) for t in (image, mean, var, weight, bias)]
        oracle = torch.relu(torch.nn.functional.batch_norm(*wide))
        assert_within_budget(out[i : i + 1], eager, oracle, f"image {i}")


def test_statistics(backend, device):
    x = image_batch((700, 64, 224, 224))
    weight, bias, mean, var = channels(64, device)
    ops.bn_relu(x, weight, bias, mean, var, training=True, momentum=1.0)
    sums = sum(x[i].double().sum((1, 2)) for i in range(700))
    count = x.numel() // 64
    torch.testing.assert_close(mean.double(), sums / count, rtol=1e-4, atol=1e-6)
    squares = sum((x[i].double() - (sums / count)[:, None, None]).square().sum((1, 2)) for i in range(700))
    torch.testing.assert_close(var.double(), squares / (count - 1), rtol=1e-4, atol=1e-6)


def test_conv_bn_relu(backend, device):
    x = image_batch((700, 64, 224, 224))
    weight = (torch.randn(64, 64, 3, 3, device=device) / 24).bfloat16().contiguous(memory_format=torch.channels_last)
    parameters = channels(64, device)
    out = ops.conv_bn_relu(x, weight, *parameters, padding=1)
    for i in (0, 699):
        image = x[i : i + 1]
        eager = reference(image, weight, *parameters, padding=1)
        oracle = reference(exact(image), exact(weight), *(exact(p) for p in parameters), padding=1)
        assert_within_budget(out[i : i + 1], eager, oracle, f"image {i}")
