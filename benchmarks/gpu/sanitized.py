"""Runs every op forward and backward on small shapes, for compute-sanitizer to watch: python -m benchmarks.gpu.sanitized

Without the caching allocator (PYTORCH_NO_CUDA_MEMORY_CACHING=1) an access past a tensor is past its allocation. The numbers are
checked too. Maps are small, since compute-sanitizer slows a kernel down.
"""

import functools
import sys

import torch

from resnet_fused import dispatch, freeze
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models import resnet

from ..protocol import candidates, cases, gate, options

# The head is no op of the dispatcher; `networks` runs it in the frozen engine.
DISPATCHED = tuple(op for op in cases.OPS if op != "pool_linear")


def main(argv=None):
    made = options.parser("gpu.sanitized", __doc__.splitlines()[0])
    made.add_argument("--backend", choices=list(dispatch.BACKENDS), help="default: every one that can run")
    args = options.settle(made.parse_args(argv), gpu_batches=(1, 3), cpu_batches=(2,))
    torch.backends.cudnn.benchmark = False
    model = with_lively_norms(resnet.resnet18()).to(memory_format=torch.channels_last)
    done = 0
    for batch in args.batch:
        for dtype in (torch.float32, torch.bfloat16):
            for case in cases.collect(model, batch, args.size, dtype, DISPATCHED):
                for name in candidates.backends(args.device, case.op):
                    if args.backend in (None, name):
                        done += _check(case, name, args.device)
    networks(model, args)
    print(f"{done} calls, all within their error budget")
    return 0 if done else 1


def networks(model, args):
    """Whole passes, for what only a network calls: shared launches, running statistics, the frozen engine."""
    x = torch.randn(2, 3, args.size, args.size, device=args.device)
    model = model.to(args.device)
    for name in candidates.backends(args.device, "conv_bn_relu"):
        if args.backend in (None, name):
            with dispatch.backend(name):
                with torch.no_grad():
                    model.eval()(x)
                model.train()(x).square().mean().backward()
    if args.backend is None:
        freeze(model.eval(), x)(x)


def _check(case, name, device):
    a = case.arguments(device, 0)
    if case.op == "bn_relu" and a["x"].numel() <= 2 * a["x"].shape[1]:
        return 0  # two values a channel: normalised to +-1, errors mean nothing
    grad = torch.randn(case.out_shape, device=device).to(a["x"].dtype).contiguous(memory_format=torch.channels_last)
    with dispatch.backend(name):
        if case.direction == "forward":
            itself, out = candidates.runs_itself(name, functools.partial(case.run, case.public, gate.copies(a)))
            if not itself:
                return 0
            share = gate.Forward(case, a).share(out)
        else:
            share = gate.Backward(case, a, grad).share(*gate.gradients(case, case.public, a, grad))
    if not share <= 1:
        raise AssertionError(f"{name}: {case.op} {case.direction} {case.label}: {share:.2f} of the error budget")
    return 1


if __name__ == "__main__":
    sys.exit(options.run(main, None))
