"""Security profiles that are pulled from registries (CRI `PullSecurityProfile`, KEP-6061)."""

from __future__ import annotations

from typing import Final

from image.errors import InvalidImage, InvalidReference, ProfileInvalid
from image.model import Credentials
from image.profiles import ProfileInfo
from image.store import ImageStore
from linux.tables import CAPABILITIES
from pods.errors import FailedPrecondition, InvalidArgument, Unimplemented
from pods.host import HostFacts
from pods.model import ProfileType, SecurityProfile
from pods.security.filter_cache import compile_profile
from pods.security.seccomp_profile import absent, parse_profile, reduce_profile
from runtime.errors import RuntimeCoreError

_SECCOMP_TYPE: Final = "application/vnd.cncf.seccomp-profile.config.v1+json"


class SecurityProfiles:
    """Those of a node. A container has its own copy of what it was created with."""

    def __init__(self, images: ImageStore, host: HostFacts) -> None:
        self._profiles = images.profiles
        self._host = host

    def all(self) -> list[ProfileInfo]:
        return self._profiles.all()

    async def pull_seccomp(self, reference: str, credentials: Credentials | None) -> bool:
        """Have a seccomp profile on the node; True if it was there and no registry was asked.

        Raises ProfileInvalid for what no further try makes better, and what `ImageStore.pull` does.
        """
        try:
            return await self._profiles.pull(
                reference, _SECCOMP_TYPE, credentials, lambda content: self._check(reference, content)
            )
        except (InvalidReference, InvalidImage) as error:
            raise ProfileInvalid(str(error)) from error

    async def remove(self, digest: str) -> None:
        await self._profiles.remove(digest)

    def require(self, wanted: SecurityProfile | None) -> None:
        """Raise FailedPrecondition for an OCI profile that is not here."""
        if wanted is not None and wanted.type is ProfileType.OCI and self._profiles.content(wanted.oci_ref) is None:
            raise FailedPrecondition(absent(wanted.oci_ref))

    def _check(self, reference: str, content: bytes) -> None:
        try:
            profile = parse_profile(reference, content, "image.image")
            compile_profile(reduce_profile(profile, frozenset(CAPABILITIES), self._host))
        except (InvalidArgument, Unimplemented, RuntimeCoreError) as error:
            raise ProfileInvalid(str(error)) from error
