"""The disk that the guest (tests/vm/guest.py) boots from: made once, with root's rights, and kept outside the checkout.

Debian's packages, the project's Python dependencies in a virtual environment (ENVIRONMENT), and a unit that runs what
is on the payload's disk, as a description of the machine (tests/vm/machine.py) asks. The kernel is Debian's own; the
initrd is ours, and holds the drivers of the disk.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linux.tables import SELINUX_LABEL
from tests import debian, once
from tests.vm import foreign
from tests.vm.machine import ARCHIVE, Architecture, Machine

POLICY = Path(__file__).parents[2] / "deploy/selinux/crisp.cil"
ENVIRONMENT = "/opt/crisp"  # the virtual environment that holds the project's dependencies, inside
DISK_GIB = 4
PACKAGES = (  # of every machine
    "busybox-static",
    "containernetworking-plugins",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "libseccomp2",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
)
DPKG_OPTIONS = (
    "force-confold",
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)
NEEDED = ("mmdebstrap", "mke2fs")

UNIT = f"""\
[Unit]
Description=The payload of this boot
RequiresMountsFor=/payload
Requires=modprobe@virtio_console.service
Wants=systemd-udev-settle.service
After=basic.target dbus.service modprobe@virtio_console.service systemd-udev-settle.service

[Service]
Type=oneshot
ExecStart={ENVIRONMENT}/bin/python /payload/run.py
StandardOutput=file:/dev/virtio-ports/results
StandardError=journal+console
TimeoutStartSec=infinity
ExecStopPost=/bin/systemctl poweroff --force --force

[Install]
WantedBy=multi-user.target
"""
UNWANTED_MODULES = ("aesni_intel", "ata_piix", "ghash_clmulni_intel", "kvm", "kvm_amd", "powernow_k8", "sha512_ssse3")
# Console lines are all there is when a boot hangs, so the journal goes there too.
FILES = {
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n::1 localhost\n",
    "etc/resolv.conf": "nameserver 192.0.2.53\n",
    "etc/machine-id": hashlib.sha256(b"crisp test guest").hexdigest()[:32] + "\n",
    "etc/fstab": "LABEL=base / ext4 defaults,prjquota 0 1\nLABEL=payload /payload ext4 ro 0 0\n",
    "etc/modprobe.d/unwanted.conf": "".join(f"blacklist {name}\n" for name in UNWANTED_MODULES),
    "etc/systemd/journald.conf.d/console.conf": "[Journal]\nForwardToConsole=yes\nMaxLevelConsole=info\n",
    "etc/systemd/system/payload.service": UNIT,
}
ENFORCING = {
    "etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=default\n",
    # Those who administer the machine are not confined, nor what they run from another disk.
    "etc/systemd/system/payload.service.d/selinux.conf": """\
[Service]
SELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
""",
}
# Nothing of these helps a test, and each costs a second or more under emulation.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
)

# Debian's initramfs costs 6 s of a boot and 10 s of the making; this machine's disk needs these, unless built in.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4", "quota_v2")
INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in {modules}; do $b insmod /$module; done
$b mount -t ext4 -o prjquota /dev/vda /root && $b mount --move /dev /root/dev &&
    exec $b switch_root /root /lib/systemd/systemd
echo "cannot start from the disk"
$b poweroff -f
"""


class GuestError(Exception):
    """A guest could not be made, did not boot, or did not end in time; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A bootable disk with the project's dependencies installed, and the kernel that boots it."""

    disk: Path
    kernel: Path
    initrd: Path


def missing_programs(machine: Machine) -> list[str]:
    """The host programs a guest needs and this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    needed = (*NEEDED, machine.architecture.qemu[0], *machine.architecture.interpreter[:1])
    return [name for name in needed if not shutil.which(name, path=path)]


def base_image(machine: Machine, requirements: Sequence[str]) -> BaseImage:
    """The machine's base disk for these Python requirements: the cached one, or made now (a minute, as root).

    Raises GuestError with the log's end when a step of the making fails.
    """
    told = (
        machine.suite, machine.python, machine.kernel, machine.architecture, machine.packages, machine.selinux,
    )  # fmt: skip
    recipe = (told, sorted(requirements), Path(__file__).read_text(), POLICY.read_text() * machine.selinux)
    kind = f"guest-{machine.suite}-{machine.kernel.version}-{machine.architecture.name}"
    home = once.made(kind, recipe, lambda new: _make(machine, requirements, new))
    return BaseImage(home / "disk", home / "vmlinuz", home / "initrd")


def label(tree: Path) -> None:
    """Give files that are no part of the system a label, without which nobody would know what they are."""
    for path in (tree, *tree.rglob("*")):
        os.setxattr(path, SELINUX_LABEL, b"system_u:object_r:usr_t:s0", follow_symlinks=False)


def disk_from(tree: Path, disk: Path, label: str, mebibytes: int) -> None:
    """Make an ext4 file system of that label and size which holds `tree`, with project quotas."""
    do(disk.parent, "mke2fs", "-q", "-t", "ext4", "-L", label, "-m", "0", "-O", "quota,project",
       "-E", "root_owner=0:0,quotatype=prjquota",
       "-d", str(tree), str(disk), f"{mebibytes}M")  # fmt: skip


def do(log_directory: Path, *command: str) -> None:
    """Run a command without input, its output to `log` in that directory. Raises GuestError with the log's end."""
    log = log_directory / "log"
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"}
    with log.open("wb") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    if done.returncode:
        raise GuestError(f"make guest: {' '.join(command[:3])}: exit {done.returncode}\n{end_of(log)}")


def end_of(log: Path, characters: int = 6000) -> str:
    """The last of a log, for a message."""
    return log.read_text(errors="replace")[-characters:] if log.exists() else f"(no {log})"


def _make(machine: Machine, requirements: Sequence[str], new: Path) -> None:
    root, wheels = new / "root", new / "root/var/tmp/wheels"
    inside = _interpreted(machine.architecture)
    no_initramfs = (
        'mkdir "$1/etc/initramfs-tools"; echo update_initramfs=no > "$1/etc/initramfs-tools/update-initramfs.conf"'
    )
    do(new, *inside, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
       f"--architectures={machine.architecture.name}", f"--include={','.join(_packages(machine))}",
       f"--essential-hook={no_initramfs}", *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
       machine.suite, str(root), *_sources(machine))  # fmt: skip
    do(new, sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(wheels),
       "--python-version", machine.python, "--implementation", "cp", *_platforms(machine.architecture.linux),
       *requirements)  # fmt: skip
    do(new, *inside, "chroot", str(root), "python3", "-m", "venv", ENVIRONMENT)
    do(new, *inside, "chroot", str(root), f"{ENVIRONMENT}/bin/pip", "install", "--quiet", "--no-index",
       "--find-links", "/var/tmp/wheels", *requirements)  # fmt: skip
    for address, digest in machine.kernel.packages:
        _unpack(new, address, digest, root)
    shutil.rmtree(wheels)
    _configure(root, FILES | ENFORCING if machine.selinux else FILES)
    shutil.copy(next(root.glob("boot/vmlinuz-*")), new / "vmlinuz")
    _make_initrd(root, new / "initrd", inside)
    if machine.selinux:
        _label(new, root)
    disk_from(root, new / "disk", "base", DISK_GIB * 1024)
    shutil.rmtree(root)


def _packages(machine: Machine) -> list[str]:
    kernel = machine.kernel
    chosen = [] if kernel.packages else [kernel.package + f"/{kernel.suite}" * (kernel.suite != machine.suite)]
    return [*PACKAGES, *machine.packages, *chosen]


def _interpreted(architecture: Architecture) -> list[str]:
    """What a command is prefixed with which executes programs of that processor."""
    return [sys.executable, foreign.__file__, *architecture.interpreter] if architecture.interpreter else []


def _unpack(log_directory: Path, path: str, digest: str, root: Path) -> None:
    """Unpack a kernel's package, whose scripts are not run."""
    address = f"{os.environ[ARCHIVE].rstrip('/')}/{path}"
    package = log_directory / "package"
    with urllib.request.urlopen(address) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise GuestError(f"make guest: {address}: its SHA-256 is {hashlib.sha256(content).hexdigest()}, not {digest}")
    package.write_bytes(content)
    tree = log_directory / "tree"
    do(log_directory, "dpkg-deb", "--extract", str(package), str(tree))
    for name, place in (("boot", "boot"), ("lib/modules", "usr/lib/modules")):
        if (tree / name).is_dir():
            shutil.copytree(tree / name, root / place, dirs_exist_ok=True)
    shutil.rmtree(tree)
    package.unlink()
    for modules in root.glob("usr/lib/modules/*"):
        do(log_directory, "chroot", str(root), "depmod", modules.name)


def _configure(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(text)
    for profile in root.glob("etc/apparmor.d/*"):
        if profile.is_file():  # of programs; to compile one takes seconds under emulation
            profile.unlink()
    (root / "payload").mkdir()
    units = root / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "multi-user.target.wants/payload.service").symlink_to("/etc/systemd/system/payload.service")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def _label(log_directory: Path, root: Path) -> None:
    """Add crisp to the policy, and label all files as it has them. The kernel here knows none, and takes any label."""
    shutil.copy(POLICY, root)
    do(log_directory, "chroot", str(root), "semodule", "-n", "-i", f"/{POLICY.name}")
    contexts = "/etc/selinux/default/contexts/files/file_contexts"
    script = f'mount -t proc proc "$0/proc" && exec chroot "$0" setfiles -F -e /proc {contexts} /'
    do(log_directory, "unshare", "--mount", "sh", "-c", script, str(root))


def _make_initrd(root: Path, initrd: Path, inside: Sequence[str]) -> None:
    tree = root / "initrd"
    modules = _boot_modules(next(root.glob("usr/lib/modules/*")))
    for name in ("bin", "dev", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    for module in modules:
        content = module.read_bytes()
        (tree / module.stem).write_bytes(lzma.decompress(content) if module.suffix == ".xz" else content)
    (tree / "init").write_text(INIT.format(modules=" ".join(module.stem for module in modules)))
    (tree / "init").chmod(0o755)
    do(
        initrd.parent,
        *inside,
        "chroot",
        str(root),
        "sh",
        "-c",
        "cd initrd && find . | busybox cpio -o -H newc > /initrd.cpio",
    )
    shutil.move(root / "initrd.cpio", initrd)
    shutil.rmtree(tree)


def _boot_modules(modules: Path) -> list[Path]:
    """The files of BOOT_MODULES and of what they need, in the order to load them; `modules` is a kernel's directory."""
    needs = dict(line.split(":") for line in (modules / "modules.dep").read_text().splitlines())
    found = [file for wanted in BOOT_MODULES for file in needs if Path(file).name.split(".")[0] == wanted]
    order = [one for file in found for one in (*reversed(needs[file].split()), file)]
    return [modules / file for file in dict.fromkeys(order)]


def _sources(machine: Machine) -> list[str]:
    """The host's own list of Debian mirrors if it runs the machine's suite, else the default ones; and the kernel's."""
    own = [str(file) for file in debian.sources(machine.suite)]
    if machine.kernel.suite == machine.suite:
        return own
    mirror = _mirror()
    return [*(own or [f"deb {mirror} {machine.suite} main"]), f"deb {mirror} {machine.kernel.suite} main"]


def _mirror() -> str:
    """Where apt has Debian from here, as far as its lists tell."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    sites = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    found = next((site for site in sites if site.rstrip("/").endswith("/debian")), "")
    if not found:
        raise GuestError("make guest: apt knows no mirror of Debian: run apt-get update")
    return found


def _platforms(machine: str) -> list[str]:
    glibcs = [f"manylinux_2_{minor}" for minor in range(36, 16, -1)]
    names = [f"{glibc}_{machine}" for glibc in (*glibcs, "manylinux2014", "linux")]
    return [argument for name in names for argument in ("--platform", name)]
