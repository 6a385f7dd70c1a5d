"""`crisp-oci restore`: refused, with the reason."""

from __future__ import annotations

from runtime.command.context import Context
from runtime.command.flags import Options
from runtime.command.operands import only
from runtime.errors import NotSupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = ()
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    raise NotSupported("restore", only(operands, "ID"), "crisp-oci cannot drive criu yet")
