"""Regenerates the Python modules of api.proto and ttrpc.proto: `python -m cri.nri.v1alpha1` (needs the `dev` extra)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from grpc_tools import protoc


def main() -> int:
    """Write the modules and their type stubs beside the .proto files; returns protoc's exit status."""
    root = Path(__file__).parents[3]
    # protoc looks for the stub generator (mypy-protobuf) on PATH; in a venv that is not activated it is here.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    files = [f"cri/nri/v1alpha1/{name}.proto" for name in ("api", "ttrpc")]
    return int(protoc.main(["protoc", f"-I{root}", f"--python_out={root}", f"--mypy_out={root}", *files]))


if __name__ == "__main__":
    sys.exit(main())
