"""Networks whose settings were changed, whose tensors were replaced, and images of other shapes, formats and dtypes."""

import copy

import torch
from torch import nn
from ways import LIVE, Ways

ways = Ways()
LAST = torch.channels_last


def put(role, **settings):
    """Sets attributes of the part of a role."""
    return lambda net: [setattr(net.part(role), name, value) for name, value in settings.items()]


def norms(net):
    return [m for m in net.model.modules() if isinstance(m, nn.BatchNorm2d)]


def each(function):
    return lambda net: [function(norm) for norm in norms(net)]


def put_each(**settings):
    return each(lambda norm: [setattr(norm, name, value) for name, value in settings.items()])


def image(change):
    """The image becomes change(image), and the gradient of the logits follows it."""

    def act(net):
        net.x = change(net.x.detach()).requires_grad_(net.x.requires_grad)
        net.grad = net.grad[: len(net.x)]

    return act


def all_in(dtype):
    return lambda net: (net.model.to(net.low(dtype)), image(lambda x: x.to(net.low(dtype)))(net))


def momenta(net):
    put_each(momentum=0.5)(net)
    norms(net)[-1].momentum = 0.0


def other_mode(role):
    return lambda net: net.part(role).train(not net.part(role).training)


def only_the_head_learns(net):
    net.model.requires_grad_(False)
    net.part("fc").requires_grad_()


def by_data(net):
    net.step()
    net.part("conv").weight.data.mul_(1.5)
    net.part("norm").running_var.numpy().fill(0.5)


def another_object(net):
    net.step()
    net.part("conv").weight = nn.Parameter(net.part("conv").weight.detach() * 1.5)


def data_set(net):
    net.step()
    net.part("conv").weight.data = net.part("conv").weight.detach() * 1.5


def plain_attribute(net):
    norm = net.part("norm")
    norm.__dict__["running_mean"] = norm._buffers.pop("running_mean")


def parameter_for_buffer(net):
    norm = net.part("norm")
    norm.register_parameter("running_var", nn.Parameter(norm._buffers.pop("running_var"), requires_grad=False))


def shared(net):
    net.model = copy.deepcopy(net.model).share_memory()


# name: (roles, change, other fields of the way)
SETTINGS = {
    "eps set": ([], put_each(eps=0.05), {}),
    "momentum set to None": ([], put_each(momentum=None), {}),
    "momentum set to 0.5 and 0": ([], momenta, {}),
    "track_running_stats set to False": ([], put_each(track_running_stats=False), {}),
    "running statistics removed": ([], put_each(running_mean=None, running_var=None), {}),
    "counters removed": ([], put_each(num_batches_tracked=None), {}),
    "weights of norms removed": ([], put_each(weight=None), {}),
    "weights and biases of norms removed": ([], put_each(weight=None, bias=None), {}),
    "statistics reset": ([], each(lambda norm: norm.reset_running_stats()), {}),
    "negative weights of norms": ([], each(lambda norm: norm.weight.data[::2].mul_(-1)), {}),
    "negative variances": ([], each(lambda norm: norm.running_var[:2].fill_(-1.0)), {"kinds": LIVE}),
    "norms do not learn": ([], each(lambda norm: norm.requires_grad_(False)), {}),
    "norms in evaluation": ([], each(lambda norm: norm.eval()), {}),
    "norms in evaluation that do not learn": ([], each(lambda norm: norm.eval().requires_grad_(False)), {}),
    "norms alone in float64": ([], each(lambda norm: norm.double()), {}),
    "one norm in the other mode": (["norm"], other_mode("norm"), {"kinds": LIVE}),
    "one block in the other mode": (["block"], other_mode("block"), {"kinds": LIVE}),
    "one convolution does not learn": (["conv"], lambda net: net.part("conv").requires_grad_(False), {}),
    "nothing learns but the head": ([], only_the_head_learns, {}),
    "nothing learns": ([], lambda net: net.model.requires_grad_(False), {}),
    "the image wants no gradient": ([], lambda net: net.x.requires_grad_(False), {}),
    "dilation set": (["conv"], put("conv", dilation=(2, 2), padding=(2, 2)), {}),
    "stride set": (["stem"], put("stem", stride=(1, 1)), {}),
    "stride set to a number": (["stem"], put("stem", stride=1), {"why": "not all tuples"}),
    "padding set to a number": (["conv"], put("conv", padding=1), {"why": "not all tuples"}),
    "a shortcut that does not fit": (["block"], put("strided", stride=(1, 1)), {}),
    "another stride of the pool": (["pool"], put("pool", stride=1), {"kinds": LIVE}),
    "float64": (
        [], lambda net: (net.model.double(), image(torch.Tensor.double)(net)),
        {"why": "float64"},
    ),
    "float16": ([], all_in(torch.float16), {"low": torch.float16}),
    "bfloat16": ([], all_in(torch.bfloat16), {"low": torch.bfloat16, "but": {"frozen": {"loose": 0.05}}}),
    "a model in channels_last": ([], lambda net: net.model.to(memory_format=LAST), {}),
    "images in channels_last": ([], image(lambda x: x.contiguous(memory_format=LAST)), {}),
    "all in channels_last": (
        [], lambda net: (net.model.to(memory_format=LAST), image(lambda x: x.contiguous(memory_format=LAST))(net)), {},
    ),
    "images of an odd size, cut out": ([], image(lambda x: torch.cat([x, x], 3)[:, :, :31, 3:36]), {}),
    "one image": ([], image(lambda x: x[:1]), {}),
    "no image": ([], image(lambda x: x[:0]), {"why": "empty"}),
    "a wrong number of channels": ([], image(lambda x: x[:, :2]), {}),
    "an image without a batch": ([], image(lambda x: x[0]), {}),
    "an image of another dtype": ([], image(torch.Tensor.half), {"kinds": LIVE}),
    "weights changed by .data and numpy": (["conv", "norm"], by_data, {}),
    "a weight of another object": (["conv"], another_object, {}),
    "p.data set": (["conv"], data_set, {}),
    "a buffer that is a plain attribute": (["norm"], plain_attribute, {}),
    "a buffer that is a parameter": (["norm"], parameter_for_buffer, {}),
    "in shared memory": ([], shared, {}),
}  # fmt: skip
for _name, (_roles, _change, _fields) in SETTINGS.items():
    ways.edit(_name, _change, _roles, **_fields)

test_settings = ways.test()
