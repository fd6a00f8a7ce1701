"""What identifies a machine."""

import io

import pytest

from resnet_fused.measure import machine

ZEN4 = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\ncpu family\t: 25\n"


@pytest.mark.parametrize(("text", "name"), [
    pytest.param(ZEN4, "AMD EPYC (family 25, model 17)", id="zen4"),
    pytest.param(ZEN4.replace("25", "26"), "AMD EPYC (family 26, model 17)", id="zen5, of the same name"),
    pytest.param("model name\t: Cortex\n", "Cortex", id="without a family"),
])  # fmt: skip
def test_processors_of_one_name_are_told_apart(monkeypatch, text, name):
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO(text))
    assert machine.cpu_model.__wrapped__() == name  # which is remembered
