"""The places one reference can be pulled from, taken together: the first that has it serves it, the others step in."""

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
from image.registry.repository import Repository

# What one place may fail with while another still has the image. The last two: a mirror's damaged copy.
NEXT_PLACE = (ImageNotFound, AuthenticationRequired, RegistryUnavailable, DigestMismatch, InvalidImage)

_T = TypeVar("_T")


class Origin:
    """Mirrors in order, then the registry itself, for the time of one pull."""

    def __init__(self, repositories: Sequence[Repository]) -> None:
        self._repositories = list(repositories)  # as they are to be asked from now on
        self._order = tuple(repositories)
        self._giver: Repository | None = None  # of the last manifest
        self._passed_over: list[ImageError] = []

    async def digest(self, reference: str) -> str:
        """The digest that a tag or digest stands for, if a place tells it without the manifest; else ""."""
        for repository in self._repositories:
            if found := await repository.digest(reference):
                return found
        return ""

    async def manifest(self, reference: str, read: Callable[[bytes, str], _T], *, aside: bool = False) -> _T:
        """What `read` makes of the manifest of a tag or digest and its Content-Type; it raises InvalidImage for what is
        none, and the next place is asked. Who gave it is asked first from now on.

        Not if it was asked for `aside`: a mirror that lacks the image's signatures still has its layers. Raises what
        the registry itself raised; the message also tells what its mirrors said.
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
        """Ask neither the place that gave the manifest, of which nothing came but `failure`, nor those before it again.

        When there is nobody after it, raise what went wrong.
        """
        failures = [*self._passed_over, failure]
        after = self._order[self._order.index(self._giver) + 1 :] if self._giver is not None else ()
        if not after:
            raise summed_up(failures)
        self._passed_over = failures
        self._repositories, self._order, self._giver = list(after), after, None

    def blob(self, descriptor: Descriptor) -> Delivery:
        """The bytes of a blob."""
        return Delivery(self._repositories, descriptor)

    async def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """The whole of a small blob, verified. Raises DigestMismatch, also when it says to be over `limit` bytes."""
        if descriptor.size > limit:
            raise DigestMismatch(f"get blob {descriptor.digest}: {descriptor.size} bytes, over the limit of {limit}")
        delivery = self.blob(descriptor)
        while True:
            content = b"".join([piece async for piece in delivery.pieces()])
            if digest_of(content) == descriptor.digest:
                return content
            delivery.refuse(DigestMismatch(f"get blob {descriptor.digest}: content has digest {digest_of(content)}"))


class Delivery:
    """One blob on its way, from the places that have it: from the first that gives it undamaged."""

    def __init__(self, places: Sequence[Repository], descriptor: Descriptor) -> None:
        self._places = list(places)
        self._descriptor = descriptor
        self._gave: list[Repository] = []
        self._refused: list[ImageError] = []

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Its bytes from the beginning. Raises what the first place raised, when no other steps in."""
        offset = 0
        self._gave = []
        failures: list[ImageError] = []
        for place in self._places:
            try:
                async with aclosing(place.blob(self._descriptor, offset)) as pieces:
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
        """Have `pieces` begin again without the place that gave the first bytes of what is damaged: it may have been
        another's copy that was gone on with. Raises when no other is left."""
        self._refused.append(damage)
        if len(self._places) == 1 or not self._gave:
            raise summed_up(self._refused)
        self._places.remove(self._gave[0])


def summed_up(failures: Sequence[ImageError]) -> ImageError:
    """The last one, which is the registry's own, with the words of all; a refused signature goes before all others."""
    refused = next((failure for failure in failures if isinstance(failure, SignatureRefused)), None)
    said = tuple(dict.fromkeys(map(str, reversed(failures))))
    if refused is not None or len(said) == 1:
        return refused or failures[-1]
    return type(failures[-1])("; ".join(said))
