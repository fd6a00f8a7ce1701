"""Which programs are exactly a residual block, so that the training op of a block can run them. Names alone decide, once."""

from typing import NamedTuple

from .program import Call, Chain, Ref


class ResidualBlock(NamedTuple):
    """relu(norm(conv(... relu(norm(conv(x))) ...)) + shortcut(x)).

    main: (path of the convolution, path of the norm) in order. projection: the two paths of the shortcut; None: x itself.
    between: paths of modules that are called between them; at a call, the program is a block only if none of these modules
    computes anything.
    """

    main: tuple
    projection: tuple | None
    between: tuple


def residual_block(program):
    """The ResidualBlock that `program` is, or None."""
    if program is None or program.output != Ref(len(program.steps)) or type(program.steps[-1]) is not Chain:
        return None
    end = program.steps[-1]
    if end.conv is None or end.residual is None or not end.relu:
        return None
    between, projection, last = [], None, end
    shortcut = _passed(program, end.residual, between)
    if shortcut != Ref(0):
        step = program.steps[shortcut.index - 1]
        if not _plain(step) or step.relu:
            return None
        # The sum may have been fused with either branch.
        projection, last = (step, end) if step.x == Ref(0) else (end, step)
        if projection.x != Ref(0):
            return None
    main = [last]
    while (at := _passed(program, main[-1].x, between)) != Ref(0):
        step = program.steps[at.index - 1]
        if not _plain(step) or not step.relu:
            return None
        main.append(step)
    if len(main) + len(between) + (projection is not None) != len(program.steps):
        return None  # something else is computed too
    names = [(step.conv, step.norm) for step in reversed(main)]
    return ResidualBlock(tuple(names), projection and (projection.conv, projection.norm), tuple(between))


def _plain(step):
    return type(step) is Chain and step.conv is not None and step.residual is None


def _passed(program, ref, between):
    """The value that `ref` is equal to if the modules it comes from compute nothing; appends their paths to `between`."""
    while ref.index > 0 and type(step := program.steps[ref.index - 1]) is Call:
        if [type(a) for a in step.args[1]] != [Ref] or step.kwargs[1]:
            break
        between.append(step.path)
        ref = step.args[1][0]
    return ref
