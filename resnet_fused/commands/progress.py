"""Shows that a command is still at work: one line on a terminal, dots elsewhere."""

import sys
import time


class Progress:
    """`step(text)` says what is being done now. A context manager: at its end the line is cleared."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.start = self.last_dot = time.monotonic()
        self.shown = False

    def step(self, text):
        now = time.monotonic()
        if self.stream.isatty():
            self._write(f"\r\x1b[K{text}  ({now - self.start:.0f} s)")
        elif now - self.last_dot >= 1:
            self.last_dot = now
            self._write(".")

    def _write(self, text):
        self.shown = True
        self.stream.write(text)
        self.stream.flush()

    def clear(self):
        """Takes the line away, before something else is printed."""
        if self.shown:
            self._write("\r\x1b[K" if self.stream.isatty() else "\n")
            self.shown = False

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.clear()
