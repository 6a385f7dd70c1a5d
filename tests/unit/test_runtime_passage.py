"""The calls that a process of crisp's may make under its container's filter."""

from __future__ import annotations

import os
import struct

import pytest

from runtime.seccomp.compile import compile_filter
from runtime.seccomp.passage import _NUMBERS, Passage
from runtime.spec.values import Seccomp, SeccompRule
from tests.bpf import answer, call

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="tests/bpf.py knows this machine's calls")
ALLOW, REFUSED, WORD = 0x7FFF0000, 0x00050026, 0x1234567890ABCDEF
LISTED = _NUMBERS["x86_64"]
FILTER = compile_filter(Seccomp("SCMP_ACT_ERRNO", 38, syscalls=(SeccompRule(("getpid", "read"), "SCMP_ACT_ALLOW"),)))


def test_the_calls_pass_by_their_word_and_by_nothing_else() -> None:
    program = Passage(WORD).before(FILTER)
    for number in range(500):
        own = answer(FILTER, call(number))
        for sixth in (0, WORD ^ 1, WORD ^ 1 << 32, WORD):
            passes = number in LISTED and sixth == WORD
            assert answer(program, call(number, [0, 0, 0, 0, 0, sixth])) == (ALLOW if passes else own)
    other = call(LISTED[0], [0, 0, 0, 0, 0, WORD], 0x40000003)
    assert answer(program, other) == answer(FILTER, other) != ALLOW


def test_of_other_calls_no_argument_is_looked_at() -> None:
    """So that the kernel need not run the filter for those that it allows by their numbers (SECCOMP_CACHE)."""
    program = Passage(WORD).before(FILTER)
    number_and_architecture = 8
    for number in set(range(500)) - set(LISTED):
        with_no_arguments = call(number)[:number_and_architecture]
        assert answer(program, with_no_arguments) in (ALLOW, REFUSED)
    with pytest.raises(struct.error):
        answer(program, call(LISTED[0])[:number_and_architecture])
