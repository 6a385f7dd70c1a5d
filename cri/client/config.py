"""`crisp config`: the configuration that crispd starts with; the client takes the socket's address from it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cri.client.errors import UsageError

if TYPE_CHECKING:
    from cri.client.connection import Connection
    from cri.daemon.config import Configuration

ENVIRONMENT = "CRISP_LISTEN"


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the effective configuration: as TOML with the source of each value, or as JSON or YAML."""
    from cri.client.render import document

    configuration = effective(Path(arguments.config).absolute() if arguments.config else None)
    if arguments.output == "table":
        print(configuration.to_toml(), end="")
    else:
        document(configuration.values(), arguments.output)
    return 0


def listen_address() -> str:
    """Return the daemon's socket if no option names it: $CRISP_LISTEN, or the configured one. Raises UsageError."""
    return os.environ.get(ENVIRONMENT) or effective().listen


def effective(path: Path | None = None) -> Configuration:
    """Load the configuration at `path` (None: the default file) and its drop-ins. Raises UsageError."""
    from cri.daemon.loading import load
    from cri.errors import ConfigurationError

    try:
        return load(path=path)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
