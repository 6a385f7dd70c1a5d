"""What a node under test takes of the machine: kubelet's fixed directories and an address."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

# kubelet has these paths built in, or other programs look for its files there.
KUBELETS_DIRECTORIES = tuple(map(Path, ("/var/lib/kubelet", "/var/log/containers", "/var/log/pods")))


@contextmanager
def covered_directories(store: Path, into: Sequence[str] = ()) -> Iterator[None]:
    """Directories below `store` in the place of kubelet's own, in this mount namespace or where `into` runs a command.

    For use in a box.
    """
    with ExitStack() as undo:
        for target in KUBELETS_DIRECTORIES:
            source = store / target.name
            source.mkdir()
            if not target.exists():
                target.mkdir(parents=True)
                undo.callback(target.rmdir)
            subprocess.run([*into, "mount", "--bind", source, target], check=True)
            # Twice if need be: one of the mounts below it may go by itself meanwhile.
            script = 'umount --recursive "$0" || umount --recursive "$0"'
            undo.callback(subprocess.run, [*into, "sh", "-c", script, target], check=True)
            # Its mounts must be seen in containers, and theirs (Bidirectional) by it.
            subprocess.run([*into, "mount", "--make-shared", target], check=True)
        yield


@contextmanager
def address(ip: str, into: Sequence[str] = ()) -> Iterator[str]:
    """An address of the node, here or where `into` runs a command: 127.0.0.1 is none to kubelet.

    For use in a box, whose only link is lo.
    """
    subprocess.run([*into, "ip", "address", "add", f"{ip}/32", "dev", "lo"], check=True)
    try:
        yield ip
    finally:
        subprocess.run([*into, "ip", "address", "delete", f"{ip}/32", "dev", "lo"], check=True)
