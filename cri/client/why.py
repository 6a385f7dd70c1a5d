"""`crisp why`: what is wrong with a pod, a container or an image, and what happened to it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from cri.admin.v1 import admin_pb2
from cri.client.render import document, plain, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cri.client.connection import Connection


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print cause, evidence and remedy, then the timeline; of others with that name, without the timeline.

    Returns 1 if something is wrong, 0 if not.
    """
    if arguments.object is None:
        return _all(arguments, connection)
    answer = connection.read(connection.admin.Why, admin_pb2.WhyRequest(query=arguments.object))
    if arguments.output == "table":
        print("\n".join(map(printable, _lines(answer, arguments.lines))))
    else:
        document(plain(answer), arguments.output)
    return int(any(one.name != "none" for one in (answer, *answer.others)))


def _all(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print all that is wrong on the node."""
    answer = connection.read(connection.admin.WhyAll, admin_pb2.WhyAllRequest())
    if arguments.output != "table":
        document(plain(answer), arguments.output)
    elif not answer.answers:
        print("nothing is known to be wrong on this node")
    for number, one in enumerate(answer.answers if arguments.output == "table" else ()):
        heading = [""] if number else []
        print("\n".join(map(printable, [*heading, f"{one.subject}:", *_diagnosis(one)])))
    return int(bool(answer.answers))


def _lines(answer: admin_pb2.WhyResponse, last: int) -> Iterator[str]:
    yield from _diagnosis(answer)
    yield ""
    yield f"{answer.subject}:"
    yield from _timeline(answer.timeline[-last:] if last else ())
    for other in answer.others:
        yield ""
        yield f"also {other.subject}:"
        yield from _diagnosis(other)


def _diagnosis(answer: admin_pb2.WhyResponse) -> Iterator[str]:
    yield f"cause:    {answer.cause}"
    yield f"evidence: {answer.name}: {answer.evidence}"
    yield f"remedy:   {answer.remedy}"


def _timeline(moments: Iterable[admin_pb2.Moment]) -> Iterator[str]:
    """Yield a line for each entry: time, time since the previous entry, text, duration, count."""
    before = 0
    for one in moments:
        since = f"+{(one.at - before) / 1e9:.3f}" if before else ""
        before = one.at
        about = f"{one.container}: " if one.container else ""
        took = f" ({one.took / 1e6:.1f} ms)" if one.took else ""
        times = f" ({one.count} times)" if one.count > 1 else ""
        yield f"{'!' if one.wrong else ' '} {_clock(one.at)} {since:>10}  {about}{one.text}{took}{times}"


def _clock(at: int) -> str:
    """The local time of nanoseconds since the epoch."""
    seconds, rest = divmod(at, 10**9)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest // 10**6:03d}"
