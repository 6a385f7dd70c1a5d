"""The `crisp` command."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from cri.client.arguments import FOREIGN_STATUS, parser
from cri.client.config import listen_address
from cri.client.errors import ClientError
from cri.client.exits import exit_status

if TYPE_CHECKING:
    from cri.client.connection import Connection



def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status. Errors are printed on standard error."""
    arguments = parser().parse_args(argv)
    foreign = arguments.command in FOREIGN_STATUS
    try:
        return _run(arguments)
    except ClientError as error:
        print(f"crisp: {error}", file=sys.stderr)
        return exit_status(error) if foreign else error.exit_status
    except BrokenPipeError:
        # The reader has left; prevent a second failure when the interpreter flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(arguments: argparse.Namespace) -> int:
    module, _, function = arguments.target.partition(":")
    command = cast(
        "Callable[[argparse.Namespace, Connection], int]",
        getattr(importlib.import_module(f"cri.client.{module}"), function),
    )
    from cri.client.connection import Connection

    with Connection(arguments.listen or listen_address(), arguments.timeout) as connection:
        return command(arguments, connection)
