"""Subclasses that override a method, of a network or a block."""

import torch
from torch import nn
from ways import LIVE, Ways

ways = Ways()
RESNETS = ("ours", "converted late")


def derive(module, **methods):
    """`module` becomes an instance of a subclass of its own class that overrides `methods`."""
    cls = type(module)
    module.__class__ = type(f"My{cls.__name__}", (cls,), methods)


def call_super(module, cls, x):
    return super(cls, module).forward(x)


@ways(kinds=LIVE)
def forward_of_the_network(net):
    cls = type(net.model)
    derive(net.model, forward=lambda self, x: cls.forward(self, x * 1.5) * 1.25)
    net.step()


@ways(kinds=RESNETS)
def forward_impl_of_the_network(net):
    def features(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return torch.flatten(self.avgpool(self.layer2(self.layer1(x) * 1.25)), 1)

    derive(net.model, _forward_impl=features)
    net.step()


@ways(needs=("block",), kinds=LIVE)
def forward_of_a_block(net):
    cls = type(net.part("block"))
    derive(net.part("block"), forward=lambda self, x: cls.forward(self, x) * 1.25)
    net.step()


@ways(kinds=("ours", "torchvision", "converted late", "timm"), why="")
def forward_of_a_block_from_scratch(net):
    def forward(self, x):
        out = torch.tanh(self.bn1(self.conv1(x)))
        return torch.tanh(self.bn2(self.conv2(out)) + self.downsample(x))

    derive(net.part("block"), forward=forward)
    net.step()


@ways(needs=("layer",), kinds=LIVE)
def forward_of_a_layer(net):
    derive(net.part("layer"), forward=lambda self, x: nn.Sequential.forward(self, x) * 1.25)
    net.step()


@ways(needs=("block",), kinds=LIVE)
def call_of_a_block(net):
    cls = type(net.part("block"))
    derive(net.part("block"), __call__=lambda self, x: cls.__call__(self, x) * 1.25)
    net.step()


@ways(needs=("conv",), kinds=LIVE, why="not exactly nn.Conv2d")
def forward_of_a_convolution(net):
    """Weight standardisation."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, None, self.stride, self.padding)

    derive(net.part("conv"), forward=forward)
    net.step()


@ways(needs=("norm",), kinds=LIVE, why="not exactly nn.BatchNorm2d")
def forward_of_a_norm(net):
    derive(net.part("norm"), forward=lambda self, x: nn.BatchNorm2d.forward(self, x) * 1.25)
    net.step()


@ways(needs=("relu",), kinds=LIVE, why="not exactly nn.ReLU")
def forward_of_a_relu(net):
    derive(net.part("relu"), forward=lambda self, x: x.clamp(0, 1))
    net.step()


@ways(needs=("norm",), kinds=LIVE, why="not exactly nn.BatchNorm2d")
def an_empty_subclass_of_a_norm(net):
    derive(net.part("norm"))
    net.step()


@ways(kinds=LIVE)
def train_of_the_network_keeps_norms_in_evaluation(net):
    cls = type(net.model)

    def train(self, mode=True):
        cls.train(self, mode)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        return self

    derive(net.model, train=train)
    net.model.train(net.mode == "training")
    net.step()


@ways(kinds=LIVE, needs=("block",))
def an_attribute_of_the_block_that_is_computed(net):
    """A property in place of a child."""
    conv_name = net.parent("conv")[1]
    conv = net.part("conv")
    if net.parent("conv")[0] is net.part("block"):
        derive(net.part("block"), **{conv_name + "_again": property(lambda self: conv)})
    net.step()


test_subclass = ways.test()
