"""The device filter: its program, interpreted here, against what the rules say."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups import device_filter as bpf
from runtime.spec.values import DeviceRule

_BITS = {1: "m", 2: "r", 4: "w"}
_TYPES = {1: "b", 2: "c"}


def run(program: bytes, type_: int, access: int, major: int, minor: int) -> int:
    """Executes the program as the kernel would; every instruction not meant to be there is an error."""
    context = struct.pack("<III", access << 16 | type_, major, minor)
    registers: list[int | None] = [None, 0] + [None] * 9
    at = 0
    while True:
        code, regs, offset, number = struct.unpack_from("<BBhI", program, at * 8)
        target, source = regs & 15, regs >> 4
        at += 1
        if code == bpf.EXIT:
            verdict = registers[0]
            assert verdict is not None
            return verdict
        if code == bpf.LOAD_WORD:
            assert source == 1
            registers[target] = struct.unpack_from("<I", context, offset)[0]
            continue
        if code == bpf.MOVE_NUMBER:
            registers[target] = number
            continue
        if code == bpf.JUMP:
            at += offset
            continue
        value = registers[source if code == bpf.MOVE else target]
        assert value is not None, "read of a register that nothing wrote"
        match code:
            case bpf.MOVE:
                registers[target] = value
            case bpf.AND_NUMBER:
                registers[target] = value & number
            case bpf.SHIFT_RIGHT:
                registers[target] = value >> number
            case bpf.JUMP_UNLESS_EQUAL:
                at += offset if value != number else 0
            case bpf.JUMP_UNLESS_ANY_BIT:
                at += offset if value & number else 0
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def allowed(rules: Sequence[DeviceRule], type_: int, access: int, major: int, minor: int) -> bool:
    """What the rules say, bit by bit: the last that matches the device and names the bit decides."""

    def bit_allowed(letter: str) -> bool:
        for rule in reversed(rules):
            same_device = rule.type in ("a", _TYPES[type_])
            same_device &= rule.major in (None, major) and rule.minor in (None, minor)
            if same_device and letter in rule.access:
                return rule.allow
        return False

    return all(bit_allowed(letter) for bit, letter in _BITS.items() if access & bit)


_numbers = st.sampled_from([0, 1, 3, 2**32 - 1])
_rules = st.lists(
    st.builds(
        DeviceRule,
        st.booleans(),
        st.sampled_from("abc"),
        st.none() | _numbers,
        st.none() | _numbers,
        st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm", "mwr"]),
    ),
    max_size=8,
)


@given(_rules, st.sampled_from([1, 2]), st.integers(1, 7), _numbers, _numbers)
def test_the_program_decides_as_the_rules_say(
    rules: list[DeviceRule], type_: int, access: int, major: int, minor: int
) -> None:
    assert run(bpf.assemble(rules), type_, access, major, minor) == allowed(rules, type_, access, major, minor)


@given(_rules)
def test_every_instruction_can_be_reached(rules: list[DeviceRule]) -> None:
    """The verifier refuses a program with dead code or a jump out of it."""
    program = bpf.assemble(rules)
    count = len(program) // 8
    reached, todo = set(), [0]
    while todo:
        at = todo.pop()
        assert at < count
        if at in reached:
            continue
        reached.add(at)
        code, _, offset, _ = struct.unpack_from("<BBhI", program, at * 8)
        if code == bpf.EXIT:
            continue
        if code == bpf.JUMP or code in (bpf.JUMP_UNLESS_EQUAL, bpf.JUMP_UNLESS_ANY_BIT):
            todo.append(at + 1 + offset)
        if code != bpf.JUMP:
            todo.append(at + 1)
    assert reached == set(range(count))
