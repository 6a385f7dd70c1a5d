"""`crisp config`: the configuration that crispd starts with, and what of it the client itself goes by."""

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
    """Print the effective configuration: as TOML that tells where each value is from, or as JSON or YAML."""
    from cri.client.render import document

    configuration = effective(Path(arguments.config).absolute() if arguments.config else None)
    if arguments.output == "table":
        print(configuration.to_toml(), end="")
    else:
        document(configuration.values(), arguments.output)
    return 0


def listen_address() -> str:
    """The daemon's socket where no option names it: $CRISP_LISTEN's, else the configured one. Raises UsageError."""
    return os.environ.get(ENVIRONMENT) or effective().listen


def effective(path: Path | None = None) -> Configuration:
    """The configuration of `path` (the default file when None) and its drop-ins. Raises UsageError."""
    from cri.daemon.loading import load
    from cri.errors import ConfigurationError

    try:
        return load(path=path)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
