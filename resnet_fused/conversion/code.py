"""What the code of a forward names: attributes, globals, closures, of itself and of the Python functions that it may call.

Nothing runs here. The sets may hold too much (a name that is never reached), and too little only where names are computed.
"""

import dis
import functools
import itertools
import sys
import types

from torch import nn

GONE = object()  # in place of what is not there
# Functions of these packages are not read: they keep nothing of a forward, or a trace sees them call torch.
_NOT_READ = {"torch", "numpy", "resnet_fused", *sys.stdlib_module_names}
_CALLED = frozenset(("__init__", "__call__", "__enter__", "__exit__"))
_BY_NAME = frozenset(("getattr", "setattr", "vars", "__dict__"))


class Code:
    """The code behind `origin.forward`.

    variables: {(id of the owner, name): (owner, namespace, name, value)} of the globals, functions of modules, methods and
    class attributes that the code names. cells: {id: (variable of an enclosing function, its value)}.
    """

    def __init__(self, origin):
        self.variables, self.cells = {}, {}
        self._attributes, self._read = {"forward"}, {}
        self._classes = [cls for cls in origin.__mro__ if not foreign(cls.__module__)]
        self._spaces = {id(owner): owner for owner in self._classes}  # whose members are named as attributes
        self.follow()

    def names(self, attribute):
        """Whether the code may read an attribute of that name."""
        return attribute in self._attributes or not self._attributes.isdisjoint(_BY_NAME)

    def follow(self):
        """Reads functions until no name leads to another one."""
        size = None
        while size != (size := (len(self._read), len(self._attributes), len(self._spaces))):
            for owner in list(self._spaces.values()):
                for name in self._attributes & vars(owner).keys():
                    self._see(owner, vars(owner), name)
        own = self._attributes & set(itertools.chain.from_iterable(map(vars, self._classes)))
        for cls, name in itertools.product(self._classes, own):  # a class may get a method that it inherits today
            self._see(cls, vars(cls), name)

    def add_object(self, value):
        """Reads the methods of a helper object too. Returns whether its class was new."""
        known = len(self._spaces)
        for cls in type(value).__mro__:
            if not foreign(cls.__module__) and not issubclass(cls, nn.Module):
                self._spaces.setdefault(id(cls), cls)
                self._attributes |= _CALLED
        return len(self._spaces) > known

    def _see(self, owner, namespace, name):
        value = namespace.get(name, GONE)
        self.variables[id(owner), name] = owner, namespace, name, value
        self._follow(value)

    def _follow(self, value):
        """Reads the functions that a use of `value` may run."""
        if isinstance(value, functools.partial):
            value = value.func
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            value = value.__func__
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in sys.stdlib_module_names:
                self._spaces.setdefault(id(value), value)
        elif isinstance(value, type):
            if not foreign(value.__module__) and not issubclass(value, nn.Module):
                self._spaces.setdefault(id(value), value)
                self._attributes |= _CALLED
        elif isinstance(value, types.FunctionType) and id(value) not in self._read:
            self._read[id(value)] = value
            for cell in value.__closure__ or ():
                self.cells[id(cell)] = cell, contents(cell)
                self._follow(contents(cell))
            if not foreign(value.__globals__.get("__name__")):
                attributes, variables = _names_in(value.__code__)
                self._attributes |= attributes
                for name in variables & value.__globals__.keys():
                    self._see(value.__globals__, value.__globals__, name)


def contents(cell):
    """What is in a variable of an enclosing function."""
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return GONE


def foreign(module_name):
    """Whether the code of a module is not read."""
    return str(module_name).partition(".")[0] in _NOT_READ


def _names_in(code):
    """(names of attributes, names of globals) in `code` and in the code of functions inside it."""
    variables = {i.argval for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "_NAME"))}
    attributes = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more, others = _names_in(constant)
            attributes |= more
            variables |= others
        else:
            words = constant if isinstance(constant, tuple) else (constant,)
            attributes.update(word for word in words if isinstance(word, str) and word.isidentifier())
    return attributes, variables
