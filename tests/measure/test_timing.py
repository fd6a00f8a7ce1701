"""The clock and the capture of graphs, as far as a machine without a GPU can see them."""

import contextlib

import torch

from resnet_fused.measure import timing


def test_a_capture_forbids_nothing_to_other_threads(monkeypatch):
    """In torch's default mode an allocation of pinned memory by a data loader's thread would end the capture."""
    captures, order = [], []

    class Stream:
        def wait_stream(self, other):
            order.append("wait")

    @contextlib.contextmanager
    def graph(graph, **settings):
        captures.append(settings)
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    assert timing.capture([lambda: order.append("a"), lambda: order.append("b")]) == "graph"
    assert order == ["wait", "a", "a", "a", "wait", "a", "b"]
    assert captures == [{"capture_error_mode": "thread_local"}]
