"""What a forward changes besides the tensors of its module.

A program repeats neither a counter nor a printed line, so a forward that leaves such a trace is not converted. What it
changed while it was traced is put back.
"""

import contextlib
import logging
import sys
import threading
import types
import warnings
from collections import deque

import torch
from torch import nn

from .code import GONE, contents

_CONTAINERS = (dict, list, set, deque)


class NotTraceable(Exception):
    """Why a module's forward has no graph; the message continues "its forward ..."."""


class Outside:
    """What `code` may reach from `module`, from globals and from closures, as it is when this is made."""

    def __init__(self, module, code):
        self._code, grown = code, True
        while grown:  # helper objects have methods, which name more
            self._seen, self._kept, self._grown = {}, [], False
            self._visit(module, "")
            for _, value in list(code.cells.values()):
                self._visit(value, "of an enclosing function")
            for _, _, name, value in list(code.variables.values()):
                self._visit(value, f"global {name}")
            code.follow()
            grown = self._grown

    def _visit(self, value, where):
        """Keeps a copy of every container that can be reached from `value`."""
        if id(value) in self._seen or isinstance(value, (torch.Tensor, type, types.ModuleType, types.FunctionType)):
            return
        self._seen[id(value)] = value
        if isinstance(value, (tuple, *_CONTAINERS)):
            if not isinstance(value, tuple):
                self._kept.append((value, value.copy(), where))
            for item in list(value.values() if isinstance(value, dict) else value):
                self._visit(item, where)
        elif isinstance(state := getattr(value, "__dict__", None), dict):
            self._grown |= self._code.add_object(value)
            self._kept.append((state, state.copy(), where))
            for name, item in list(state.items()):
                if isinstance(value, nn.Module) and name == "_modules":
                    for child, module in list(item.items()):
                        self._visit(module, f"{where}.{child}".strip("."))
                if isinstance(value, nn.Module) or self._code.names(name):
                    self._visit(item, f"{where}.{name}".strip("."))

    def restore(self):
        """Puts back what has changed since. Returns the name of one such thing, or None."""
        changed = None
        for cell, value in self._code.cells.values():
            if contents(cell) is not value:
                cell.cell_contents, changed = value, "a variable of an enclosing function"
        for owner, namespace, name, value in self._code.variables.values():
            if (now := namespace.get(name, GONE)) is not value:
                changed = f"global {name}"
                if isinstance(namespace, dict):
                    namespace[name] = value
                elif value is not GONE:
                    setattr(owner, name, value)
                elif now is not GONE:
                    delattr(owner, name)
        for container, copied, where in self._kept:
            if (name := difference(container, copied)) is not None:
                changed = f"{where}.{name}".strip(".")
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(copied)
        return changed


def difference(container, copied):
    """The name of an entry that two containers do not share, "" where entries have no names, None where they share all."""
    now, then = ([*c, *(c.values() if isinstance(c, dict) else ())] for c in (container, copied))
    if len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True)):
        return None
    if not isinstance(container, dict):
        return ""
    return str(next((k for k in [*container, *copied] if container.get(k, GONE) is not copied.get(k, GONE)), ""))


class _Refuses:
    """A stream that raises NotTraceable in the thread that made it. Other threads write to `stream`."""

    def __init__(self, stream):
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text):
        if threading.get_ident() == self._thread:
            raise NotTraceable("prints")
        return self._stream.write(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def nothing_printed():
    """Context manager: what prints or logs in it, except torch, raises NotTraceable; warnings are ignored."""
    enabled, thread = logging.Logger.isEnabledFor, threading.get_ident()

    def refuse(logger, level):
        if threading.get_ident() == thread and logger.name.partition(".")[0] != "torch":
            raise NotTraceable(f"logs to {logger.name}")
        return enabled(logger, level)

    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Refuses(sys.stdout)),
        contextlib.redirect_stderr(_Refuses(sys.stderr)),
    ):
        warnings.simplefilter("ignore")
        logging.Logger.isEnabledFor = refuse
        try:
            yield
        finally:
            logging.Logger.isEnabledFor = enabled
