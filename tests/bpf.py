"""Runs seccomp filters in Python: classic BPF over struct seccomp_data, as seccomp(2) does it in the kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_INSTRUCTION = struct.Struct("=HBBI")
_WORD = 0xFFFFFFFF


def call(number: int, arguments: Sequence[int] = (), architecture: int = 0xC000003E) -> bytes:
    """The struct seccomp_data of a system call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    return struct.pack("=iIQ6Q", number, architecture, 0, *padded)


def answer(program: bytes, data: bytes) -> int:
    """What the filter returns. Raises ValueError for an instruction that seccomp does not take."""
    instructions = list(_INSTRUCTION.iter_unpack(program))
    place = accumulator = 0
    cells = [0] * 16
    while True:
        code, true, false, constant = instructions[place]
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, constant)
            case 0x00:
                accumulator = constant
            case 0x60:
                accumulator = cells[constant]
            case 0x02:
                cells[constant] = accumulator
            case 0x54:
                accumulator &= constant
            case 0x04:
                accumulator = (accumulator + constant) & _WORD
            case 0x05:
                place += constant
            case 0x15:
                place += true if accumulator == constant else false
            case 0x25:
                place += true if accumulator > constant else false
            case 0x35:
                place += true if accumulator >= constant else false
            case 0x45:
                place += true if accumulator & constant else false
            case 0x06:
                return constant
            case 0x16:
                return accumulator
            case _:
                raise ValueError(f"BPF instruction {code:#x}")
