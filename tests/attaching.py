"""crispd as it is on Linux 6.12 to 6.14, whose overlayfs takes no detached mounts: `python -m tests.attaching`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from cri.daemon.main import main
from image.erofs import probe
from image.erofs.mounted import Mounted
from image.erofs.seal import Seal


def _refused(directory: str | os.PathLike[str], seal: Seal | None) -> Mounted:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(Path(directory)))


if __name__ == "__main__":
    probe.held = _refused
    sys.exit(main())
