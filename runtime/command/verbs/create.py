"""Implements `crisp-oci create`: does everything but the program's execve, which `start` triggers."""

from __future__ import annotations

import os

from runtime.command import creation
from runtime.command.flags import Options
from runtime.command.invocation import Context, only

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = creation.FLAGS
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    created = creation.create(context, options, only(operands, "ID"), console_needed=True)
    os.close(created.pidfd)
    return 0
