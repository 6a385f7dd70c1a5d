"""`crisp migrate`: writes crisp's configuration from another runtime's, and imports that runtime's images."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri.admin.v1 import admin_pb2
from cri.client.config import effective
from cri.client.errors import ClientError, UsageError
from cri.client.migrate import containerd, crio
from cri.client.migrate.layout import Found, NotWhole
from cri.client.render import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri.client.connection import Connection
    from cri.client.migrate.translation import Translation

_NAME: Final = "50-migrated"
_KINDS: Final = {"containerd": containerd, "crio": crio}


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the translation, and with --dry-run no more; otherwise write it, and import images into the daemon.

    Returns 1 if an image could not be imported.
    """
    kind = _KINDS[arguments.source]
    translation = kind.translate(Path(arguments.config).absolute() if arguments.config else kind.CONFIG)
    root = Path(arguments.root).absolute() if arguments.root else kind.ROOT
    _show(translation)
    found = list(kind.images(root))
    if arguments.dry_run:
        table(("IMAGE", "DIGEST"), [(one.name, one.digest) for one in found])
        return 0
    if not arguments.images_only:
        _write(Path(arguments.directory), translation)
    return int(bool(_import(found, connection)))


def _show(translation: Translation) -> None:
    print(f"# {_NAME}.toml: settings of crisp\n{translation.toml()}")
    if registries := translation.registries():
        print(f"# {_NAME}.conf: registries\n{registries}")
    if translation.notes:
        table(("SETTING", "WHAT BECOMES OF IT"), translation.notes)
        print()


def _write(directory: Path, translation: Translation) -> None:
    """Write the drop-ins, below /etc or another directory. Existing files stay."""
    files = {directory / "crisp/crisp.toml.d" / f"{_NAME}.toml": translation.toml()}
    if registries := translation.registries():
        files[directory / "containers/registries.conf.d" / f"{_NAME}.conf"] = registries
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            raise UsageError(f"write {path}: it exists: remove it first, or use --images-only") from None
        except OSError as error:
            raise UsageError(f"write {path}: {error.strerror}") from None
        print(f"wrote {path}; restart crispd to use it")


def _import(images: Iterable[Found], connection: Connection) -> list[str]:
    """Import each image by a layout of links. Returns the names of those that failed."""
    failed = []
    for image in images:
        place = Path(tempfile.mkdtemp(prefix="migrate-", dir=_place()))
        try:
            image.write(place)
            request = admin_pb2.ImportImageRequest(path=str(place))
            (imported,) = connection.change(connection.admin.ImportImage, request, None).images
        except (NotWhole, OSError, ClientError, ValueError) as error:
            print(f"crisp: {image.name}: {error}", file=sys.stderr)
            failed.append(image.name)
        else:
            print(f"imported {image.name} as {imported.id}")
        finally:
            shutil.rmtree(place)
    return failed


def _place() -> Path | None:
    """Return a directory on the disk of crisp's store, which is often that of the other store: links need no space."""
    root = effective().root
    return root if root.is_dir() else None
