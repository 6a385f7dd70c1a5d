"""Intersects two seccomp filters: builds one program that returns the stricter answer of both (seccomp(2)).

The kernel does the same for two filters loaded in turn, but the first may forbid loading the second.
"""

from __future__ import annotations

import struct

from runtime.errors import SpecError

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_RETURN, _RETURN_ACCUMULATOR, _JUMP = 0x06, 0x16, 0x05
_LOAD_CONSTANT, _LOAD_CELL, _STORE_CELL = 0x00, 0x60, 0x02
_AND, _ADD, _JUMP_IF_GREATER = 0x54, 0x04, 0x25
_CELL = 15  # the last of 16 scratch cells; libseccomp uses the first ones
_ACTION_BITS = 0xFFFF0000
_SIGN = (
    0x80000000  # actions are ordered as signed numbers, and BPF compares unsigned: add this first
)
_MOST = 4096  # instructions, BPF_MAXINSNS

Instruction = tuple[int, int, int, int]


def intersect(first: bytes, second: bytes) -> bytes:
    """Build a program that runs both and returns the stricter answer, `first`'s if they are equally strict.

    The kernel's order is: kill process, kill thread, trap, errno, notify, trace, log, allow. Raises `SpecError` if both
    together are larger than the kernel allows, or for a filter that libseccomp would not write.
    """
    program = [*_without_returns(_decode(first), _remember), *_without_returns(_decode(second), _choose)]
    if len(program) > _MOST:
        raise SpecError("linux.seccomp", f"has {len(program)} instructions with its base; the kernel takes {_MOST}")
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _decode(program: bytes) -> list[Instruction]:
    if not program or len(program) % _INSTRUCTION.size:
        raise SpecError("linux.seccomp", f"a filter of {len(program)} bytes is not a BPF program")
    found = list(_INSTRUCTION.iter_unpack(program))
    for code, _, _, constant in found:
        if code == _RETURN_ACCUMULATOR or (code in (_LOAD_CELL, _STORE_CELL) and constant == _CELL):
            raise SpecError("linux.seccomp", "a filter with computed return values cannot be intersected")
    return found


def _without_returns(program: list[Instruction], ending: _Ending) -> Iterator[Instruction]:
    """Replace each return by a jump to an ending behind the program, which `ending` builds for each answer.

    No instruction moves, so the program's own jumps, which are relative and mostly 8 bits wide, stay valid.
    """
    answers = list(dict.fromkeys(constant for code, _, _, constant in program if code == _RETURN))
    endings: list[Instruction] = []
    places: dict[int, int] = {}
    for index, answer in enumerate(answers):
        places[answer] = len(program) + len(endings)
        endings += ending(answer, len(answers) - 1 - index)
    for place, (code, true, false, constant) in enumerate(program):
        if code == _RETURN:
            yield _JUMP, 0, 0, places[constant] - place - 1
        else:
            yield code, true, false, constant
    yield from endings


def _remember(answer: int, behind: int) -> list[Instruction]:
    """Store the first program's answer and jump to the second program, behind the remaining endings."""
    return [(_LOAD_CONSTANT, 0, 0, answer), (_STORE_CELL, 0, 0, _CELL), (_JUMP, 0, 0, 3 * behind)]


def _choose(answer: int, _behind: int) -> list[Instruction]:
    """Return the stricter one of the second program's answer and the stored one."""
    return [
        (_LOAD_CELL, 0, 0, _CELL),
        (_AND, 0, 0, _ACTION_BITS),
        (_ADD, 0, 0, _SIGN),
        (_JUMP_IF_GREATER, 2, 0, ((answer & _ACTION_BITS) + _SIGN) & 0xFFFFFFFF),
        (_LOAD_CELL, 0, 0, _CELL),
        (_RETURN_ACCUMULATOR, 0, 0, 0),
        (_RETURN, 0, 0, answer),
    ]


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Ending = Callable[[int, int], list[Instruction]]
