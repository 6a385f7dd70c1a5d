"""Exit statuses of run, exec and attach for failures of their own, as docker, podman and shells have them."""

from __future__ import annotations

import re
from typing import Final

from cri.client.errors import ClientError

OWN_FAILURE: Final = 125
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
# The messages of crisp and runc, of crun, and for a program without a name.
_EXECUTION = re.compile(r'exec: ".*": (?P<why>.+)|executable file .* not found|expected the name of a program', re.S)
_MISSING = ("not found", "no such file or directory")


def exit_status(error: ClientError) -> int:
    """Return 127 for a missing program, 126 for one that cannot be executed, 125 for any other failure."""
    if (failure := _EXECUTION.search(str(error))) is None:
        return OWN_FAILURE
    why = (failure["why"] or "not found").lower()
    return _NOT_FOUND if any(words in why for words in _MISSING) else _NOT_EXECUTABLE
