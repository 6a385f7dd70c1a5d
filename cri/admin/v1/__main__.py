"""Regenerates the Python modules of admin.proto: `python -m cri.admin.v1` (needs the `dev` extra)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from grpc_tools import protoc


def main() -> int:
    """Write the modules and their type stubs beside the .proto file; returns protoc's exit status."""
    root = Path(__file__).parents[3]
    # protoc looks for the stub generators (mypy-protobuf) on PATH; in a venv that is not activated they are here.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    outputs = [f"--{plugin}_out={root}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    return int(protoc.main(["protoc", f"-I{root}", *outputs, "cri/admin/v1/admin.proto"]))


if __name__ == "__main__":
    sys.exit(main())
