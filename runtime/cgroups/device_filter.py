"""Filters device access on cgroup v2: compiles device rules to eBPF and attaches it (cgroup-v2.rst "Device").

An access is allowed if each of its bits (read, write, mknod) is allowed. For each bit the last rule that matches the
device and names the bit decides. If there is none, the bit is denied.
"""

from __future__ import annotations

import ctypes
import os
import struct

from linux import syscalls
from runtime.errors import failing
from runtime.spec.values import DeviceRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# linux/bpf.h: BPF_DEVCG_ACC_*, BPF_DEVCG_DEV_*
ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
TYPE_NUMBERS = {"b": 1, "c": 2}
_EVERY_ACCESS = 7

# linux/bpf.h, linux/bpf_common.h: the instructions that the programs use.
LOAD_WORD = 0x61  # dst = *(u32 *)(src + off)
MOVE = 0xBC  # dst = (u32) src
MOVE_NUMBER = 0xB7  # dst = imm
AND_NUMBER = 0x54  # dst = (u32) dst & imm
SHIFT_RIGHT = 0x74  # dst = (u32) dst >> imm
JUMP_UNLESS_EQUAL = 0x56  # if (u32) dst != imm, skip off
JUMP_UNLESS_ANY_BIT = 0x46  # if (u32) dst & imm, skip off
JUMP = 0x05
EXIT = 0x95

_VERDICT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = range(6)  # registers r0 to r5

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6  # enum bpf_attach_type
_ALLOW_MULTI = 2  # programs of parents and children filter too
_MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """Compile the rules to a program, an array of struct bpf_insn."""
    code = [
        _instruction(LOAD_WORD, _TYPE, _CONTEXT, 0),
        _instruction(MOVE, _ACCESS, _TYPE),
        _instruction(AND_NUMBER, _TYPE, number=0xFFFF),
        _instruction(SHIFT_RIGHT, _ACCESS, number=16),
        _instruction(LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _instruction(LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in reversed(rules):
        conditions = _conditions(rule)
        access = _access(rule)
        code += _rule(conditions, access, rule.allow)
        if not conditions and access == _EVERY_ACCESS:
            return b"".join(code)  # the verifier refuses unreachable instructions
    return b"".join([*code, *_verdict(False)])


def _rule(conditions: list[tuple[int, int]], access: int, allow: bool) -> list[bytes]:
    """Return the instructions of one rule: conditions that jump past the verdict unless they hold, and the verdict."""
    verdict = _verdict(allow)
    if access != _EVERY_ACCESS:
        if allow:
            # Bits that this rule allows are done: clear them. Allow when no bit is left.
            rest = _instruction(AND_NUMBER, _ACCESS, number=_EVERY_ACCESS & ~access)
            verdict = [rest, _instruction(JUMP_UNLESS_EQUAL, _ACCESS, offset=len(verdict)), *verdict]
        else:
            touched = _instruction(JUMP_UNLESS_ANY_BIT, _ACCESS, offset=1, number=access)
            verdict = [touched, _instruction(JUMP, offset=len(verdict)), *verdict]
    code = list(verdict)
    for register, number in reversed(conditions):
        code.insert(0, _instruction(JUMP_UNLESS_EQUAL, register, offset=len(code), number=number))
    return code


def _conditions(rule: DeviceRule) -> list[tuple[int, int]]:
    conditions = []
    if rule.type != "a":
        conditions.append((_TYPE, TYPE_NUMBERS[rule.type]))
    if rule.major is not None:
        conditions.append((_MAJOR, rule.major))
    if rule.minor is not None:
        conditions.append((_MINOR, rule.minor))
    return conditions


def _access(rule: DeviceRule) -> int:
    return sum(ACCESS_BITS[letter] for letter in set(rule.access))


def _verdict(allow: bool) -> list[bytes]:
    return [_instruction(MOVE_NUMBER, _VERDICT, number=int(allow)), _instruction(EXIT)]


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack("<BBhI", code, source << 4 | target, offset, number)


def replace(cgroup: int, rules: Sequence[DeviceRule]) -> None:
    """Replace the device filter of the version 2 cgroup open at `cgroup`.

    The new program is attached before the old one is detached, so there is always a filter. Raises `OperationFailed`,
    and `NotSupported` on an architecture whose bpf(2) number is not known.
    """
    old = attached(cgroup)
    program = _load(assemble(rules))
    try:
        _attach(_PROG_ATTACH, cgroup, program, _ALLOW_MULTI)
    finally:
        os.close(program)
    for number in old:
        previous = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), "open", "device filter")
        try:
            _attach(_PROG_DETACH, cgroup, previous, 0)
        finally:
            os.close(previous)


def attached(cgroup: int) -> list[int]:
    """Return the ids of the device programs attached to the cgroup itself, not to its parents. Raises as `replace`."""
    numbers = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    # target_fd, attach_type, query_flags, attach_flags (out), prog_ids, prog_cnt (in, out), padding
    query = struct.pack("=IIIIQII", cgroup, _CGROUP_DEVICE, 0, 0, ctypes.addressof(numbers), _MOST_PROGRAMS, 0)
    answer = ctypes.create_string_buffer(query, len(query))
    _bpf(_PROG_QUERY, answer, "query", "device filters")
    count = struct.unpack("=IIIIQII", answer.raw)[5]
    return list(numbers[:count])


def _load(program: bytes) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"Apache-2.0")
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name
    load = struct.pack(
        "=IIQQIIQII16s",
        _PROG_TYPE_CGROUP_DEVICE, len(program) // 8, ctypes.addressof(code), ctypes.addressof(license_),
        0, 0, 0, 0, 0, b"crisp_devices",
    )  # fmt: skip
    return _bpf(_PROG_LOAD, load, "load", "device filter")


def _attach(command: int, cgroup: int, program: int, flags: int) -> None:
    verb = "attach" if command == _PROG_ATTACH else "detach"
    _bpf(command, struct.pack("=IIII", cgroup, program, _CGROUP_DEVICE, flags), verb, "device filter")


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char], verb: str, object: str) -> int:
    if isinstance(attributes, bytes):
        attributes = ctypes.create_string_buffer(attributes, len(attributes))
    with failing(verb, object):
        return syscalls.bpf(command, attributes)
