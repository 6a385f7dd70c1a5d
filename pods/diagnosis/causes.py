"""The table of causes: how each is recognised in an error or an exit, and what to do about it.

The text of an error already names its cause: it is the first line of the diagnosis, the same as the CRI client got. The
table adds a name, for programs, and a remedy. For an exit, a command that failed and a caller that gave up, the first
line is made here.
"""

from __future__ import annotations

import contextlib
import re
import signal
from dataclasses import dataclass
from typing import Final

from pods.diagnosis.troubles import Trouble
from pods.recorder.entry import Left, Life, Plugin, Ran, Refused, Said


@dataclass(frozen=True, slots=True)
class Cause:
    """`name` is one of a fixed set (docs/why.md), `text` the first line, `remedy` what to do."""

    name: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Known:
    """A row of the table: an error with one of the classes `kinds` (any class, if empty) and `pattern` in its text."""

    name: str
    kinds: frozenset[str]
    pattern: re.Pattern[str]
    remedy: str


def _known(name: str, kinds: str, pattern: str, remedy: str) -> Known:
    return Known(name, frozenset(kinds.split()), re.compile(pattern), remedy)


# The first row that fits counts.
KNOWN: Final = (
    # -- programs
    _known("wrong-architecture", "ExecFailed", "it is a program for",
           "use an image that is built for this machine (docker buildx --platform), or a node of the image's kind"),
    _known("interpreter-missing", "ExecFailed", "its interpreter|its loader",
           "install it in the image, or use a base image with the C library that the program was linked to (a glibc "
           "program does not run on Alpine's musl)"),
    _known("not-a-program", "ExecFailed", "exec format error",
           "begin the script with #! and its interpreter, or run it by one: command: [sh, /the/script]"),
    _known("program-not-executable", "ExecFailed", "permission denied",
           "chmod +x the file in the image (or defaultMode of the volume it is on), or let another user run it"),
    _known("program-missing", "ExecFailed", "no such file|not found in \\$PATH|too many levels",
           "look for it in the image: crisp run --rm IMAGE ls -l PATH; `command` replaces the image's entrypoint"),
    _known("arguments-too-long", "", "has \\d+ bytes, more than|[Aa]rgument list too long",
           "put what is long into a file (a ConfigMap volume)"),
    _known("program-missing", "", "none is given, and the image",
           "set `command` in the pod, or an entrypoint or cmd in the image"),
    _known("working-directory", "OperationFailed", "enter working directory",
           "correct workingDir, or make the directory in the image"),
    _known("user-missing", "UserNotFound", "",
           "use a number (runAsUser), or add the user or group to the image's /etc/passwd or /etc/group"),
    # -- images
    _known("image-name", "InvalidReference", "", "write [registry/]path[:tag][@digest], in small letters"),
    _known("image-credentials", "AuthenticationRequired", "",
           "give the pod an imagePullSecret for that registry, or the node a login in auth_file"),
    _known("image-missing", "ImageNotFound", "",
           "correct the name or the tag; some registries tell so of a private repository, too"),
    _known("registry-blocked", "RegistryBlocked", "",
           "take `blocked` of that registry out of registries.conf, or use another registry"),
    _known("image-policy", "SignatureRefused", "", "sign the image, or let signature_policy accept it"),
    _known("image-platform", "OtherPlatform", "", "use an image that is built for this machine"),
    _known("image-damaged", "DigestMismatch", "",
           "pull again; where it stays so, a proxy or mirror changes what it passes on"),
    _known("image-damaged", "InvalidImage", "damaged|has digest",
           "rebuild and push the image, or pull again: what came is not what its manifest promises"),
    _known("disk-full", "StorageFull", "", "make room: crisp images, crisp rmi; kubelet's image GC starts at 85 %"),
    _known("disk-full", "", "No space left on device|Disk quota exceeded",
           "make room on the file system that is named"),
    _known("not-an-image", "InvalidImage NotAnImage", "",
           "correct the name, if that is something else than an image; else rebuild and push it"),
    _known("registry-tls", "RegistryUnavailable", "(?i)certificate|tls|ssl",
           "put the registry's authority into registry_certs_dirs/HOST/ca.crt, or renew its certificate"),
    _known("registry-name", "RegistryUnavailable", "name resolution|Name or service not known|No address associated",
           "correct the registry's name, or the node's DNS (/etc/resolv.conf)"),
    _known("registry-unavailable", "RegistryUnavailable", "",
           "see whether the registry answers from this node; a mirror in registries.conf helps against outages"),
    _known("image-not-here", "NotFound", "is not on this node",
           "pull it: crisp pull IMAGE (imagePullPolicy: Never needs it there before)"),
    _known("image-in-use", "ImageInUse ImageReadOnly", "", "remove the containers that use it first"),
    _known("registries-conf", "InvalidConfiguration", "", "correct the file that is named"),
    # -- network
    _known("no-address", "PluginFailed", "(?i)no (more )?(ip addresses|addresses|free)|exhausted",
           "the pod network's range is used up: widen it, or free leases of pods that are gone (/var/lib/cni)"),
    _known("network-later", "PluginFailed", "code 11\\b",
           "the plugin wants to be asked again later: see whether its agent runs on this node"),
    _known("network-plugin-missing", "PluginNotFound", "",
           "install the plugin in one of cni_bin_dirs (Debian: containernetworking-plugins)"),
    _known("network-not-ready", "NetworkNotReady", "",
           "put a CNI configuration into cni_conf_dir: the network's own agent does when it runs"),
    _known("network-plugin", "PluginFailed InvalidAttachment NetworkError", "",
           "the words are the plugin's own; try `crisp doctor`, and the log of the network's agent"),
    # -- mounts
    _known("mount-file-directory", "WrongMountPoint", "the source is a",
           "mount a file on a file and a directory on a directory (subPath picks a file of a volume)"),
    _known("mount-target", "WrongMountPoint", "",
           "correct mountPath: a part of it is a file in the image"),
    _known("image-sub-path", "ImageVolumeInvalid", "image_sub_path",
           "correct subPath: the image that is mounted has no such directory"),
    _known("image-not-here", "ImageVolumeNotFound", "",
           "have kubelet pull it (pullPolicy of the volume), or `crisp pull` it"),
    _known("mount-propagation", "", "propagation|not shared|shared mount",
           "make the host's mount shared: mount --make-rshared PATH"),
    _known("idmap-unsupported", "", "id-?map(ped)? |mount_setattr",
           "keep the volume on a file system that can be id-mapped (ext4, xfs, btrfs, tmpfs from Linux 6.3), or set "
           "hostUsers: true"),
    _known("recursive-read-only", "RecursiveReadOnlyUnsupported", "",
           "set recursiveReadOnly: IfPossible, or use a newer kernel"),
    _known("mount-source", "", "bind mount source|host_path: make directory|config\\.mounts\\[\\d+\\]\\.host_path",
           "correct the path on the node (hostPath): it is a file, a loop of links, or on a disk that does not answer"),
    _known("mount-target", "OperationFailed", "^start container \\w+: mount ",
           "correct mountPath, or mount on a place that exists: below /proc and /sys nothing can be made"),
    _known("read-only", "", "Read-only file system",
           "mount a volume (emptyDir) where something is written, or let the file system be writable"),
    _known("device", "", "config\\.devices|CDI",
           "look whether the device is there (ls -l), its driver loaded, and its CDI spec in cdi_spec_dirs"),
    # -- limits
    _known("memory-too-small", "", "is less than a container's start takes|set memory limit",
           "raise the memory limit (resources.limits.memory)"),
    _known("cpuset", "", "cpuset_(cpus|mems)",
           "correct the cpuset: kubelet's CPU manager has a state file of another machine, or CPUs went offline"),
    _known("cgroup-controller", "", "cgroup controller|the node has cgroup v1|no \\w+ controller",
           "enable the controller (cgroup_enable= on the kernel's command line, Delegate=yes of the unit)"),
    _known("limit-invalid", "", "config\\.linux\\.resources",
           "correct the limit: the kernel takes no such value"),
    # -- rights
    _known("seccomp-profile", "", "\\.seccomp|seccomp (filter|profile)",
           "put the profile (JSON) where localhostProfile says, below kubelet's seccomp directory, on every node"),
    _known("apparmor", "", "\\.apparmor|AppArmor",
           "load the profile on this node (apparmor_parser -r), or do not ask for one where AppArmor is off"),
    _known("selinux", "", "SELinux|\\.selinux",
           "correct seLinuxOptions, or load the policy that has these types"),
    _known("sysctl", "", "config\\.linux\\.sysctls",
           "correct the name: only sysctls of the pod's own namespaces can be set, and the kernel must have them"),
    _known("user-namespace", "", "user namespace|userns_options",
           "set hostUsers: true, or keep images on a file system that can be id-mapped"),
    # -- names and states
    _known("name-held", "AlreadyExists", "", "remove the holder that is named: crisp rm -f ID"),
    _known("handler-missing", "", "^runtime_handler: ",
           "configure the handler (runtime_handlers), or correct the RuntimeClass"),
    _known("exec-timeout", "DeadlineExceeded", "",
           "give the probe more time (timeoutSeconds), or the container more CPU"),
    _known("not-running", "FailedPrecondition NotRunning", "exited|created|not ready|is gone",
           "look why it ended: its own line in the timeline"),
    _known("not-found", "NotFound", "", "it has been removed; crisp ps -a and crisp pods tell what there is"),
    _known("hook", "", "hook #|hook `|read hook|error running",
           "the hook's own words are in the message; hooks lie in hooks_dirs"),
    _known("nri", "", "\\bNRI: ", "see the plugin's log, or stop it"),
    _known("pod-lost", "", "lost its shim",
           "see who killed it: the node's OOM killer (dmesg), or somebody with root; kubelet makes the pod anew"),
    _known("invalid-request", "InvalidArgument Unimplemented", "", "correct the field that is named"),
)  # fmt: skip

# The names that no row of the table has: of exits, of commands, of calls that were left.
OTHERS: Final = frozenset(
    (
        "out-of-memory", "library-missing", "command-not-found", "command-not-executable", "seccomp-killed", "crashed",
        "killed", "exit-code", "stopped", "command-failed", "deadline", "other", "none",
    )
)  # fmt: skip
_OTHER: Final = "see the timeline, and crispd's log: journalctl -u crispd"
# The words of loaders: glibc's, musl's.
_LIBRARY: Final = re.compile(r"error while loading shared libraries: |Error loading shared library |Error relocating ")
_CRASHES: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
_SIGNAL: Final = 128  # and the signal's number is the exit code of a program that one ended


def of(trouble: Trouble) -> Cause:
    """Return the cause of a trouble."""
    match trouble.entry:
        case Refused() as entry:
            return of_error(entry.kinds, entry.text)
        case Plugin() as entry:
            return of_error(("PluginFailed",), entry.failure)
        case Left() as entry:
            return _of_left(entry, trouble.during)
        case Life() as entry:
            return _of_exit(entry, trouble)
        case Ran() as entry:
            return _of_command(entry)
        case Said() as entry:
            return of_error((), entry.text)
        case entry:
            return Cause("other", str(entry), _OTHER)


def of_error(kinds: tuple[str, ...], text: str) -> Cause:
    """Return the cause of an error with these classes and this text."""
    for known in KNOWN:
        if (not known.kinds or known.kinds.intersection(kinds)) and known.pattern.search(text):
            return Cause(known.name, text, known.remedy)
    return Cause("other", text, _OTHER)


def exit_text(entry: Life) -> str:
    """Say how a container ended."""
    if entry.reason == "OOMKilled":
        return f"out of memory (exit code {entry.code}{', ' if entry.detail else ''}{entry.detail})"
    if (name := _signal(entry.code)) is not None:
        return f"exit code {entry.code}, {name.name}"
    return f"exit code {entry.code}"


def _of_left(entry: Left, during: str) -> Cause:
    text = f"{entry.call}: its caller gave up after {entry.took / 1e9:.1f} s"
    remedy = "speed that up, or give kubelet more time (--runtime-request-timeout)"
    return Cause("deadline", f"{text}; {during}" if during else text, remedy)


def _of_exit(entry: Life, trouble: Trouble) -> Cause:
    text = f"container {entry.about!r} ended: {exit_text(entry)}"
    if trouble.stopped_by:
        remedy = "nothing, if it was to be stopped; SIGKILL (137) means that it did not end within its grace period"
        return Cause("stopped", f"{text}, by a stop ({trouble.stopped_by})", remedy)
    said = f": {trouble.output}" if trouble.output else ""
    if entry.reason == "OOMKilled":
        return Cause("out-of-memory", text, "raise the memory limit, or find what takes the memory: crisp stats")
    if entry.code == 127 and _LIBRARY.search(trouble.output):
        return Cause("library-missing", text + said, "install the library in the image, or LD_LIBRARY_PATH to it")
    if entry.code == 127:
        return Cause("command-not-found", text + said, "the shell found no such command: install it, or correct PATH")
    if entry.code == 126:
        return Cause("command-not-executable", text + said, "chmod +x what the shell was to run")
    name = _signal(entry.code)
    if name is signal.SIGSYS:
        remedy = "let the seccomp profile have the call: the kernel's log (dmesg, SECCOMP) has its number"
        return Cause("seccomp-killed", f"{text}: the seccomp profile forbids a call that it made", remedy)
    if name in _CRASHES:
        return Cause("crashed", text + said, "debug the program: crisp logs, and its core dump if there is one")
    if name is signal.SIGKILL:
        remedy = "see who sent it: the node's own OOM killer (dmesg), or somebody with root; it was not crisp"
        return Cause("killed", text + said, remedy)
    return Cause("exit-code", text + said, "the program ended by itself: crisp logs has its words")


def _of_command(entry: Ran) -> Cause:
    text = f"command {entry.command!r} in container {entry.about!r} failed: exit code {entry.code}"
    remedy = "try it: crisp exec -s CONTAINER ...; kubelet restarts a container that fails its liveness probe"
    return Cause("command-failed", text, remedy)


def _signal(code: int) -> signal.Signals | None:
    with contextlib.suppress(ValueError):
        return signal.Signals(code - _SIGNAL)
    return None
