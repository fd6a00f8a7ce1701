"""torchvision beside a CPU build of torch, where its binary extension does not load.

torchvision then fails on import, since it registers fakes for operators that only the extension defines. The tests need its
Python models alone, so the two schemas are declared first; calling those operators still fails.
"""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library = torch.library.Library("torchvision", "FRAGMENT")

try:
    import torchvision
except RuntimeError:
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(_name + _SCHEMA)
    import torchvision

__all__ = ["torchvision"]
