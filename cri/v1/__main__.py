"""Regenerates the Python modules of api.proto: `python -m cri.v1` (needs the `dev` extra)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from grpc_tools import protoc


def main() -> int:
    """Write api_pb2.py, api_pb2_grpc.py and their type stubs beside api.proto; returns protoc's exit status."""
    root = Path(__file__).parents[2]
    # protoc looks for the stub generators (mypy-protobuf) on PATH; in a venv that is not activated they are here.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    outputs = [f"--{plugin}_out={root}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    return int(protoc.main(["protoc", f"-I{root}", *outputs, "cri/v1/api.proto"]))


if __name__ == "__main__":
    sys.exit(main())
