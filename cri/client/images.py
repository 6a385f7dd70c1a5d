"""`crisp pull`, `crisp rmi` and `crisp image`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cri.admin.v1 import admin_pb2
from cri.client.connection import NO_LIMIT, Connection
from cri.client.errors import CallFailed, UnknownName, UsageError
from cri.client.lifecycle import for_each
from cri.client.render import document, plain, size
from cri.v1 import api_pb2


def pull(arguments: argparse.Namespace, connection: Connection) -> int:
    """Pull images and print their ids."""
    username, _, password = (arguments.creds or "").partition(":")
    auth_file = ""
    if arguments.auth_file:
        path = Path(arguments.auth_file).expanduser().absolute()
        if not os.access(path, os.R_OK):
            raise UsageError(f"pull with --auth-file {path}: the file does not exist or is not readable")
        auth_file = str(path)
    for reference in arguments.references:
        print(pull_image(connection, reference, username, password, auth_file))
    return 0


def pull_image(
    connection: Connection, reference: str, username: str = "", password: str = "", auth_file: str = ""
) -> str:
    """Pull an image and return its id. Draws each layer's progress if stderr is a terminal. Raises CallFailed.

    Runtimes without crisp's Admin service pull by CRI, without progress.
    """
    request = admin_pb2.PullImageRequest(reference=reference, username=username, password=password, auth_file=auth_file)
    try:
        return _watch(reference, connection.stream(connection.admin.PullImage, request))
    except CallFailed as error:
        if error.code != "UNIMPLEMENTED" or auth_file:
            raise
    by_cri = api_pb2.PullImageRequest(
        image=api_pb2.ImageSpec(image=reference), auth=api_pb2.AuthConfig(username=username, password=password)
    )
    return connection.change(connection.images.PullImage, by_cri, NO_LIMIT).image_ref


def _watch(reference: str, events: Iterator[admin_pb2.PullImageResponse]) -> str:
    if sys.stderr.isatty():
        return _draw(reference, events)
    return [event.image_id for event in events][-1]


def _draw(reference: str, events: Iterator[admin_pb2.PullImageResponse]) -> str:
    from rich.console import Console  # takes 100 ms to import, so only for a terminal
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    image_id = ""
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        heading = progress.add_task(f"pulling {reference}", total=None)
        tasks = {}
        for event in events:
            if event.WhichOneof("event") == "image_id":
                image_id = event.image_id
                continue
            layer = event.progress
            if layer.layer not in tasks:
                tasks[layer.layer] = progress.add_task("", total=None)
                progress.update(heading, visible=False)
            label = f"{layer.layer.removeprefix('sha256:')[:12]} {layer.phase}"
            progress.update(tasks[layer.layer], description=label, completed=layer.offset, total=layer.total or None)
    return image_id


def remove(arguments: argparse.Namespace, connection: Connection) -> int:
    """Remove images by name or id."""

    def remove_one(name: str) -> None:
        spec = api_pb2.ImageSpec(image=name)
        # RemoveImage succeeds for an unknown image, but an operator wants to know.
        if not connection.read(connection.images.ImageStatus, api_pb2.ImageStatusRequest(image=spec)).HasField("image"):
            raise UnknownName(f"remove image {name!r}: no image has that id or name")
        connection.change(connection.images.RemoveImage, api_pb2.RemoveImageRequest(image=spec))

    return for_each(arguments.references, remove_one)


def tag(arguments: argparse.Namespace, connection: Connection) -> int:
    """Give an image another name."""
    request = admin_pb2.TagImageRequest(image=arguments.image, name=arguments.name)
    print(connection.change(connection.admin.TagImage, request).id)
    return 0


def import_archive(arguments: argparse.Namespace, connection: Connection) -> int:
    """Import an OCI layout or a docker archive from this machine into the daemon's image store."""
    path = Path(arguments.path).absolute()
    if not os.access(path, os.R_OK):
        raise UsageError(f"import {path}: the file or directory does not exist or is not readable")
    request = admin_pb2.ImportImageRequest(path=str(path), name=arguments.name or "")
    reply = connection.change(connection.admin.ImportImage, request, NO_LIMIT)
    if arguments.output != "table":
        document({"images": [plain(image) for image in reply.images]}, arguments.output)
        return 0
    for image in reply.images:
        print(f"{image.id}   {', '.join(image.repo_tags) or '<none>'}   {size(image.size)}")
    return 0


def export(arguments: argparse.Namespace, connection: Connection) -> int:
    """Export an image, as the daemon stores it, to this machine's disk; print its digest."""
    path = str(Path(arguments.path).absolute())
    request = admin_pb2.ExportImageRequest(image=arguments.reference, path=path, format=arguments.format)
    print(connection.change(connection.admin.ExportImage, request, NO_LIMIT).digest)
    return 0


def verify(arguments: argparse.Namespace, connection: Connection) -> int:
    """Check the daemon's images for damage. Returns 1 if any is left."""
    found: list[admin_pb2.ImageVerdict] = []
    for reference in arguments.references or [""]:
        request = admin_pb2.VerifyImagesRequest(image=reference, repair=arguments.repair)
        found += connection.change(connection.admin.VerifyImages, request, NO_LIMIT).images
    if arguments.output != "table":
        document({"images": [plain(image) for image in found]}, arguments.output)
    else:
        for image in found:
            print(f"{image.id}   {', '.join(image.names) or '<none>'}   {'; '.join(image.problems) or 'whole'}")
    return 1 if any(image.problems for image in found) else 0
