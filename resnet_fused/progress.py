"""Shows that something longer than two seconds is still at work: one line on a terminal, dots elsewhere."""

import sys
import time


class Progress:
    """`step(text)` announces the next piece of work. A context manager: at its end the line is cleared."""

    def __init__(self, total, stream=None):
        self.total, self.stream = total, stream or sys.stderr
        self.done, self.start, self.dots = 0, time.monotonic(), 0

    def step(self, text):
        self.done += 1
        if self.stream.isatty():
            elapsed = time.monotonic() - self.start
            self.stream.write(f"\r\x1b[K[{self.done}/{self.total}] {text}  ({elapsed:.0f} s)")
        else:
            self.stream.write(".")
            self.dots += 1
        self.stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.dots:
            self.stream.write("\n")
        elif self.done:
            self.stream.write("\r\x1b[K")
        self.stream.flush()
