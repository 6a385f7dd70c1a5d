"""`crisp df`: what holds the disk, and what removal would free."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from cri.admin.v1 import admin_pb2
from cri.client.render import document, plain, printable, short, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri.client.connection import Connection

_COLUMNS: Final = ("KIND", "NAME", "ID", "SIZE", "SHARED", "FREES", "USED BY")
_SUMS: Final = ("KIND", "NUMBER", "SIZE", "FREES")
_USERS: Final = 3  # shown in the table
_SECONDS: Final = 600.0  # writable layers are read whole


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the sums of each kind; with --verbose each object, too, the largest first."""
    answer = connection.change(connection.admin.GetHoldings, admin_pb2.GetHoldingsRequest(), _SECONDS)
    if arguments.output != "table":
        document(plain(answer), arguments.output)
        return 0
    if arguments.verbose:
        table(_COLUMNS, rows(answer.holdings))
        print()
    table(_SUMS, sums(answer.holdings))
    return 0


def rows(holdings: Sequence[admin_pb2.Holding]) -> list[tuple[str, ...]]:
    """Return a row for each holding, the largest of each kind first."""
    kinds = {kind: place for place, kind in enumerate(dict.fromkeys(one.kind for one in holdings))}
    return [
        (
            one.kind,
            printable(one.name),
            short(one.id),
            size(one.bytes),
            size(one.shared) if one.shared else "",
            size(one.frees) if one.frees else "",
            _users(one.users),
        )
        for one in sorted(holdings, key=lambda one: (kinds[one.kind], -one.bytes))
    ]


def sums(holdings: Sequence[admin_pb2.Holding]) -> list[tuple[str, ...]]:
    """Return a row for each kind, and their sum."""
    kinds = dict.fromkeys(one.kind for one in holdings)
    groups = [(kind, [one for one in holdings if one.kind == kind]) for kind in kinds]
    return [
        (kind, str(len(group)), size(sum(one.bytes for one in group)), size(sum(one.frees for one in group)))
        for kind, group in (*groups, ("all", list(holdings)))
    ]


def _users(users: Sequence[str]) -> str:
    more = f", and {len(users) - _USERS} more" if len(users) > _USERS else ""
    return printable(", ".join(users[:_USERS]) + more)
