"""A block of one's own on the fused ops, trained for a few steps beside the same block in plain torch.

python examples/own_block.py
"""

import copy

import torch
from torch import nn

import resnet_fused
from resnet_fused.nn import AddReLU, ConvBNReLU


class SEBlock(nn.Module):
    """A residual block with squeeze-and-excitation: the gate stands between the batch norm and the sum."""

    def __init__(self, channels):
        super().__init__()
        self.first = ConvBNReLU(channels, channels, 3)
        self.second = ConvBNReLU(channels, channels, 3, relu=False)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.join = AddReLU()

    def forward(self, x):
        out = self.second(self.first(x))
        return self.join(out * self.squeeze(out), x)


class Network(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = ConvBNReLU(3, 32, 3)
        self.down = ConvBNReLU(32, 64, 3, stride=2)
        self.blocks = nn.Sequential(SEBlock(64), SEBlock(64))
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        return self.fc(self.blocks(self.down(self.stem(x))).mean((2, 3)))


def train(model, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 3, 16, 16, generator=generator)
        target = torch.randint(0, 10, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    torch.manual_seed(0)
    model = Network()
    plain = copy.deepcopy(model)
    fused_losses = train(model)
    with resnet_fused.backend("eager"):  # the same network on torch's own operators
        plain_losses = train(plain)
    print(resnet_fused.explain(model.eval(), torch.randn(16, 3, 16, 16)))
    for step, (a, b) in enumerate(zip(fused_losses, plain_losses, strict=True)):
        print(f"step {step}: loss {a:.6f} fused, {b:.6f} in plain torch")
    return fused_losses, plain_losses


if __name__ == "__main__":
    main()
