"""Reads from the kernel's log which processes of a container were killed for lack of memory, and by which limit.

A cgroup only counts its kills. The log may be closed to crispd (CAP_SYSLOG), and the kernel overwrites old lines.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Final

from pods.clues.ports import first_known, ids_of

NODE_FULL: Final = "the node's memory was full"
_LOG: Final = Path("/dev/kmsg")
_DEVICE: Final = os.makedev(1, 11)
_LONGEST: Final = 8192  # bytes of a record: more than the kernel makes
_SECONDS: Final = 0.5
_SLACK: Final = 2_000_000_000  # nanoseconds: the log's clock is not corrected as the others are
_NAMES: Final = 5  # of killed processes that are told
_KERNELS: Final = 8  # a record's first number is less: whoever writes to the log has another facility than the kernel
_GROUP: Final = "task_memcg="  # a cgroup's name may have it, too
# mm/oom_kill.c, dump_oom_summary. A program may give its process any name, but none with a container's id in it.
_KILL: Final = re.compile(
    r"oom-kill:constraint=(?P<why>\w+),.*?(?:oom_memcg=(?P<limited>[^,]*)|global_oom),task_memcg=(?P<group>[^,]*),"
    r"task=(?P<name>.*),pid=\d+,uid=\d+$"
)


def killed(container_id: str, known: Container[str], since: int = 0, log: Path = _LOG) -> str:
    """Say which processes of the container the kernel killed; "" if its log does not tell.

    `known` are the ids of all containers. `since` is a time of CLOCK_MONOTONIC in nanoseconds: earlier kills do not
    count.
    """
    return told_by(records(log), container_id, known, since)


def told_by(records: Iterable[bytes], container_id: str, known: Container[str], since: int = 0) -> str:
    """Say the same from the log's records (Documentation/ABI/testing/dev-kmsg)."""
    kills = [found for record in records if (found := _kill(record, container_id, since)) is not None]
    kills = [one for one in kills if first_known(ids_of(one["group"]), known) == container_id]
    if not kills:
        return ""
    names = list(dict.fromkeys(found["name"] for found in kills))[-_NAMES:]
    what = ", ".join(f"'{name}'" for name in names)
    reached = kills[-1]["limited"]
    if reached is None:
        limit = NODE_FULL
    elif container_id in reached.rpartition("/")[2]:
        limit = "the container's limit was reached"
    elif reached == kills[-1]["group"].rpartition("/")[0]:
        limit = "the limit of its pod was reached"
    else:
        limit = f"the limit of the cgroup {reached!r} was reached"
    return f"the kernel killed {what}: {limit}"


def _kill(record: bytes, container_id: str, since: int) -> re.Match[str] | None:
    """Return what a record tells of a process that was killed in the container; None for another record."""
    if container_id.encode() not in record:
        return None
    head, text = _parts(record)
    found = _KILL.search(text)
    if found is None or text.count(_GROUP) > 1 or not _is_kernels(head):
        return None
    return found if int(head.split(",")[2]) * 1000 >= since - _SLACK else None


def texts(records: Iterable[bytes]) -> Iterator[str]:
    """Yield what the kernel itself said: others may write to its log, too."""
    for head, text in map(_parts, records):
        if _is_kernels(head):
            yield text


def _parts(record: bytes) -> tuple[str, str]:
    head, _, text = record.decode(errors="replace").partition(";")
    return head, text.partition("\n")[0]


def _is_kernels(head: str) -> bool:
    return int(head.split(",")[0]) < _KERNELS


def records(log: Path = _LOG) -> Iterator[bytes]:
    """Yield what is in the log, as far as it can be read in time. Each read gives one record."""
    end = time.monotonic() + _SECONDS
    try:
        # In a container that is a node, another device may have its name: a console, which would become crispd's own.
        if os.stat(log).st_rdev != _DEVICE:
            return
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return
    try:
        while time.monotonic() < end:
            try:
                yield os.read(descriptor, _LONGEST)
            except BrokenPipeError:  # the kernel has overwritten what would be next; the read after it goes on
                continue
            except OSError:  # EAGAIN: the end
                return
    finally:
        os.close(descriptor)
