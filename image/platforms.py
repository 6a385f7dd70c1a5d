"""Platforms of images and of this machine, in Go's terms (OCI image-spec, image-index.md)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

# Names that uname(2), Debian and other tools use for Go's architectures.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "x64": "amd64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "x86": "386",
    "aarch64": "arm64",
    "ppc64el": "ppc64le",
    "mipsel": "mipsle",
    "mips64el": "mips64le",
    "loongarch64": "loong64",
}
_ARM = {"armhf": "v7", "armel": "v6", "armv5l": "v5", "armv6l": "v6", "armv7l": "v7", "armv8l": "v8"}
_USUAL_VARIANTS = {"amd64": ("v1",), "arm64": ("v8", "v8.0")}  # the same as no variant

# Platforms that each machine runs, best first; "" stands for an arm image without a variant, which usually is ARMv7.
_RUNS = {
    "amd64": (("amd64", ""), ("386", "")),
    "arm64": (("arm64", ""), ("arm", "v8"), ("arm", "v7"), ("arm", ""), ("arm", "v6"), ("arm", "v5")),
    "arm/v8": (("arm", "v8"), ("arm", "v7"), ("arm", ""), ("arm", "v6"), ("arm", "v5")),
    "arm/v7": (("arm", "v7"), ("arm", ""), ("arm", "v6"), ("arm", "v5")),
    "arm/v6": (("arm", "v6"), ("arm", "v5"), ("arm", "")),
    "arm/v5": (("arm", "v5"), ("arm", "")),
}


class Platform(msgspec.Struct, frozen=True):
    """The platform of an image (linux, arm64, v8)."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @property
    def normalised(self) -> Platform:
        """The platform in Go's terms, without redundant parts."""
        system, architecture, variant = (text.strip().lower() for text in (self.os, self.architecture, self.variant))
        architecture = _ARCHITECTURES.get(architecture, architecture)
        if architecture in _ARM:
            architecture, variant = "arm", variant or _ARM[architecture]
        if variant[:1].isdigit():
            variant = f"v{variant}"
        if variant in _USUAL_VARIANTS.get(architecture, ()) or architecture == "386":
            variant = ""
        return Platform(system, architecture, variant)

    def suits(self, platforms: Sequence[Platform]) -> bool:
        """Return whether the image may run on one of `platforms`; parts that it does not state match anything."""
        mine = self.normalised
        return any(
            mine.os in ("", there.os)
            and mine.architecture in ("", there.architecture)
            and (not mine.architecture or mine.variant in ("", there.variant))
            for there in platforms
        )


def node_platforms(machine: str = "") -> tuple[Platform, ...]:
    """Return the platforms that this machine runs, best first. `machine` is as in uname; "" asks the kernel."""
    own = Platform("linux", machine or os.uname().machine).normalised
    key = "/".join(filter(None, (own.architecture, own.variant)))
    return tuple(Platform("linux", *one) for one in _RUNS.get(key, ((own.architecture, own.variant),)))
