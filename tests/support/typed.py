"""The public interface as a type checker sees it; `make lint` checks this file with mypy --strict. Nothing runs it."""

from typing import TYPE_CHECKING

import torch

import resnet_fused
from resnet_fused import nn, ops

if TYPE_CHECKING:
    from typing_extensions import assert_type

    x = torch.randn(1, 3, 224, 224)
    model = resnet_fused.resnet34(weights="DEFAULT", num_classes=10)
    assert_type(model, resnet_fused.ResNet)
    assert_type(resnet_fused.resnet20(), resnet_fused.CifarResNet)
    assert_type(model.forward(x), torch.Tensor)
    assert_type(resnet_fused.convert(torch.nn.Sequential(model), strict=True), torch.nn.Sequential)
    assert_type(resnet_fused.unconvert(model), resnet_fused.ResNet)
    engine = resnet_fused.freeze(model, x, dtype=torch.bfloat16, batch="pad")
    logits: torch.Tensor = engine(x)  # whatever the network returns
    assert_type(engine.module(), torch.nn.Module)
    engine.refresh()
    engine.save("engine.pt")
    resnet_fused.load_engine("engine.pt", "cpu")(logits)
    assert_type(str(resnet_fused.explain(engine, x)), str)
    assert_type(resnet_fused.verify("cpu", [torch.float32], quick=True).passed, bool)
    assert_type(resnet_fused.backends(), dict[str, str])
    with resnet_fused.backend("eager") as name, resnet_fused.strict():
        assert_type(name, str)
    assert_type(ops.add_relu(x, x), torch.Tensor)
    assert_type(ops.bn_relu(x, None, None, x, x, training=True), torch.Tensor)
    assert_type(ops.conv_bn_relu(x, x, x, x, x, x, stride=(1, 2), padding=1), torch.Tensor)
    assert_type(nn.ConvBNReLU(3, 64, 7, 2, relu=False).forward(x), torch.Tensor)
    assert_type(nn.BNReLU(3).why_not_fused(x), str | None)
    assert_type(nn.AddReLU().forward(x, x), torch.Tensor)
    resnet_fused.freeze(model, x, batch="many")  # type: ignore[arg-type]
    resnet_fused.resnet34(weight="DEFAULT", progress=1.5)  # type: ignore[arg-type]
