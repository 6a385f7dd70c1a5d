"""The machines that guests are: what base.py makes, guest.py boots, and payload.py tells the tests inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.vm import host_clock


@dataclass(frozen=True, slots=True)
class Architecture:
    """A processor, and QEMU's machine that has it."""

    name: str  # Debian's
    linux: str  # what uname(2) says
    qemu: tuple[str, ...]  # the program and its options
    console: str
    command_line: str = ""  # the kernel's, besides COMMAND_LINE
    interpreter: tuple[str, ...] = ()  # QEMU's program for the processor's programs, where another executes them


# Two emulated processors take turns in one thread: beside other work two threads wait for each other most of the time.
_ACCELERATOR: Final = ("-accel", "tcg,thread=single")
AMD64: Final = Architecture(
    "amd64",
    "x86_64",
    # Without la57 a page table has a level less; without erms the kernel copies by words, which is emulated faster.
    ("qemu-system-x86_64", *_ACCELERATOR, "-cpu", "max,-la57,-erms"),
    "ttyS0",
    # Emulation that waits for a processor fails the kernel's look at its timer (a panic) and at its TSC (then each
    # reading of a clock goes through the emulated HPET). It would measure the TSC wrong, too: seconds took an hour.
    "no_timer_check tsc=reliable tsc_early_khz={host_khz}",
)
ARM64: Final = Architecture(
    "arm64",
    "aarch64",
    ("qemu-system-aarch64", "-machine", "virt", *_ACCELERATOR, "-cpu", "max,pauth-impdef=on"),
    "ttyAMA0",
    interpreter=(
        "/usr/bin/qemu-aarch64-static",
        r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
        r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    ),
)
ARCHIVE: Final = "CRISP_UBUNTU_ARCHIVE"  # in the environment: the address of a mirror of Ubuntu's packages
# QEMU finds translated code by address: so programs keep theirs.
COMMAND_LINE: Final = "root=/dev/vda rw quiet mitigations=off panic=-1 systemd.show_status=no norandmaps"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A package of Debian's and the suite that it comes from; or packages of Ubuntu's, by path and SHA-256."""

    package: str
    suite: str
    version: str  # the first two numbers
    packages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A Debian system. `left_out` has the tests inside that it does not run, each with the reason."""

    suite: str
    python: str
    kernel: Kernel
    architecture: Architecture = AMD64
    packages: tuple[str, ...] = ("apparmor", "criu", "crun")
    selinux: bool = False  # enforcing, with Debian's policy; else AppArmor is on
    layers: str = "unpacked"  # the kind of new image layers on its kernel, as a verbose Status has it
    tracks_memory: bool = True  # for criu, which then captures only what changed
    user_namespaces: bool = True  # of pods: its kernel maps the owners of image layers
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def command_line(self) -> str:
        """The kernel's."""
        own = self.architecture
        module = "security=selinux" if self.selinux else ""
        line = " ".join(filter(None, (COMMAND_LINE, f"console={own.console}", own.command_line, module)))
        return line.format(host_khz=host_clock.kilohertz()) if "{host_khz}" in line else line

    def told(self) -> dict[str, Any]:
        """What the tests inside know of it (tests/vm/inside/node.py), as JSON."""
        return {
            "architecture": self.architecture.linux,
            "kernel": self.kernel.version,
            "layers": self.layers,
            "left_out": sorted(self.left_out),
            "python": self.python,
            "tracks_memory": self.tracks_memory,
            "user_namespaces": self.user_namespaces,
        }


BOOKWORM: Final = Machine("bookworm", "3.11", Kernel("linux-image-cloud-amd64", "bookworm", "6.1"))
_ELSEWHERE: Final = {
    "first_boot.py::test_programs_with_tcp_sockets_go_on": "a program for criu, which tests/vm/test_guest.py tries",
}
_CHECKPOINTS: Final = (
    "first_boot.py::test_a_container_is_checkpointed_and_goes_on",
    "first_boot.py::test_a_container_is_made_from_a_checkpoint",
    "first_boot.py::test_a_checkpoint_that_does_not_fit_or_is_damaged_leaves_nothing",
)
TRIXIE: Final = Machine(
    "trixie", "3.13", Kernel("linux-image-cloud-amd64", "trixie", "6.12"), layers="tar+erofs", left_out=_ELSEWHERE
)
NEWEST: Final = Machine(
    "trixie",
    "3.13",
    Kernel("linux-image-cloud-amd64", "trixie-backports", "7.3"),
    layers="tar+erofs",
    left_out=_ELSEWHERE
    | dict.fromkeys(
        (*_CHECKPOINTS, "crisp_oci.py::test_a_scope_of_this_systemd"), "its criu is older than its kernel, and fails"
    ),
)
UBUNTU_2204: Final = Machine(
    "bookworm",
    "3.11",
    Kernel(
        "",
        "bookworm",
        "5.15",
        (
            (
                "pool/main/l/linux-signed/linux-image-5.15.0-25-generic_5.15.0-25.25_amd64.deb",
                "ad56f8c442a54d4f5ff2dff010d00321d53e32b543f3a92f3ba4e042d20a71da",
            ),
            (
                "pool/main/l/linux/linux-modules-5.15.0-25-generic_5.15.0-25.25_amd64.deb",
                "d0ba4087d9e1d497925b3481d3531fba6c2a852855f8019d73b0b1385aa4da1f",
            ),
            (  # quotas
                "pool/main/l/linux/linux-modules-extra-5.15.0-25-generic_5.15.0-25.25_amd64.deb",
                "b3acb8e187d4677141f07d88a24a99ec42477a51beabd8d7e02f7aad11752c2d",
            ),
        ),
    ),
    user_namespaces=False,
    left_out=_ELSEWHERE
    | dict.fromkeys(_CHECKPOINTS, "criu does not find the mounts of files in this kernel's overlayfs")
    | {
        "first_boot.py::test_limits_are_seen_from_inside": "this kernel applies no cpuset to what is cloned into it",
    },
)
ARM: Final = Machine(
    "bookworm",
    "3.11",
    Kernel("linux-image-cloud-arm64", "bookworm", "6.1"),
    ARM64,
    tracks_memory=False,
    left_out=_ELSEWHERE,
)
# Debian 12's policy has no types of containers.
SELINUX: Final = Machine(
    "trixie",
    "3.13",
    Kernel("linux-image-cloud-amd64", "trixie", "6.12"),
    packages=("policycoreutils", "selinux-policy-default"),
    layers="tar+erofs",
    selinux=True,
)
