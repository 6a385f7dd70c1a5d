"""The table of causes: how to recognise each one in an error or an exit, and what to do.

The first line of a diagnosis is the error's text, as the CRI client got it. The table adds a name, for programs, and a
remedy. For exits, failed commands and callers that gave up, this module makes the first line.
"""

from __future__ import annotations

import contextlib
import re
import signal
from dataclasses import dataclass, replace
from typing import Final

from pods.clues import denials, files, ports
from pods.clues.kernel_log import NODE_FULL
from pods.diagnosis.troubles import Trouble
from pods.recorder.entry import Left, Life, Plugin, Ran, Refused, Runs, Said


@dataclass(frozen=True, slots=True)
class Cause:
    """`name`: one of a fixed set (docs/why.md). `text`: the first line. `remedy`: what to do."""

    name: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Known:
    """A row of the table: matches errors of the classes `kinds` (any, if empty) whose text has `pattern`."""

    name: str
    kinds: frozenset[str]
    pattern: re.Pattern[str]
    remedy: str


def _known(name: str, kinds: str, pattern: str, remedy: str) -> Known:
    return Known(name, frozenset(kinds.split()), re.compile(pattern), remedy)


_RELABEL: Final = (
    "label the volume for containers (chcon -R -t container_file_t on the node, or a volume that kubelet relabels); if "
    "crispd is what was denied, load deploy/selinux/crisp.cil, or set selinux = false"
)
# The first matching row wins.
KNOWN: Final = (
    # -- what others said: their words could be anything
    _known("hook", "HookFailed", "", "the message has the hook's output; fix or remove the hook in hooks_dirs"),
    _known("nri", "NriError CallRefused PluginGone WireError", "", "read the plugin's log, or stop the plugin"),
    # -- programs
    _known("program-hidden", "ExecFailed", "the volume on `",
           "mount the volume elsewhere, or put the program into it: a volume hides what the image has at its place"),
    _known("wrong-architecture", "ExecFailed", "it is a program for|is no program that",
           "use an image for this machine's architecture (docker buildx --platform), or another node"),
    _known("not-a-program", "ExecFailed", "byte order mark|in UTF-16|after white space",
           "save the script as UTF-8 without a byte order mark, beginning with #!"),
    _known("not-a-program", "ExecFailed", "exec format error",
           "begin the script with #! and its interpreter, or run it with one: command: [sh, /the/script]"),
    _known("selinux", "ExecFailed", denials.DENIED, _RELABEL),
    _known("program-not-executable", "ExecFailed", "lets nobody execute",
           "set the volume's defaultMode to 0755 (ConfigMap, Secret), or chmod +x the file in the image"),
    _known("program-not-executable", "ExecFailed", "permission denied",
           "chmod +x the file in the image (or set the volume's defaultMode), or run it as another user"),
    _known("interpreter-missing", "ExecFailed", "carriage return",
           "save the script with the line ends of Unix (dos2unix)"),
    _known("interpreter-missing", "ExecFailed", "its interpreter|its loader",
           "install it in the image, or use a base image with the C library that the program was linked to (a glibc "
           "program does not run on Alpine's musl)"),
    _known("program-missing", "ExecFailed", "it is one word, with spaces",
           "make each word an item of its own: command: [httpd, -f], or let a shell split it: "
           "command: [sh, -c, httpd -f]"),
    _known("program-missing", "ExecFailed", "no such file|not found in \\$PATH|too many levels",
           "look for it in the image: crisp run --rm IMAGE ls -l PATH; `command` replaces the image's entrypoint"),
    _known("arguments-too-long", "", "has \\d+ bytes, more than|[Aa]rgument list too long",
           "move the long value into a file (a ConfigMap volume)"),
    _known("program-missing", "", "none is given, and the image",
           "set `command` in the pod, or an entrypoint or cmd in the image"),
    _known("working-directory", "OperationFailed", "enter working directory",
           "correct workingDir, or create the directory in the image"),
    _known("user-missing", "UserNotFound", "",
           "use a number (runAsUser), or add the user or group to the image's /etc/passwd or /etc/group"),
    # -- images
    _known("image-name", "InvalidReference", "", "write [registry/]path[:tag][@digest], in lower case"),
    _known("image-credentials", "AuthenticationRequired", "refused the credentials|credentials were sent",
           "correct the login in the imagePullSecret (or the node's auth_file): its name, its password, or its right "
           "to this repository"),
    _known("image-credentials", "AuthenticationRequired", "",
           "add an imagePullSecret for the registry to the pod, or a login to the node's auth_file"),
    _known("image-missing", "ImageNotFound", "",
           "correct the name or the tag; some registries answer so for a private repository, too: add credentials"),
    _known("registry-blocked", "RegistryBlocked", "",
           "remove the registry's `blocked` from registries.conf, or use another registry"),
    _known("image-policy", "SignatureRefused", "", "sign the image, or change signature_policy to accept it"),
    _known("image-platform", "OtherPlatform", "", "use an image that is built for this machine"),
    _known("image-damaged", "DigestMismatch", "",
           "pull again; if that fails too, a proxy or mirror changes the data"),
    _known("image-damaged", "InvalidImage", "damaged|has digest",
           "pull again; if that fails too, rebuild and push the image: its data does not match its manifest"),
    _known("disk-full", "StorageFull", "",
           "free disk space: crisp images, crisp rmi; kubelet's image GC starts at 85 %"),
    _known("disk-full", "", "No space left on device|Disk quota exceeded",
           "free space on the file system named in the message"),
    _known("not-an-image", "InvalidImage NotAnImage", "",
           "correct the name, if it names something other than an image; otherwise rebuild and push the image"),
    _known("registry-tls", "RegistryUnavailable", "plain http",
           "set insecure = true for the registry in registries.conf if it has no TLS, or correct its port"),
    _known("registry-tls", "RegistryUnavailable", "(?i)certificate|tls|ssl",
           "put the registry's certificate authority into registry_certs_dirs/HOST/ca.crt, or renew "
           "the registry's certificate"),
    _known("registry-name", "RegistryUnavailable", "name resolution|Name or service not known|No address associated",
           "correct the registry's name, or the node's DNS (/etc/resolv.conf)"),
    _known("registry-unavailable", "RegistryUnavailable", "",
           "check that the registry answers from this node; configure a mirror in registries.conf against outages"),
    _known("image-not-here", "NotFound", "is not on this node",
           "pull it: crisp pull IMAGE (with imagePullPolicy: Never, before the pod starts)"),
    _known("image-in-use", "ImageInUse ImageReadOnly", "", "remove the containers that use it first"),
    _known("registries-conf", "InvalidConfiguration", "", "correct the file named in the message"),
    # -- network
    _known("no-address", "PluginFailed", "(?i)no (more )?(ip addresses|addresses|free)|exhausted",
           "the pod network has no free address: widen its range, or free the leases of removed pods (/var/lib/cni)"),
    _known("network-later", "PluginFailed", "code 11\\b",
           "the plugin asks to retry later: check that its agent runs on this node"),
    _known("network-plugin-missing", "PluginNotFound", "",
           "install the plugin in one of cni_bin_dirs (Debian: containernetworking-plugins)"),
    _known("network-not-ready", "NetworkNotReady", "",
           "put a CNI configuration into cni_conf_dir; a network plugin's agent does this when it runs"),
    _known("network-plugin", "PluginFailed InvalidAttachment NetworkError", "",
           "the message is the plugin's; run `crisp doctor`, and read the log of the network's agent"),
    # -- what does not answer
    _known("shim-silent", "", "shim \\(pid [^)]*\\) does not answer",
           "continue the shim (kill -CONT), repair the file system that holds it, or delete the pod, which ends it"),
    _known("volume-silent", "", "server of a network or FUSE file system",
           "repair the volume's server, or unmount it: umount -f"),
    _known("nri-plugin-missing", "", "NRI plugins? .*pods need",
           "start the plugin, or remove it from nri_plugins"),
    # -- mounts
    _known("mount-file-directory", "WrongMountPoint", "the source is a directory",
           "correct subPath: for one that the volume lacks, such as a mistyped key of a ConfigMap, kubelet makes an "
           "empty directory; or mount the directory on a directory"),
    _known("mount-file-directory", "WrongMountPoint", "the source is a",
           "mount a file on a file and a directory on a directory (subPath picks a file of a volume)"),
    _known("mount-target", "WrongMountPoint", "",
           "correct mountPath: one of its directories is a file in the image"),
    _known("image-sub-path", "ImageVolumeInvalid", "image_sub_path",
           "correct subPath: the mounted image has no such directory"),
    _known("image-not-here", "ImageVolumeNotFound", "",
           "set the volume's pullPolicy so that kubelet pulls it, or run `crisp pull`"),
    _known("mount-propagation", "", "propagation|not shared|shared mount",
           "make the host's mount shared: mount --make-rshared PATH"),
    _known("idmap-unsupported", "", "id-?map(ped)? |mount_setattr",
           "put the volume on a file system that supports id-mapped mounts (ext4, xfs, btrfs, tmpfs "
           "from Linux 6.3), or set "
           "hostUsers: true"),
    _known("recursive-read-only", "RecursiveReadOnlyUnsupported", "",
           "set recursiveReadOnly: IfPossible, or use a newer kernel"),
    _known("mount-source", "", "bind mount source|host_path: make directory|config\\.mounts\\[\\d+\\]\\.host_path",
           "correct the path on the node (hostPath): it is a file, a loop of links, or on a disk with errors"),
    _known("mount-target", "OperationFailed", "^start container \\w+: mount ",
           "correct mountPath, or use an existing directory: nothing can be created below /proc and /sys"),
    _known("read-only", "", "Read-only file system",
           "mount a volume (emptyDir) where the program writes, or make the file system writable"),
    _known("device", "", "config\\.devices|CDI",
           "check that the device exists (ls -l), that its driver is loaded, and that its CDI spec "
           "is in cdi_spec_dirs"),
    # -- limits
    _known("memory-too-small", "", "is less than a container's start takes|set memory limit",
           "raise the memory limit (resources.limits.memory)"),
    _known("cpuset", "", "cpuset_(cpus|mems)",
           "correct the cpuset: kubelet's CPU manager has another machine's state file, or CPUs went offline"),
    _known("cgroup-controller", "", "cgroup controller|the node has cgroup v1|no \\w+ controller",
           "enable the controller (cgroup_enable= on the kernel's command line, Delegate=yes of the unit)"),
    _known("limit-invalid", "", "config\\.linux\\.resources",
           "correct the limit: the kernel does not accept this value"),
    # -- rights
    _known("seccomp-profile", "", "\\.seccomp|seccomp (filter|profile)",
           "put the profile (JSON) at localhostProfile below kubelet's seccomp directory, on every node"),
    _known("apparmor", "", "\\.apparmor|AppArmor|apply label `[^`:]+`",
           "load the profile on this node (apparmor_parser -r), or request none if AppArmor is off"),
    _known("selinux", "", "SELinux|\\.selinux|apply label `[^`]+:[^`]+`",
           "correct seLinuxOptions, or load the policy that has these types"),
    _known("sysctl", "", "config\\.linux\\.sysctls: set sysctl .*(Invalid argument|out of range|too large)",
           "correct the value, which the kernel does not accept (several numbers have spaces between them)"),
    _known("sysctl", "", "config\\.linux\\.sysctls",
           "correct the name: a pod can set only sysctls of its own namespaces that the kernel has"),
    _known("user-namespace", "", "user namespace|userns_options",
           "set hostUsers: true, or put the image store on a file system that supports id-mapped mounts"),
    # -- names and states
    _known("name-held", "AlreadyExists", "", "remove the object named in the message: crisp rm -f ID"),
    _known("handler-missing", "", "^runtime_handler: ",
           "configure the handler (runtime_handlers), or correct the RuntimeClass"),
    _known("exec-timeout", "DeadlineExceeded", "",
           "give the probe more time (timeoutSeconds), or the container more CPU"),
    _known("not-running", "FailedPrecondition NotRunning", "exited|created|not ready|is gone",
           "find out why it ended: see its exit in the timeline"),
    _known("not-found", "NotFound", "", "it is removed; crisp ps -a and crisp pods list what exists"),
    _known("hook", "", "hook #|hook `|read hook|error running",
           "the message has the hook's output; fix or remove the hook in hooks_dirs"),
    _known("nri", "", "\\bNRI: ", "read the plugin's log, or stop the plugin"),
    _known("pod-lost", "", "lost its shim",
           "find out who killed it: the node's OOM killer (dmesg), or a user with root; kubelet recreates the pod"),
    _known("invalid-request", "InvalidArgument Unimplemented", "", "correct the field named in the message"),
)  # fmt: skip

# Names that are not in the table: of exits, commands, and abandoned calls.
OTHERS: Final = frozenset(
    (
        "out-of-memory", "library-missing", "command-not-found", "command-not-executable", "seccomp-killed", "crashed",
        "killed", "exit-code", "stopped", "command-failed", "deadline", "other", "none", "ends-well", "restarted",
        "command-runs", "stopping", "port-taken", "starting",
    )
)  # fmt: skip
_OTHER: Final = "see the timeline, and crispd's log: journalctl -u crispd"
# Messages of the dynamic loaders of glibc and musl.
_LIBRARY: Final = re.compile(r"error while loading shared libraries: |Error loading shared library |Error relocating ")
# Lines of a stack trace, or after one, which do not say what went wrong.
_FRAME: Final = re.compile(
    r"\s|at |\.\.\. |\S+\(.*\)$|goroutine \d|created by |Traceback |stack backtrace|note: run with|exit status |"
    r"Node\.js v\d|\^|[}\])]+;?$"
)
# Of another program that does not answer; what is written after it seldom says more.
_PEER: Final = re.compile(
    r"(?i)connection refused|ECONNREFUSED|no route to host|network is unreachable|name resolution|bad address '|"
    r"name or service not known|no such host|ENOTFOUND|(connection|i/o|operation) timed? ?out"
)
_READ_ONLY: Final = re.compile(r"Read-only file system|EROFS", re.IGNORECASE)
_CRASHES: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
_SIGNAL: Final = 128  # plus the signal's number: the exit code of a program killed by a signal


def of(trouble: Trouble) -> Cause:
    """Return the cause of a trouble."""
    match trouble.entry:
        case Refused() as entry:
            cause = of_error(entry.kinds, entry.text)
            return replace(cause, text=cause.text + _then(trouble))
        case Plugin() as entry:
            return of_error(("PluginFailed",), entry.failure)
        case Left() as entry:
            return _of_left(entry, trouble.during)
        case Life(event="begun") as entry:
            return _of_begun(trouble.during)
        case Life() as entry:
            return _of_exit(entry, trouble)
        case Ran() as entry:
            return _of_command(entry, trouble)
        case Runs() as entry:
            return _of_running(entry)
        case Said() as entry if trouble.stopped_by:
            text = f"container {entry.about!r} has not ended since it was told to ({trouble.stopped_by})"
            remedy = (
                "have the program end on that signal (a container's first process ignores what it does not handle), "
                "or give it less time: terminationGracePeriodSeconds, kubectl delete --grace-period"
            )
            return Cause("stopping", text, remedy)
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
    if entry.reason == "OOMKilled" and entry.code != _SIGNAL + signal.SIGKILL:
        limit = f" ({entry.detail})" if entry.detail else ""
        return f"exit code {entry.code}, and another process than its first was killed for lack of memory{limit}"
    if entry.reason == "OOMKilled":
        return f"out of memory (exit code {entry.code}{', ' if entry.detail else ''}{entry.detail})"
    if (name := _signal(entry.code)) is not None:
        return f"exit code {entry.code}, {name.name}"
    return f"exit code {entry.code}"


def _of_begun(during: str) -> Cause:
    told = f": {during}" if during else ""
    remedy = "see why it takes long: the log of a network plugin's agent on this node, or a slow disk"
    return Cause("starting", f"the pod's sandbox is still being made{told}", remedy)


def _of_left(entry: Left, during: str) -> Cause:
    text = f"{entry.call}: its caller gave up after {entry.took / 1e9:.1f} s"
    remedy = "speed this up, or raise kubelet's --runtime-request-timeout"
    if "not ended" in during:
        remedy = "see why it does not end: the log of a network plugin's agent on this node, or a slow disk"
    return Cause("deadline", f"{text}; {during}" if during else text, remedy)


def _of_exit(entry: Life, trouble: Trouble) -> Cause:
    text = f"container {entry.about!r} ended: {exit_text(entry)}"
    if trouble.stopped_by and trouble.times > 1:
        text = f"container {entry.about!r} was stopped and started again ({trouble.stopped_by})"
        remedy = "see kubectl describe pod: kubelet does so if a liveness or startup probe or a postStart hook fails"
        return Cause("restarted", text, remedy)
    if trouble.stopped_by:
        remedy = "none, if the stop was intended; SIGKILL (137) means that it did not end within its grace period"
        return Cause("stopped", f"{text}, by a stop ({trouble.stopped_by})", remedy)
    clue = f"; {trouble.clue}" if trouble.clue else ""
    said = f": {headline(trouble.output, denied=bool(clue))}" if trouble.output else ""
    if entry.reason == "OOMKilled":
        first = entry.code == _SIGNAL + signal.SIGKILL
        remedy = "raise the memory limit, or find out what uses the memory: crisp stats, while it runs"
        if NODE_FULL in clue:
            remedy = "find out what fills the node's memory (crisp stats): the pod may be within its own limit"
        return Cause("out-of-memory", text + clue + ("" if first else said), remedy)
    said += clue
    if not entry.code:
        remedy = (
            "if it should go on, give it a command that stays in the foreground (a shell without input ends at once); "
            "if it has done its work: restartPolicy: OnFailure, or a Job"
        )
        return Cause("ends-well", f"{text}, again and again: its program ends by itself, without an error", remedy)
    if entry.code == 127 and _LIBRARY.search(trouble.output):
        remedy = "install the library in the image, or set LD_LIBRARY_PATH to its directory"
        return Cause("library-missing", text + said, remedy)
    if entry.code == 127:
        remedy = "the shell did not find the command: install it, or correct PATH"
        return Cause("command-not-found", text + said, remedy)
    if entry.code == 126:
        return Cause("command-not-executable", text + said, "chmod +x the file that the shell should run")
    if ports.TAKEN.search(trouble.output):
        remedy = "use another port, here or there"
        if not clue:
            remedy = "use another port; ss -ltnp shows who has it (on the node if the pod has hostNetwork: true)"
        return Cause("port-taken", text + said, remedy)
    if files.FULL.search(trouble.output):
        remedy = "free space there, or give it more: an emptyDir's sizeLimit, a volume's size, the node's disk"
        return Cause("disk-full", text + said, remedy)
    if _READ_ONLY.search(trouble.output):
        remedy = "mount a volume (emptyDir) where the program writes, or lift readOnlyRootFilesystem or readOnly"
        return Cause("read-only", text + said, remedy)
    name = _signal(entry.code)
    if name is signal.SIGSYS:
        remedy = "allow the system call in the seccomp profile: the kernel's log (dmesg, SECCOMP) has its number"
        call = trouble.denied or "a call that it made"
        return Cause("seccomp-killed", f"{text}: the seccomp profile forbids {call}{clue}", remedy)
    if name in _CRASHES:
        return Cause("crashed", text + said, "debug the program: see crisp logs, and its core dump if there is one")
    if name is signal.SIGKILL:
        remedy = "find out who sent it: the node's OOM killer (dmesg), or a user with root; crisp did not"
        return Cause("killed", text + said, remedy)
    if trouble.denied:
        said = f"{said} (before, its seccomp profile denied {trouble.denied})"
    remedy = "the program ended by itself: see crisp logs for its output"
    if denials.DENIED in clue:
        return Cause("selinux", text + said, _RELABEL)
    if clue:
        remedy = "let this user in: chown or chmod it in the image, set the pod's fsGroup, or another runAsUser"
        if files.ON_NODE in clue:
            remedy = "let this user in: the pod's fsGroup (which hostPath volumes ignore), chown or chmod on the node"
    elif files.DENIED.search(said):
        remedy = f"{remedy}; compare the owner and mode of what it names with the container's user (runAsUser, fsGroup)"
    return Cause("exit-code", text + said, remedy)


def headline(output: str, *, denied: bool = False) -> str:
    """Return the line of a program's last ones that says most: the last that is none of a stack trace.

    `denied`: more is known of a permission that was denied.
    """
    lines = output.split("\n")
    patterns = (_LIBRARY, _PEER, ports.TAKEN, files.FULL, _READ_ONLY, *([files.DENIED] if denied else ()))
    known = [line for line in lines if any(pattern.search(line) for pattern in patterns)]
    telling = known or [line for line in lines if not _FRAME.match(line)]
    return (telling or lines)[-1].strip()


def _of_command(entry: Ran, trouble: Trouble) -> Cause:
    text = f"command {entry.command!r} in container {entry.about!r} failed: exit code {entry.code}"
    text += (f": {entry.words}" if entry.words else "") + _then(trouble)
    remedy = "try it: crisp exec -s CONTAINER ...; kubelet restarts a container whose liveness probe fails"
    if trouble.stopped_by:
        remedy = (
            "correct the postStart hook, or the liveness or startup probe, that ran it: kubelet restarts a container "
            "for which one fails"
        )
    return Cause("command-failed", text, remedy)


def _of_running(entry: Runs) -> Cause:
    text = f"command {entry.command!r} in container {entry.about!r} has not ended, and has no time limit"
    remedy = (
        "correct it, if it is a hook: kubelet waits for a postStart hook, and before a pod's end for a preStop hook "
        "until the grace period is over (kubectl delete --grace-period=1 shortens it)"
    )
    return Cause("command-runs", text, remedy)


def _then(trouble: Trouble) -> str:
    return f"; then the container was stopped ({trouble.stopped_by})" if trouble.stopped_by else ""


def _signal(code: int) -> signal.Signals | None:
    with contextlib.suppress(ValueError):
        return signal.Signals(code - _SIGNAL)
    return None
