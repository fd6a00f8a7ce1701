"""The inputs on which kernels are checked: right kernels pass, and a kernel that reads its input 5 % off does not."""

import pytest
import torch
from broken_kernels import GPU
from emulator import as_backend, build

from resnet_fused import dispatch
from resnet_fused.kernels import cuda
from resnet_fused.kernels.backend import WHOLE, Kernels
from resnet_fused.kernels.hopper.plane import cuda as plane
from resnet_fused.kernels.hopper.strip import cuda as strip
from resnet_fused.measure.trust import cases, compare, convolutions, families

CPU = torch.device("cpu")
NATIVE = dispatch.BACKENDS["native"]
HOPPER = {
    module.BACKEND.name: module.BACKEND._replace(device="cpu", kernels=module.kernels(as_backend._library))
    for module in (plane, strip)
}


def clusters(op, convolution):
    """The emulator has no room for those of larger tiles."""
    return [
        config
        for config in cuda.configurations(as_backend._library, "cpu", op, convolution)
        if config.get("cluster") and config["tile"] == "64x64"
    ]


CLUSTERS = GPU._replace(name="clusters", configurations=clusters)
EMULATED = [(b, op) for b in (GPU, *HOPPER.values()) for op in b.kernels if op not in WHOLE]
NATIVES = [(NATIVE, family.name) for family in families.families(NATIVE, CPU)] if NATIVE.why_not(CPU) is None else []
FAMILIES = [
    pytest.param(backend, family, id=f"{backend.name}-{family}")
    for backend, family in (*NATIVES, *EMULATED, (CLUSTERS, families.name_of("conv_bn_relu", {"cluster": True})))
]


@pytest.mark.parametrize(("backend_here", "family"), FAMILIES)
def test_right_kernels_pass_and_wrong_ones_do_not(backend_here, family):
    if backend_here is not NATIVE:
        if (why := build.why_not()) is not None:
            pytest.skip(why)
        build.load()
    calls, why = compare.why_wrong(backend_here, family, CPU)
    assert calls > 0 and why is None, why
    op = family.removesuffix(families.CLUSTERS)
    kernel = backend_here.kernels[op]

    def wrong(x, *arguments, **config):
        return kernel(x * 1.05, *arguments, **config)

    off = backend_here._replace(kernels=Kernels((op,), lambda op: wrong))
    assert compare.why_wrong(off, family, CPU)[1].startswith("wrong numbers: ")


def test_every_op_of_every_backend_has_cases():
    """The families follow from the table of backends: an op without cases would be refused on every device."""
    known = {*cases.PASSES, *convolutions.REFERENCES, "conv_fp8", "quantise_fp8"}
    own = [b for b in dispatch.BACKENDS.values() if b not in (dispatch.TORCH, dispatch.EAGER)]
    assert {op for backend in own for op in backend.kernels} - {*WHOLE} <= known  # whole blocks: part by part
    assert {b.name for b in own if b.device == "cuda" and not b.proves} == set()


@pytest.mark.parametrize(
    ("config", "family"),
    [
        pytest.param(None, "conv_bn_relu", id="default"),
        pytest.param({"tile": "64x64", "splits": 2}, "conv_bn_relu", id="slices"),
        pytest.param({"tile": "64x64", "splits": 2, "cluster": True}, "conv_bn_relu in clusters", id="cluster"),
        pytest.param({"places": 2, "cluster": 1}, "conv_bn_relu", id="alone"),
        pytest.param({"places": 2, "cluster": 2}, "conv_bn_relu in clusters", id="paired"),
    ],
)
def test_clusters_are_a_family_of_their_own(config, family):
    assert families.name_of("conv_bn_relu", config) == family
