"""crisp-oci's command line, apart from containers."""

from __future__ import annotations

import pytest

from runtime.command.flags import Flag, UsageError, parse
from runtime.command.verbs.update import _amount, with_partners

_FLAGS = (Flag("force", short="f"), Flag("memory", argument="N"), Flag("env", short="e", argument="E", repeated=True))


@pytest.mark.trial("flags-after-the-id", "flags are taken after the container's id, but not among a program's own")
def test_flags_among_arguments() -> None:
    options, rest = parse(_FLAGS, ["one", "--force", "two", "-memory", "5", "--", "--env", "-f"], mixed=True)
    assert (options.switch("force"), options.number("memory"), rest) == (True, 5, ["one", "two", "--env", "-f"])
    options, rest = parse(_FLAGS, ["-e", "A", "one", "-e", "B"])
    assert (options.texts("env"), rest) == (["A"], ["one", "-e", "B"])
    assert parse(_FLAGS, ["-", "--force"], mixed=True)[1] == ["-"]
    for wrong in (["one", "--nosuch"], ["one", "--memory"]):
        with pytest.raises(UsageError):
            parse(_FLAGS, wrong, mixed=True)


@pytest.mark.trial("update-one-limit", "update of one limit alone goes by the others that are there")
def test_a_limit_alone_goes_with_its_partner() -> None:
    there = {"memory": {"limit": 32, "swap": 64, "checkBeforeUpdate": True}, "cpu": {"shares": 5, "idle": 1}}
    for given, whole in (
        ({"memory": {"swap": 70}}, {"memory": {"swap": 70, "limit": 32}}),
        ({"memory": {"limit": 40}}, {"memory": {"limit": 40, "swap": 64, "checkBeforeUpdate": True}}),
        ({"memory": {"limit": -1}}, {"memory": {"limit": -1}}),
        ({"memory": {"limit": 1, "swap": 2}}, {"memory": {"limit": 1, "swap": 2, "checkBeforeUpdate": True}}),
        ({"cpu": {"idle": 0}}, {"cpu": {"idle": 0, "shares": 5}}),
        ({"cpu": {"shares": 9}}, {"cpu": {"shares": 9, "idle": 1}}),
        ({"cpu": {"quota": 9}, "pids": {"limit": 1}}, {"cpu": {"quota": 9}, "pids": {"limit": 1}}),
    ):
        assert with_partners(given, there) == whole
        assert with_partners(given, {}) == given


@pytest.mark.trial("update-one-limit", "update of one limit alone goes by the others that are there")
def test_amounts_of_memory() -> None:
    words = {"64m": 64 << 20, "64MB": 64 << 20, "64 MiB": 64 << 20, "1.5g": 3 << 29, "7": 7, "7b": 7, "-1": -1, "0": 0}
    assert {text: _amount("memory-swap", text) for text in words} == words
    for name, wrong in (("memory", "much"), ("memory", ""), ("cpu-quota", "5m"), ("cpu-quota", "1.5")):
        with pytest.raises(UsageError):
            _amount(name, wrong)
