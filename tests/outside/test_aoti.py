"""AOTInductor on CPUs: live and frozen networks as compiled packages, with and without this package at run time."""

import subprocess
import sys

import pytest
import torch
from foreign import fused_and_eager
from what_works import each_holder

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.oracle import with_lively_norms

X = (2, 3, 32, 32)
pytestmark = pytest.mark.exhaustive("compiles whole networks by Inductor")


def packaged(program, path):
    return torch._inductor.aoti_compile_and_package(program, package_path=str(path))


@each_holder
def test_a_live_network(holder, tmp_path):
    """The package calls the fused ops: it needs `import resnet_fused` before it is loaded."""
    model, reference = fused_and_eager(holder)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(X),), dynamic_shapes=shapes)
        loaded = torch._inductor.aoti_load_package(packaged(program, tmp_path / "live.pt2"))
        x = torch.randn(5, *X[1:])
        with dispatch.record() as rows:
            out = loaded(x)
        assert rows
        torch.testing.assert_close(out, reference(x), rtol=1e-4, atol=1e-4)


WITHOUT = """
import sys, torch
package, data = sys.argv[1:]
x, expected = torch.load(data, weights_only=True)
out = torch._inductor.aoti_load_package(package)(x)
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
assert not any("resnet_fused" in name for name in sys.modules)
"""


@pytest.mark.parametrize("kind", ["decomposed", "frozen"])
def test_a_package_that_needs_nothing_of_ours(kind, tmp_path):
    x = torch.randn(X)
    if kind == "decomposed":
        model, reference = fused_and_eager("ours")
        with torch.no_grad():
            program = torch.export.export(model, (x,)).run_decompositions(resnet_fused.decompositions())
    else:
        reference = with_lively_norms(resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=5)).eval()
        program = torch.export.export(resnet_fused.freeze(reference, x).module(), (x,))
    with torch.no_grad():
        path = packaged(program, tmp_path / "plain.pt2")
        torch.save((x, reference(x)), tmp_path / "data.pt")
    subprocess.run([sys.executable, "-c", WITHOUT, path, str(tmp_path / "data.pt")], check=True, cwd=tmp_path)
