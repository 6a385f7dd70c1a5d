"""Reads what SELinux denied to a container: from the kernel's log, or from auditd's, which has it in the other's stead.

A pod has a level that no other pod has: what was denied to its label was denied to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pods.clues import kernel_log

DENIED: Final = "SELinux denied"
_AUDITD: Final = Path("/var/log/audit/audit.log")
_END_BYTES: Final = 1 << 16
_SLACK: Final = 1.0  # seconds: the kernel's records have a coarser clock
# What programs send to the log has other types. A file's name with a quote or a blank in it is in hexadecimal digits.
_DENIAL: Final = re.compile(
    r"^(?:audit: type=1400 |type=AVC msg=)audit\((?P<at>\d+\.\d+):\d+\): avc:  denied  \{ (?P<what>[a-z_ ]+) \} for "
    r"(?P<about>.*) scontext=(?P<who>\S+) tcontext=(?P<whom>\S+) tclass=(?P<kind>\w+) permissive=0\b"
)
_NAME: Final = re.compile(r' (?:name|path)="([^"]*)"')


def last(label: str, since: float, words: str) -> str:
    """Say what was denied last to the processes with this label, of a file that `words` name; "" if no log tells.

    `since` is a time of the epoch.
    """
    return told_by(kernel_log.texts(kernel_log.records()), label, since, words) or told_by(
        _auditd(), label, since, words
    )


def told_by(lines: Iterable[str], label: str, since: float, words: str) -> str:
    """Say the same from the lines of a log."""
    found = [
        denial
        for line in lines
        if label in line
        and (denial := _DENIAL.search(line)) is not None
        and label in (denial["who"], denial["whom"])
        and float(denial["at"]) >= since - _SLACK
        and (denial["kind"] == "process" or _names(denial, words))
    ]
    if not found:
        return ""
    *_earlier, denial = found
    name = _NAME.search(denial["about"])
    what = f" (`{name[1]}`)" if name else ""
    return f"{DENIED} `{denial['what']}` of a {denial['kind']}{what} labelled {denial['whom']} to {denial['who']}"


def _names(denial: re.Match[str], words: str) -> bool:
    name = _NAME.search(denial["about"])
    return name is not None and os.path.basename(name[1]) in words


def _auditd(log: Path = _AUDITD) -> Iterator[str]:
    """Yield the last lines of auditd's log, if there is one that may be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            content = file.read()
    except OSError:
        return
    yield from content.decode(errors="replace").splitlines()
