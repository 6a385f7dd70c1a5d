"""The places one reference can be pulled from, taken together: the first that has it serves it, the others step in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from image.errors import AuthenticationRequired, DigestMismatch, ImageError, ImageNotFound, RegistryUnavailable
from image.manifest import Descriptor, digest_of
from image.registry import Repository

# What one place may fail with while another still has the image. DigestMismatch: a mirror's damaged copy.
_NEXT = (ImageNotFound, AuthenticationRequired, RegistryUnavailable, DigestMismatch)


class Origin:
    """Mirrors in order, then the registry itself, for the time of one pull."""

    def __init__(self, repositories: Sequence[Repository]) -> None:
        self._repositories = list(repositories)

    async def manifest(self, reference: str, *, aside: bool = False) -> tuple[bytes, str]:
        """The manifest of a tag or digest, and its Content-Type; who gave it is asked first from now on.

        Not if it was asked for `aside`: a mirror that lacks the image's signatures still has its layers. Raises what
        the registry itself raised; the message also tells what its mirrors said.
        """
        failures: list[ImageError] = []
        for repository in self._repositories:
            try:
                found = await repository.manifest(reference)
            except _NEXT as error:
                failures.append(error)
            else:
                if not aside:
                    self._repositories.remove(repository)
                    self._repositories.insert(0, repository)
                return found
        last = failures[-1]
        if len(failures) == 1:
            raise last
        raise type(last)("; ".join(map(str, reversed(failures)))) from last

    async def blob(self, descriptor: Descriptor) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob. Raises what the place that gave the manifest raised, when no other steps in."""
        offset = 0
        first: ImageError | None = None
        for repository in self._repositories:
            try:
                async with aclosing(repository.blob(descriptor, offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        yield piece
            except _NEXT as error:
                first = first or error
            else:
                return
        if first is not None:
            raise first

    async def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """The whole of a small blob, verified. Raises DigestMismatch, also when it says to be over `limit` bytes."""
        if descriptor.size > limit:
            raise DigestMismatch(f"get blob {descriptor.digest}: {descriptor.size} bytes, over the limit of {limit}")
        content = b"".join([piece async for piece in self.blob(descriptor)])
        if digest_of(content) != descriptor.digest:
            raise DigestMismatch(f"get blob {descriptor.digest}: content has digest {digest_of(content)}")
        return content
