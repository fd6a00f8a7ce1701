"""The rooms of csrc/: its README names each of them and what it may include."""

import re
from pathlib import Path

import pytest

CSRC = next(path for path in Path(__file__).resolve().parents if (path / "csrc").is_dir()) / "csrc"
ROW = re.compile(r"^\| `([\w/]+)/` \|.*\|([^|]*)\|$", re.MULTILINE)
ALLOWED = {room: re.findall(r"`([\w/]+)`", column) for room, column in ROW.findall((CSRC / "README.md").read_text())}
OUTSIDE = ("build_info.h", "emulator/")  # written by the build; in tests/


def room_of(file):
    return max((room for room in ALLOWED if file.startswith(f"{room}/")), key=len, default=None)


def includes(path):
    return re.findall(r'^#include "(\S+)"', path.read_text(), re.MULTILINE)


def test_the_check_sees_rooms_and_includes():
    assert room_of("cpu/winograd/isa/gemm.h") == "cpu/winograd" and room_of("ops.h") is None
    assert "cpu/base/dot_bf16.h" in includes(CSRC / "cpu/winograd/isa/gemm.h")
    assert all(any(one.startswith(room) for one in ALLOWED) for rooms in ALLOWED.values() for room in rooms)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_includes_what_it_may(room):
    files = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cuh", ".cu")]
    mine = [path for path in files if room_of(str(path.relative_to(CSRC))) == room]
    assert mine
    for path in mine:
        for name in includes(path):
            if name.startswith(OUTSIDE):
                continue
            assert (CSRC / name).is_file(), f"{path.name} includes {name}, which is no file of csrc/"
            allowed = (
                name == "ops.h" or room_of(name) == room or name.startswith(tuple(f"{one}/" for one in ALLOWED[room]))
            )
            assert allowed, f"{room}/{path.name} includes {name}"


def test_every_file_is_in_a_room():
    alone = {str(path.relative_to(CSRC)) for path in CSRC.rglob("*") if path.is_file()}
    assert {file for file in alone if room_of(file) is None} == {"ops.h", "README.md"}
