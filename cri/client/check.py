"""`crisp check`: whether what crispd knows and what is on the machine agree."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cri.admin.v1 import admin_pb2
from cri.client.connection import NO_LIMIT
from cri.client.render import document, plain, table

if TYPE_CHECKING:
    from cri.client.connection import Connection


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the disagreements. Returns 1 if any is left."""
    request = admin_pb2.CheckRequest(repair=arguments.repair)
    found = connection.change(connection.admin.Check, request, NO_LIMIT).disagreements
    if arguments.output != "table":
        document({"disagreements": [plain(one) for one in found]}, arguments.output)
    elif not found:
        print("records and machine agree")
    else:
        rows = [(one.kind, one.object, one.text, "repaired" if one.repaired else one.advice) for one in found]
        table(("KIND", "OBJECT", "FOUND", "REPAIR"), rows)
    return int(not all(one.repaired for one in found))
