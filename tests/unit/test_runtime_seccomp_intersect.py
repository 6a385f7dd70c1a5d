"""Two filters as one: never laxer than either, for any pair of profiles and any call."""

from __future__ import annotations

import ctypes
import os
import random
from itertools import pairwise

import pytest

from runtime.errors import SpecError
from runtime.seccomp.compile import ACTIONS, compile_filter
from runtime.seccomp.intersect import intersect
from runtime.seccomp.load import load_filter
from runtime.spec.values import Seccomp, SeccompArg, SeccompRule
from tests.bpf import answer, call

# Strictest first (seccomp(2), "SECCOMP_RET"); only one of the two kills of a thread is a name of its own.
STRICTNESS = [
    ACTIONS[f"SCMP_ACT_{name}"]
    for name in ("KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "NOTIFY", "TRACE", "LOG", "ALLOW")
]
CALLS = {"read": 0, "write": 1, "mmap": 9, "ioctl": 16, "socket": 41, "clone": 56, "personality": 135, "prctl": 157}
OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
VALUES = (0, 1, 2, 7, 40, 0xFFFFFFFF, 1 << 32, (1 << 32) + 7, 2**64 - 1)
PROFILES, PAIRS, CALLS_A_PAIR = 300, 2_500, 40


def _profile(dice: random.Random) -> Seccomp:
    def action() -> str:
        return f"SCMP_ACT_{dice.choice(['KILL_PROCESS', 'KILL_THREAD', 'TRAP', 'ERRNO', 'TRACE', 'LOG', 'ALLOW'])}"

    rules = []
    for name in dice.sample(sorted(CALLS), dice.randrange(len(CALLS))):
        args = [
            SeccompArg(index, dice.choice(VALUES), f"SCMP_CMP_{dice.choice(OPERATORS)}", dice.choice(VALUES))
            for index in dice.sample(range(4), dice.choice((0, 0, 1, 1, 2)))
        ]
        rules.append(SeccompRule((name,), action(), dice.choice((None, 1, 38, 95)), tuple(args)))
    return Seccomp(action(), dice.choice((None, 1, 38)), syscalls=tuple(rules))


def _strictness(returned: int) -> int:
    return STRICTNESS.index(returned & 0xFFFF0000)


def test_the_result_is_the_stricter_of_both_for_100000_pairs_and_calls() -> None:
    dice = random.Random(1370)
    programs = [compile_filter(_profile(dice)) for _ in range(PROFILES)]
    for _ in range(PAIRS):
        first, second = dice.choice(programs), dice.choice(programs)
        both = intersect(first, second)
        for _ in range(CALLS_A_PAIR):
            number = dice.choice((*CALLS.values(), *CALLS.values(), 0x40000001, 999))
            data = call(number, [dice.choice(VALUES) for _ in range(4)], dice.choice((0xC000003E,) * 9 + (0x40000003,)))
            one, other = answer(first, data), answer(second, data)
            assert answer(both, data) == (other if _strictness(other) < _strictness(one) else one)


def test_every_pair_of_answers_is_ordered_as_the_kernel_does() -> None:
    def returning(value: int) -> bytes:
        return b"\x06\0\0\0" + value.to_bytes(4, "little")

    for strict, lax in pairwise(STRICTNESS):
        for pair in ((strict | 5, lax | 6), (lax | 6, strict | 5)):
            assert answer(intersect(*map(returning, pair)), call(0)) == strict | 5
    assert answer(intersect(returning(0x50001), returning(0x50026)), call(0)) == 0x50001


def test_the_kernel_takes_it() -> None:
    """In a child: what either forbids fails with that one's answer, and what both allow works."""

    def profile(name: str, number: int) -> bytes:
        return compile_filter(
            Seccomp("SCMP_ACT_ALLOW", None, syscalls=(SeccompRule((name,), "SCMP_ACT_ERRNO", number),))
        )

    program = intersect(profile("getpriority", 71), profile("sched_yield", 72))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            load_filter(program, 0)
            failures = []
            for name in ("getpriority", "sched_yield"):
                assert getattr(libc, name)(0, 0) == -1
                failures.append(ctypes.get_errno())
            status = 0 if failures == [71, 72] and os.getppid() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_too_large_together_or_no_filter_is_refused() -> None:
    large = b"\x20\0\0\0\0\0\0\0" * 2500 + b"\x06\0\0\0\0\0\xff\x7f"
    with pytest.raises(SpecError, match=r"has 50\d\d instructions with its base; the kernel takes 4096"):
        intersect(large, large)
    with pytest.raises(SpecError, match="not a BPF program"):
        intersect(b"", large)
    with pytest.raises(SpecError, match="computed return values"):
        intersect(b"\x16\0\0\0\0\0\0\0", large)
