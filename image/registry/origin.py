"""All places that a reference can be pulled from: the first that has it is used, the others are fallbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from image.errors import (
    AuthenticationRequired,
    DigestMismatch,
    ImageError,
    ImageNotFound,
    InvalidImage,
    RegistryUnavailable,
    SignatureRefused,
)
from image.manifest import Descriptor
from image.reference import digest_of
from image.registry import ranges
from image.registry.repository import Repository

# Errors after which the next place is tried. The last two stand for a mirror's damaged copy.
NEXT_PLACE = (ImageNotFound, AuthenticationRequired, RegistryUnavailable, DigestMismatch, InvalidImage)

_T = TypeVar("_T")


class Origin:
    """The mirrors in order, then the registry itself; for one pull."""

    def __init__(self, repositories: Sequence[Repository]) -> None:
        self._repositories = list(repositories)  # in the order in which to ask them next
        self._order = tuple(repositories)
        self._giver: Repository | None = None  # where the last manifest came from
        self._passed_over: list[ImageError] = []

    async def digest(self, reference: str) -> str:
        """Return the digest of a tag or digest if a place reports it without the manifest; else ""."""
        for repository in self._repositories:
            if found := await repository.digest(reference):
                return found
        return ""

    async def manifest(self, reference: str, read: Callable[[bytes, str], _T], *, aside: bool = False) -> _T:
        """Fetch the manifest of a tag or digest, and return what `read` makes of it and its Content-Type.

        If `read` raises InvalidImage the next place is asked. The place that had it is asked first from now on, except
        with `aside`: a mirror without the image's signatures still has its layers. Raises the registry's own error; the
        message has the mirrors' errors as well.
        """
        failures: list[ImageError] = []
        for repository in self._repositories:
            try:
                found = await asyncio.to_thread(read, *await repository.manifest(reference))
            except NEXT_PLACE as error:
                failures.append(error)
            else:
                if not aside:
                    self._giver = repository
                    self._repositories.remove(repository)
                    self._repositories.insert(0, repository)
                return found
        raise summed_up(failures)

    def pass_over(self, failure: ImageError) -> None:
        """Stop using the place of the last manifest, from which nothing but `failure` came, and those before it.

        If no place is left, raise the failures.
        """
        failures = [*self._passed_over, failure]
        after = self._order[self._order.index(self._giver) + 1 :] if self._giver is not None else ()
        if not after:
            raise summed_up(failures)
        self._passed_over = failures
        self._repositories, self._order, self._giver = list(after), after, None

    def blob(self, descriptor: Descriptor) -> Delivery:
        """Return a delivery of a blob."""
        return Delivery(self._repositories, descriptor)

    async def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """Fetch and verify a small blob. Raises DigestMismatch; also if its size exceeds `limit` bytes."""
        if descriptor.size > limit:
            raise DigestMismatch(f"get blob {descriptor.digest}: {descriptor.size} bytes, over the limit of {limit}")
        delivery = self.blob(descriptor)
        while True:
            content = b"".join([piece async for piece in delivery.pieces()])
            if digest_of(content) == descriptor.digest:
                return content
            delivery.refuse(DigestMismatch(f"get blob {descriptor.digest}: content has digest {digest_of(content)}"))


class Delivery:
    """The transfer of one blob, from the first place that has it undamaged."""

    def __init__(self, places: Sequence[Repository], descriptor: Descriptor) -> None:
        self._places = list(places)
        self._descriptor = descriptor
        self._gave: list[Repository] = []
        self._refused: list[ImageError] = []

    async def pieces(self, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from `offset` on. Raises the first place's error if no other has the blob."""
        self._gave = []
        failures: list[ImageError] = []
        for place in self._places:
            try:
                async with aclosing(ranges.blob(place, self._descriptor, offset)) as pieces:
                    async for piece in pieces:
                        if place not in self._gave:
                            self._gave.append(place)
                        offset += len(piece)
                        yield piece
            except NEXT_PLACE as error:
                failures.append(error)
            else:
                return
        if failures:
            raise failures[0]

    def refuse(self, damage: ImageError) -> None:
        """Make `pieces` start again without the place that sent the first bytes of damaged content.

        Another place may have continued that content. Raises if no place is left.
        """
        self._refused.append(damage)
        if len(self._places) == 1 or not self._gave:
            raise summed_up(self._refused)
        self._places.remove(self._gave[0])


def summed_up(failures: Sequence[ImageError]) -> ImageError:
    """Return the last error, the registry's own, with the texts of all; a refused signature takes precedence."""
    refused = next((failure for failure in failures if isinstance(failure, SignatureRefused)), None)
    said = tuple(dict.fromkeys(map(str, reversed(failures))))
    if refused is not None or len(said) == 1:
        return refused or failures[-1]
    return type(failures[-1])("; ".join(said))
