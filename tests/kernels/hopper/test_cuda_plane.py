"""The plane convolution in CUDA as the product runs it: tables, launcher, checks; against float64 beside torch's own error.

Without a GPU its kernels run on the emulator; with --device=cuda, on Hopper, they are the library's.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import activation, channels, shifted

from resnet_fused import dispatch, ops
from resnet_fused.kernels.epilogue import Epilogue, Norm
from resnet_fused.kernels.hopper.plane import cuda as cuda_plane
from resnet_fused.kernels.hopper.plane import schedule as plane
from resnet_fused.kernels.shapes import Convolution, convolution_of
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.conv_bn_relu import reference

BACKEND = "cuda_plane"  # of the fixture `library`
EPS = 1e-5
LAST = torch.channels_last

# x, weight, arguments, residual; the last three only on a GPU, where several blocks run at once
CONVS = [
    pytest.param((5, 64, 4, 4), (128, 64, 3, 3), {"padding": 1}, True, id="3x3"),
    pytest.param((66, 64, 2, 3), (192, 64, 3, 3), {"padding": 1}, True, id="tails"),
    pytest.param((3, 128, 5, 6), (128, 128, 3, 3), {"stride": 2, "padding": 1}, True, id="stride-2"),
    pytest.param((3, 64, 4, 4), (128, 64, 1, 1), {"stride": 2}, False, id="projection"),
    pytest.param((2, 64, 5, 4), (128, 64, 3, 3), {"padding": 2, "dilation": 2}, True, id="dilation-2"),
    pytest.param((2, 64, 2, 2), (128, 64, 1, 1), {"padding": 1}, True, id="pixels-without-taps"),
    pytest.param((256, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}, True, id="layer2"),
    pytest.param((100, 256, 14, 14), (512, 256, 3, 3), {"stride": 2, "padding": 1}, False, id="layer4.0"),
    pytest.param((256, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}, True, id="layer4"),
]


def pairs(arguments):
    defaults = (("stride", 1), ("padding", 0), ("dilation", 1))
    return [[value, value] if isinstance(value := arguments.get(name, d), int) else value for name, d in defaults]


def make(device, dtype, x_shape, weight_shape, residual, arguments):
    x = activation(x_shape, dtype, device=device)
    std = torch.Size(weight_shape[1:]).numel() ** -0.5
    weight = activation(weight_shape, dtype, device=device, mean=0.0, std=std)
    like = F.conv2d(x[:1].float(), weight.float(), **arguments).shape
    shape = (x_shape[0], *like[1:])
    return x, weight, channels(weight_shape[0], device), activation(shape, dtype, device=device) if residual else None


def run(library, x, weight, params, residual, arguments, relu, **more):
    bn_weight, bn_bias, mean, var = params
    like = F.conv2d(x[:1].float(), weight.float(), **arguments).shape
    out = torch.empty((len(x), *like[1:]), dtype=x.dtype, device=x.device).contiguous(memory_format=LAST)
    out.fill_(torch.nan)
    epilogue = Epilogue(Norm(mean, var, None, bn_weight, bn_bias, EPS), residual, int(relu))
    convolution = convolution_of(x, weight, *pairs(arguments), 1)
    cuda_plane.conv_bn_relu(library, x, weight, epilogue, out, convolution, config=more)
    return out


def check(ours, x, weight, params, residual, arguments, relu):
    eager = reference(x, weight, *params, residual, relu=relu, **arguments)
    wide = [exact(t) for t in (x, weight, *params, residual)]
    assert_within_budget(ours, eager, reference(*wide, relu=relu, **arguments), "out")


# Pairs of blocks take two groups of 64 images.
PAIRED = [pytest.param(*c.values, 2, id=f"{c.id}-paired") for c in CONVS if c.values[0][0] > 64]
ALONE = [pytest.param(*c.values, 1, id=c.id) for c in CONVS]


@pytest.mark.parametrize("places", [4, 2])
@pytest.mark.parametrize(("x_shape", "weight_shape", "arguments", "residual", "cluster"), ALONE + PAIRED)
def test_against_float64(library, device, dtype, x_shape, weight_shape, arguments, residual, places, cluster):
    if device == "cpu" and x_shape[0] * x_shape[1] * x_shape[2] > 50_000:
        pytest.skip("too large for the emulator")
    x, weight, params, r = make(device, dtype, x_shape, weight_shape, residual, arguments)
    how = {"places": places, "cluster": cluster}
    ours = run(library, x, weight, params, r, arguments, residual, **how)
    check(ours, x, weight, params, r, arguments, residual)
    assert torch.equal(ours, run(library, x, weight, params, r, arguments, residual, **how)), "the same bits"


def test_views_that_start_askew(library, device):
    """The copy engine reads from multiples of 16 bytes: such an operand is copied, such a result refused."""
    x, weight, params, r = make(device, torch.float16, (2, 64, 3, 3), (128, 64, 3, 3), True, {"padding": 1})

    ours = run(library, *map(shifted, (x, weight)), params, shifted(r), {"padding": 1}, True)
    check(ours, x, weight, params, r, {"padding": 1}, True)
    products = cuda_plane.table(library, geometry(x, weight, ours), places=4).to(device)
    with pytest.raises(RuntimeError, match="conv_plane: out does not begin at a multiple of 16 bytes"):
        launch(library, x, weight, shifted(ours), products)


def geometry(x, weight, out, padding=(1, 1)):
    return plane.Geometry(tuple(x.shape[2:]), tuple(out.shape[2:]), tuple(weight.shape[2:]), (1, 1), padding, (1, 1))


def launch(library, x, weight, out, products, places=4, cluster=1):
    one = torch.ones(weight.shape[0], device=x.device)
    library.conv_plane(
        x, weight, one, one, None, None, None, out, products, [1, 1], [1, 1], [1, 1], 1, EPS, True, places, cluster
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"places": 3}, "places must be 2 or 4, but is 3", id="places"),
        pytest.param({"cluster": 4}, "cluster must be 1 or 2, but is 4", id="cluster"),
        pytest.param({"cluster": 2}, "cluster must be 1 for at most 64 images, but is 2 for 2", id="cluster-of-few"),
        pytest.param({"products": torch.zeros(3, dtype=torch.int32)}, "table has 3 values, but the headers of this "
                     "convolution are 24: the table belongs to another", id="table-of-another"),
        pytest.param({"products": torch.zeros(240)}, "table has dtype Float", id="table-of-floats"),
        pytest.param({"weight": torch.zeros(64, 64, 3, 3).half()}, "out has shape", id="out"),
        pytest.param({"x": torch.zeros(2, 64, 3, 3)}, "weight has another dtype than x", id="dtype"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(library, device, change, why):
    given = {
        "x": torch.zeros(2, 64, 3, 3).half(),
        "weight": torch.zeros(128, 64, 3, 3).half(),
        "out": torch.zeros(2, 128, 3, 3).half(),
        "products": torch.zeros(240, dtype=torch.int32),
    } | change
    given = {
        name: t.to(device).contiguous(memory_format=LAST) if isinstance(t, torch.Tensor) and t.dim() == 4 else t
        for name, t in given.items()
    }
    given["products"] = given["products"].to(device)
    with pytest.raises(RuntimeError, match=why) as raised:
        launch(library, **given)
    assert "\n" not in str(raised.value).splitlines()[0]


SHAPES = [
    ((2, 64, 5, 5), (128, 64, 3, 3), 1), ((2, 64, 5, 5), (64, 64, 3, 3), 1), ((2, 64, 5, 5), (160, 64, 3, 3), 1),
    ((2, 96, 5, 5), (128, 96, 3, 3), 1), ((2, 128, 5, 5), (128, 64, 3, 3), 2), ((2, 64, 5, 5), (192, 64, 1, 1), 1),
]  # fmt: skip


@pytest.mark.parametrize(("x_shape", "weight_shape", "groups"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dispatcher_and_library_refuse_the_same(library, device, x_shape, weight_shape, groups, dtype):
    x, weight = (torch.empty(s, dtype=dtype, device=device).to(memory_format=LAST) for s in (x_shape, weight_shape))
    geometry = [1, 1], [1, 1], [1, 1], groups
    theirs = library.conv_plane_refusal(x, weight, *geometry)
    convolution = Convolution(x_shape, weight_shape, dtype, *geometry)
    ours = plane.refusal("conv_bn_relu", convolution)
    assert bool(theirs) == (ours is not None)
    if ours is not None:
        with pytest.raises(ValueError, match="the plane kernel"):
            cuda_plane.conv_bn_relu(library, x, weight, None, None, convolution)


def test_the_public_op_runs_it(library, device, monkeypatch):
    """By name; the op notes what ran, and differentiates as with any backend."""
    here = {"device": device, "why_not": lambda device: None, "kernels": cuda_plane.kernels(lambda: library)}
    monkeypatch.setitem(dispatch.BACKENDS, "cuda_plane", cuda_plane.BACKEND._replace(**here))
    x, weight, params, r = make(device, torch.bfloat16, (3, 64, 4, 4), (128, 64, 3, 3), True, {"padding": 1})
    with dispatch.record() as rows, dispatch.backend("cuda_plane"), dispatch.configured({"places": 2}):
        ours = ops.conv_bn_relu(x, weight, *params, r, padding=1)
    assert [choice.backend for _, _, choice in rows] == ["cuda_plane"] and rows[0][2].config == {"places": 2}
    check(ours, x, weight, params, r, {"padding": 1}, True)


GRADIENTS = {
    "3x3": ((3, 128, 5, 6), (64, 128, 3, 3), 1, 1),
    "stride-2": ((3, 128, 7, 6), (192, 128, 3, 3), 2, 1),
    "projection": ((3, 192, 5, 5), (64, 192, 1, 1), 2, 0),
    "two-groups-of-images": ((70, 128, 3, 4), (64, 128, 3, 3), 1, 1),
}
WAYS = [(name, 4, 1) for name in GRADIENTS] + [(name, 2, 1) for name in GRADIENTS] + [("two-groups-of-images", 4, 2)]


@pytest.mark.parametrize(("name", "places", "cluster"), WAYS)
def test_gradient_of_the_input(library, device, dtype, name, places, cluster):
    shape, weight_shape, stride, padding = GRADIENTS[name]
    weight = activation(weight_shape, dtype, device=device, mean=0.0, std=(weight_shape[0] * 9) ** -0.5)
    like = F.conv2d(torch.empty(shape, device=device), weight.float(), None, stride, padding)
    grad = activation(like.shape, dtype, device=device)
    out = torch.empty(shape, dtype=dtype, device=device).contiguous(memory_format=LAST).fill_(torch.nan)
    where = (stride, stride), (padding, padding), (1, 1), 1
    convolution = convolution_of(grad, weight.transpose(0, 1), *where)
    config = {"places": places, "cluster": cluster}
    cuda_plane.conv_input_grad(library, grad, weight, out, convolution, config)
    eager, oracle = (
        torch.nn.grad.conv2d_input(shape, convert(weight), convert(grad), stride, padding)
        for convert in (lambda t: t, exact)
    )
    assert_within_budget(out, eager, oracle, "the gradient of the input")
    with pytest.raises(ValueError, match="from 128 on, not 64"):
        few = weight[:, :64]
        cuda_plane.conv_input_grad(library, grad, few, out, convolution_of(grad, few.transpose(0, 1), *where))


def test_a_table_is_made_once_and_not_inside_of_a_capture(library, device, monkeypatch):
    cuda_plane.table_on.cache_clear()
    x, weight, params, r = make(device, torch.float16, (1, 64, 3, 5), (128, 64, 3, 3), False, {"padding": 1})
    monkeypatch.setattr(plane, "refuse_capture", lambda device: (_ for _ in ()).throw(RuntimeError("captures")))
    with pytest.raises(RuntimeError, match="captures"):
        run(library, x, weight, params, r, {"padding": 1}, True)
    monkeypatch.undo()
    first = run(library, x, weight, params, r, {"padding": 1}, True)
    monkeypatch.setattr(plane, "refuse_capture", lambda device: (_ for _ in ()).throw(RuntimeError("captures")))
    assert torch.equal(first, run(library, x, weight, params, r, {"padding": 1}, True))
