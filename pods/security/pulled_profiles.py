"""Security profiles pulled from registries (CRI `PullSecurityProfile`, KEP-6061)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from image.errors import InvalidImage, InvalidReference, ProfileInvalid
from image.model import Credentials
from linux.tables import CAPABILITIES
from pods.errors import FailedPrecondition, InvalidArgument, Unimplemented
from pods.host import HostFacts
from pods.model import ContainerSecurity, ProfileType, SecurityProfile
from pods.security.filter_cache import compile_profile
from pods.security.seccomp_profile import absent, parse_profile, reduce_profile
from runtime.errors import RuntimeCoreError

if TYPE_CHECKING:
    from image.profiles import ProfileInfo
    from image.store import ImageStore

_SECCOMP_TYPE: Final = "application/vnd.cncf.seccomp-profile.config.v1+json"


class SecurityProfiles:
    """The node's pulled profiles. Each container has a copy of its own, from its creation."""

    def __init__(self, images: ImageStore, host: HostFacts) -> None:
        self._profiles = images.profiles
        self._host = host

    def all(self) -> list[ProfileInfo]:
        return self._profiles.all()

    async def pull_seccomp(self, reference: str, credentials: Credentials | None) -> bool:
        """Pull a seccomp profile. Returns True if it was on the node already and no registry was asked.

        Raises ProfileInvalid for an error that a retry cannot fix, and what `ImageStore.pull` raises.
        """
        try:
            return await self._profiles.pull(
                reference, _SECCOMP_TYPE, credentials, lambda content: self._check(reference, content)
            )
        except (InvalidReference, InvalidImage) as error:
            raise ProfileInvalid(str(error)) from error

    async def remove(self, digest: str) -> None:
        await self._profiles.remove(digest)

    async def require(self, wanted: SecurityProfile | None) -> None:
        """Raise FailedPrecondition if an OCI profile is not on the node, SignatureRefused if it is refused."""
        if wanted is None or wanted.type is not ProfileType.OCI:
            return
        if await self._profiles.accepted(wanted.oci_ref) is None:
            raise FailedPrecondition(absent(wanted.oci_ref))

    def _check(self, reference: str, content: bytes) -> None:
        try:
            profile = parse_profile(reference, content, "image.image")
            compile_profile(reduce_profile(profile, frozenset(CAPABILITIES), self._host))
        except (InvalidArgument, Unimplemented, RuntimeCoreError) as error:
            raise ProfileInvalid(str(error)) from error


async def pulled_profile(security: ContainerSecurity, images: ImageStore) -> bytes | None:
    """Return the content of the container's OCI profile; None if it requests none, or one that was not pulled.

    Raises what `image.profiles.Profiles.accepted` does.
    """
    wanted = security.seccomp
    if wanted is None or security.privileged or wanted.type is not ProfileType.OCI:
        return None
    return await images.profiles.accepted(wanted.oci_ref)
