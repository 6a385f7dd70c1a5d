"""A command's outcome on the error stream: metav1.Status in JSON from version 4 on, before that text."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code, or the failure that prevented one."""

    code: int | None
    failure: str = ""

    def encoded(self, version: int) -> bytes:
        """Return the message for the error stream: empty for success in versions below 4."""
        if version >= 4:
            return json.dumps(self._status()).encode()
        return b"" if self.code == 0 else self._message().encode()

    def _message(self) -> str:
        return self.failure or f"command terminated with exit code {self.code}"

    def _status(self) -> dict[str, object]:
        if self.code == 0:
            return {"metadata": {}, "status": "Success"}
        failed: dict[str, object] = {"metadata": {}, "status": "Failure", "message": self._message()}
        if self.code is None:
            return {**failed, "reason": "InternalError", "code": 500}
        causes = [{"reason": "ExitCode", "message": str(self.code)}]
        return {**failed, "reason": "NonZeroExitCode", "details": {"causes": causes}}
