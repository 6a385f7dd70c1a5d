"""crispd's command line: a flag for each configuration key that has one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cri.daemon.config import KEYS, plain
from cri.daemon.keys import Key
from cri.daemon.loading import DEFAULT_FILE


def command_line() -> argparse.ArgumentParser:
    """Make the parser. Each flag's destination, except --config and --version, is the name of its key."""
    parser = argparse.ArgumentParser(
        prog="crispd", description="Kubernetes container runtime: serves CRI v1 on a unix socket."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"configuration, with FILE.d/*.toml ({DEFAULT_FILE})"
    )
    for key in KEYS.values():
        if key.flag is not None:
            named = {"metavar": key.flag.argument} if key.flag.argument else {}
            argument: dict[str, Any] = {**key.kind.argument, **named}
            parser.add_argument(key.option, dest=key.name, help=f"{key.flag.help}{_default(key)}", **argument)
    parser.add_argument("--version", action=_PrintVersion)
    return parser


def _default(key: Key) -> str:
    value = plain(key.default)
    return f" ({value})" if value != "" and not isinstance(value, bool | list) else ""


class _PrintVersion(argparse.Action):
    """Prints the version and exits; reads the package's metadata only then."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from cri.version import crisp_version

        print(f"crispd {crisp_version()}")  # parser.exit(message=) would write to stderr
        parser.exit()
