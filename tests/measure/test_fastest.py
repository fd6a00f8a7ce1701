"""Choices of kernels on a CPU: what is called again, what is dropped, what counts as disturbed. The clock is not real."""

import pytest

from resnet_fused.measure import timing


class Clock:
    """Moves by what functions take. `waiting`: how many threads wait for a core meanwhile."""

    def __init__(self):
        self.now, self.waiting, self.order = 0.0, 0.0, []

    def perf_counter(self):
        return self.now

    def functions(self, name, *milliseconds):
        """One function that takes so long, again and again in this order."""

        def run():
            self.order.append(name)
            self.now += 1e-3 * milliseconds[(self.order.count(name) - 1) % len(milliseconds)]

        return [run]


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    monkeypatch.setattr(timing, "waited", lambda: found.waiting * found.now)
    monkeypatch.setattr(timing, "_own_queue", lambda: 0)
    return found


def milliseconds(times):
    return {name: round(1e3 * s, 6) for name, s in times.items()}


def test_the_three_fastest_calls_count(clock):
    times = timing.fastest(
        {"a": clock.functions("a", 16, 15, 10, 10.1, 10.2, 40), "b": clock.functions("b", 11)}, seconds=9
    )
    assert milliseconds(times) == {"a": 10.1, "b": 11.0}
    assert times.spread == pytest.approx({"a": 0.02, "b": 0.0}) and times.load == 0.0
    assert clock.order == ["a", "b"] * 6, "in turns, and no more rounds than are needed"


def test_the_functions_of_a_candidate_follow_each_other(clock):
    two = [*clock.functions("first", 1), *clock.functions("second", 1)]
    timing.fastest({"a": two, "b": clock.functions("other", 1) * 2}, least=4)
    assert clock.order == ["first", "second", "other", "other"] * 2


def test_rounds_go_on_until_fast_calls_agree(clock):
    slow = [20.0 + i for i in range(20)]
    times = timing.fastest({"a": clock.functions("a", 8, *slow, 10, 10, 10), "b": clock.functions("b", 10)}, seconds=9)
    assert clock.order.count("a") > 40 and milliseconds(times)["a"] == 8.0


def test_what_is_far_slower_is_dropped(clock):
    times = timing.fastest({"a": clock.functions("a", 10), "far": clock.functions("far", 16)}, seconds=9)
    assert clock.order == ["a", "far"] * 3 and milliseconds(times) == {"a": 10.0, "far": 16.0}
    clock.order.clear()
    timing.fastest(
        {"a": clock.functions("a", 10), "b": clock.functions("b", 14), "far": clock.functions("far", 16)}, seconds=9
    )
    assert [clock.order.count(name) for name in ("a", "b", "far")] == [6, 6, 3]


def test_a_first_call_under_load_drops_nothing(clock):
    """Short calls: within one time slice of another process all samples of a candidate may be slow."""
    disturbed = [3.0] * 5 + [1.0] * 95
    times = timing.fastest({"a": clock.functions("a", *disturbed), "b": clock.functions("b", 1.5)}, seconds=9)
    assert min(times, key=times.get) == "a"


@pytest.mark.parametrize(("waiting", "seconds"), [(0.3, 1.0), (0.6, 4.0)], ids=["alone", "beside-another-process"])
def test_a_busy_machine_gets_more_time(clock, waiting, seconds):
    clock.waiting = waiting
    never = clock.functions("a", *[10.0 + i for i in range(1000)])
    times = timing.fastest({"a": never}, seconds=1.0)
    assert seconds <= clock.now < seconds + 0.1 and times.load == pytest.approx(waiting)
    assert (times.load > timing.BUSY) == (seconds == 4.0)


def test_a_pool_with_more_threads_than_cores_is_no_load(clock, monkeypatch):
    clock.waiting = 2.1
    monkeypatch.setattr(timing, "_own_queue", lambda: 2)
    assert timing.fastest({"a": clock.functions("a", 10)}).load == pytest.approx(0.1)


def test_the_own_queue(monkeypatch):
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    for threads, queue in ((1, 0), (2, 0), (5, 3)):
        monkeypatch.setattr(timing.torch, "get_num_threads", lambda threads=threads: threads)
        assert timing._own_queue() == queue


def test_the_time_that_threads_wait_is_the_systems(tmp_path, monkeypatch):
    for thread, text in {"7": "1 2000000000 3", "8": "4 500000000 6"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text + "\n")
    (tmp_path / "9").mkdir()  # a thread that has ended
    monkeypatch.setattr(timing, "TASKS", tmp_path)
    assert timing.waited() == pytest.approx(2.5)
    monkeypatch.setattr(timing, "TASKS", tmp_path / "no such system")
    assert timing.waited() == 0.0
