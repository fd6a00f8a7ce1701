"""Writes docs/reference/api.md from the docstrings of the public names: python tools/api.py

The docstrings are the reference; the page only brings them together. tests/house/test_docs.py checks that it is current.
"""

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "api.md"
sys.path.insert(0, str(ROOT))


def sections():
    """(heading, [(qualified name, object)]) of everything public."""
    import resnet_fused
    from resnet_fused import nn, ops
    from resnet_fused.frozen.engine import Engine
    from resnet_fused.reports.explain import Report
    from resnet_fused.reports.summary import summarize

    top = {name: getattr(resnet_fused, name) for name in resnet_fused.__all__ if name not in ("nn", "ops")}
    networks = {n: o for n, o in top.items() if o.__module__.startswith("resnet_fused.models.")}
    functions = {n: o for n, o in top.items() if n not in networks}
    return [
        ("Networks", [(f"resnet_fused.{n}", o) for n, o in networks.items()]),
        ("Functions", [(f"resnet_fused.{n}", o) for n, o in functions.items()]),
        ("What they return", [("Engine", Engine), ("Report", Report)]),
        ("Ops", [(f"resnet_fused.ops.{n}", getattr(ops, n)) for n in ops.__all__]),
        ("Modules", [(f"resnet_fused.nn.{n}", getattr(nn, n)) for n in nn.__all__]),
        ("Tables", [("resnet_fused.summary.summarize", summarize)]),
    ]


def entry(name, thing):
    """Heading, signature and docstring; of a class also its public methods."""
    parts = [f"### {name}", _block(f"{name.rpartition('.')[2]}{inspect.signature(thing)}")]
    parts.append(_block(inspect.getdoc(thing)))
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(function) and function.__doc__ and not method.startswith("_"):
            parts += [f"`.{method}{inspect.signature(function)}`", _block(inspect.getdoc(function))]
    return "\n\n".join(parts)


def _block(text):
    return f"```text\n{text}\n```"  # not python: ruff would format a signature


def page():
    parts = ["# API reference", "Made of the docstrings by `python tools/api.py`."]
    for heading, entries in sections():
        parts += [f"## {heading}", *(entry(name, thing) for name, thing in entries)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)}: {sum(len(entries) for _, entries in sections())} names")
