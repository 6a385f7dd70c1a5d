"""Which trouble counts, and what it is called: pure functions over a recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from pods.diagnosis import causes, troubles
from pods.diagnosis.bulletin import Bulletins
from pods.diagnosis.inquiry import Present, find, inquire
from pods.errors import InvalidArgument, NotFound
from pods.life import last_words
from pods.recorder.entry import CLUE, Answered, Entry, Left, Life, Plugin, Ran, Refused, Runs, Said, Step, Wrote
from pods.recorder.recording import Recording, Subject, about_image

_PAGE = Path(__file__).parents[2] / "docs/why.md"


def _refused(at: int, call: str, about: str = "", text: str = "it failed") -> Refused:
    return Refused(at, about, call, "INTERNAL", ("PodError",), text, 0)


def _worst(*entries: Entry) -> Entry | None:
    found = troubles.worst(entries)
    return None if found is None else found.entry


def test_what_was_made_good_is_no_trouble() -> None:
    pull, run = _refused(1, "PullImage"), _refused(2, "RunPodSandbox")
    create = _refused(3, "CreateContainer", "main")
    assert _worst(pull, run, create) == create
    assert _worst(pull, create, Life(4, "main", "c", "started")) == pull
    assert _worst(pull, Answered(4, "", "PullImage", 1)) is None
    assert _worst(run, Life(4, "", "s", "started")) is None
    assert _worst(Ran(1, "main", "probe", 1, 1), Ran(2, "main", "probe", 0, 1)) is None


def test_an_exit_weighs_more_than_a_probe_and_a_stop_less() -> None:
    exited, probe = Life(1, "main", "c", "stopped", 3, "Error"), Ran(2, "main", "probe", 1, 1)
    assert _worst(exited, probe) == exited
    stopped = troubles.worst([Said(1, "main", "info", "stop: SIGTERM, with 10 s to end"), exited, probe])
    assert stopped is not None
    assert stopped.entry == probe
    ended = Life(3, "main", "c", "stopped", 0, "Completed")
    assert _worst(exited, Life(2, "main", "d", "started"), ended) is None
    assert _worst(Life(1, "main", "c", "stopped", 128, "StartError")) is None  # the call's refusal tells of it


_SECOND = 1_000_000_000


def _cause(*entries: Entry, now: int = 0) -> causes.Cause:
    trouble = troubles.worst(entries, now)
    assert trouble is not None
    return causes.of(trouble)


def test_the_hook_or_probe_that_a_stop_is_for_is_the_cause() -> None:
    hook = Ran(10 * _SECOND, "main", "cp (arguments: 2)", 1, 5, words="cp: no such file")
    stop = Said(10 * _SECOND + 5, "main", "info", "stop: SIGTERM, with 1 s to end")
    ended = Life(11 * _SECOND, "main", "c", "stopped", 143, "Error")
    found = _cause(hook, stop, ended)
    assert found.name == "command-failed"
    assert "exit code 1: cp: no such file; then the container was stopped (SIGTERM, with 1 s to end)" in found.text
    probe = _refused(10 * _SECOND, "ExecSync", "main", "exec in container c: 'sh' did not end within 2 s")
    assert "did not end within 2 s; then the container was stopped" in _cause(probe, stop, ended).text
    assert _cause(Ran(7 * _SECOND, "main", "cp", 1, 5), stop, ended).name == "stopped"  # that was another matter
    assert _cause(Ran(10 * _SECOND, "other", "cp", 1, 5), stop, ended).name == "stopped"


def test_what_ends_or_is_stopped_again_and_again_is_a_trouble_though_it_ends_well() -> None:
    first, second = (Life(at, "main", f"c{at}", "stopped", 0, "Completed") for at in (2, 4))
    assert _worst(first) is None
    assert _cause(first, Life(3, "main", "c4", "started"), second).name == "ends-well"
    assert _worst(first, Life(3, "", "t", "created"), second) is None  # an init container of another sandbox
    assert _worst(first, second, Life(5, "main", "c5", "stopped", 1, "Error"), Life(6, "main", "c6", "stopped")) is None
    stops = [Said(at, "main", "info", "stop: SIGTERM, with 1 s to end") for at in (1, 3)]
    assert _worst(stops[0], first) is None
    assert _cause(stops[0], first, stops[1], second).name == "restarted"


def test_what_fails_while_a_container_goes_on_is_worse_than_how_an_earlier_one_ended() -> None:
    ended, started = Life(1, "main", "c", "stopped", 137, "OOMKilled"), Life(2, "main", "d", "started")
    probe = Ran(200 * _SECOND, "main", "sh (arguments: 2)", 137, 5)
    assert _cause(ended, started, probe, now=60 * _SECOND).name == "out-of-memory"
    assert _cause(ended, started, probe, now=201 * _SECOND).name == "command-failed"
    assert _cause(ended, started, now=201 * _SECOND).name == "out-of-memory"


def test_what_is_under_way_for_long_is_told_of() -> None:
    begun = Life(_SECOND, "", "s", "begun"), Plugin(2 * _SECOND, "", "ADD", "bridge", 5)
    found = _cause(*begun, now=12 * _SECOND)
    assert (found.name, found.text.endswith("the last that was done is network plugin 'bridge' (ADD)")) == (
        "starting", True
    )  # fmt: skip
    assert troubles.worst(begun, 10 * _SECOND) is None
    assert troubles.worst([*begun, Life(3 * _SECOND, "", "s", "created")], 90 * _SECOND) is None
    plugin = Runs(3 * _SECOND, "", "network plugin 'calico' (ADD)", 0)
    assert _cause(*begun, plugin, now=12 * _SECOND).text.endswith("network plugin 'calico' (ADD), which runs for 9 s")
    runs = Runs(_SECOND, "main", "sh (arguments: 2)", 0)
    assert _cause(runs, now=12 * _SECOND).name == "command-runs"
    assert troubles.worst([runs], 10 * _SECOND) is None
    assert troubles.worst([Runs(_SECOND, "main", "sh", 60)], 50 * _SECOND) is None  # a probe
    stop = Said(_SECOND, "main", "info", "stop: SIGTERM, with 7200 s to end")
    found = _cause(stop, now=12 * _SECOND)
    assert (found.name, "SIGTERM, with 7200 s" in found.text) == ("stopping", True)
    assert troubles.worst([stop], 10 * _SECOND) is None
    assert troubles.worst([stop, Life(2 * _SECOND, "main", "c", "stopped", 0, "Completed")], 90 * _SECOND) is None


def test_a_process_that_was_killed_for_memory_is_not_the_first_one_if_that_ended_otherwise() -> None:
    ended = Life(2, "main", "c", "stopped", 1, "OOMKilled", "memory limit 1024 bytes")
    found = _cause(Wrote(1, "main", "import did not end well"), ended)
    assert found.name == "out-of-memory"
    assert "exit code 1, and another process than its first was killed" in found.text
    assert "memory limit 1024 bytes" in found.text
    assert found.text.endswith("import did not end well")


_JAVA = """starting
Exception in thread "main" java.lang.IllegalStateException: DB_URL is not set
\tat shop.Settings.require(Settings.java:41)
\tat shop.Settings.load(Settings.java:22)
\tat shop.Main.main(Main.java:12)"""


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (_JAVA, 'Exception in thread "main" java.lang.IllegalStateException: DB_URL is not set'),
        ("panic: no tea\n\ngoroutine 1 [running]:\nmain.main()\n\t/a.go:9 +0x1d\nexit status 2", "panic: no tea"),
        ("Traceback (most recent call last):\n  File 'a.py', line 1\nValueError: no tea", "ValueError: no tea"),
        ("Error: no tea\n    at main (a.js:3:4)\n\nNode.js v22.1.0", "Error: no tea"),
        ("bind: Address already in use\ngiving up", "bind: Address already in use"),
        ("nc: can't connect to remote host (127.0.0.1): Connection refused\nno schema",
         "nc: can't connect to remote host (127.0.0.1): Connection refused"),
        ("  only\n  this", "this"),
    ],
)
def test_the_line_of_the_last_ones_that_says_most(output: str, told: str) -> None:
    log = b"".join(b"2026-11-29T21:12:31Z stderr F %s\n" % line.encode() for line in output.split("\n"))
    assert causes.headline(last_words.last_lines(log)) == told


def test_the_last_lines_of_a_log_are_few_and_without_what_cri_puts_before_them() -> None:
    log = b"half a line\n2026-11-29T21:12:31Z stderr F sh: tea: not found\n2026-11-29T21:12:31Z stdout F \n"
    assert last_words.last_lines(log) == "sh: tea: not found"
    assert last_words.last_lines(b"") == last_words.last_lines(b"no log\n") == ""
    head = b"2026-11-29T21:12:31Z stderr F "
    long = b"".join(head + b"%d\n" % number for number in range(100)) + head + b"boom\n" + (head + b"  at x\n") * 100
    assert last_words.last_lines(long) == "96\n97\n98\n99\nboom\n  at x\n  at x"
    assert len(last_words.last_lines((head + b"x" * 900 + b"\n") * 9)) < 700


def test_a_caller_that_left_is_told_what_took_its_time() -> None:
    left = Left(100, "", "RunPodSandbox", 90)
    steps = Step(20, "", "run", "files written", 5), Step(210, "", "run", "network added", 190)
    trouble = troubles.worst([steps[0], left, Plugin(205, "", "ADD", "bridge", 180), steps[1]])
    assert trouble is not None
    assert trouble.during.startswith("network plugin 'bridge' (ADD) took")
    trouble = troubles.worst([steps[0], left, Plugin(205, "", "ADD", "bridge", 20), steps[1]])
    assert trouble is not None
    assert trouble.during.startswith("step 'network added' took")
    trouble = troubles.worst([steps[0], Plugin(25, "", "ADD", "bridge", 3), left])
    assert trouble is not None
    assert trouble.during.endswith("for what came next after network plugin 'bridge' (ADD), and had not ended")
    runs = Runs(30, "", "network plugin 'calico' (ADD)", 0)
    trouble = troubles.worst([steps[0], Plugin(25, "", "ADD", "bridge", 3), left, runs])
    assert trouble is not None
    assert trouble.during.endswith("it waited for network plugin 'calico' (ADD), which has not ended")


def test_last_words_belong_to_the_exit_that_follows() -> None:
    words = Wrote(1, "main", "error while loading shared libraries: libx.so.1: cannot open shared object file")
    trouble = troubles.worst([words, Life(2, "main", "c", "stopped", 127, "Error")])
    assert trouble is not None
    cause = causes.of(trouble)
    assert cause.name == "library-missing"
    assert "libx.so.1" in cause.text


@pytest.mark.parametrize(
    ("kinds", "text", "name"),
    [
        ("PodError ExecFailed", 'exec: "/seccomp": stat /seccomp: no such file or directory', "program-missing"),
        ("NotFound", "image 'hook/idmapped' is not on this node: pull it first", "image-not-here"),
        ("RegistryUnavailable", "get manifest: certificate verify failed", "registry-tls"),
        ("StorageFull", "write layer to /var/lib/crisp: No space left on device", "disk-full"),
        ("PodError OperationFailed", "create container 'a': write: No space left on device", "disk-full"),
        ("PodError NotSupported", "set pids limit `100`: no pids cgroup controller", "cgroup-controller"),
        ("PodError ShimSilent", "exec: the pod's shim (pid 7) does not answer; it is asked again", "shim-silent"),
        ("Unavailable", "NRI plugin 10-a, which pods need: no answer in 3 s", "nri-plugin-missing"),
        ("PodError", "run it: nobody has thought of this", "other"),
        ("PodError HookFailed", "error running createRuntime hook #0: `/x`: No space left on device", "hook"),
        ("PodError CallRefused", "05-strict: CreateContainer: its certificate is missing", "nri"),
        ("InvalidArgument", "config.mounts[0].selinux_relabel: label '/srv' 'a:b:c': Invalid argument", "selinux"),
        ("InvalidArgument", "config.mounts[0].selinux_relabel: '/etc' is a directory of the system", "selinux"),
        ("PodError OperationFailed", "start container a: apply label `u:r:x_t:s0`: Invalid argument", "selinux"),
        ("PodError OperationFailed", "start container a: apply label `web`: Permission denied", "apparmor"),
        ("ExecFailed", 'exec: "/a": permission denied: its mode lets everybody: SELinux denied `execute`', "selinux"),
    ],
)
def test_an_error_is_known_by_its_classes_before_its_words(kinds: str, text: str, name: str) -> None:
    assert causes.of_error(tuple(kinds.split()), text).name == name


@pytest.mark.parametrize(
    ("kinds", "text", "remedy"),
    [
        ("ExecFailed", 'exec: "/a": exec format error: its interpreter "/b" (#!): it is a program for arm', "platform"),
        ("AuthenticationRequired", "get it: the registry refused the credentials", "correct the login"),
        ("AuthenticationRequired", "get it: answered 403, though credentials were sent", "correct the login"),
        ("AuthenticationRequired", "get it: the registry answered 403", "add an imagePullSecret"),
        ("WrongMountPoint", "the source is a directory, '/f' in the container is a file", "subPath"),
        ("InvalidArgument", "config.linux.sysctls: set sysctl `a.b=c`: Invalid argument", "correct the value"),
        ("InvalidArgument", "config.linux.sysctls: set sysctl `a.b=c`: No such file or directory", "correct the name"),
        ("RegistryUnavailable", "connect to a:1: TLS: wrong version number: does it speak plain http?", "insecure"),
    ],
)
def test_the_remedy_is_for_what_happened(kinds: str, text: str, remedy: str) -> None:
    assert remedy in causes.of_error(tuple(kinds.split()), text).remedy


def test_a_pod_a_container_or_an_image_is_found_by_id_and_name() -> None:
    old, new, image = (
        Recording(subject, 4096, lambda _recording: None)
        for subject in (Subject("n", "web", "1"), Subject("n", "web", "2"), about_image("docker.io/library/a:latest"))
    )
    for number, recording in enumerate((old, new, image)):
        recording.add(Said(number, "main", "info", "x"))
    old.ids["abcdef"] = "main"
    every = (old, new, image)
    assert find("web", every) == find("n/web", every) == [(new, ""), (old, "")]
    assert find("abcd", every) == find("web/main", (old,)) == [(old, "main")]
    assert find("a", every) == find("docker.io/library/a", every) == [(image, "")]
    old.sandboxes.add("s")  # what there is goes before what is gone
    assert find("web", every) == [(old, ""), (new, "")]
    told = inquire("web", every, Present())
    assert [(one.subject, one.timeline) for one in told.others] == [("pod n/web (uid 2)", ())]
    with pytest.raises(NotFound, match="nothing is recorded"):
        find("else", every)
    with pytest.raises(InvalidArgument):
        find("", every)


def test_the_page_has_every_cause_and_its_remedy() -> None:
    rows = [line.split(" | ") for line in _PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = {(row[0].strip("| `"), row[2].removesuffix(" |")) for row in rows}
    assert {(known.name, known.remedy) for known in causes.KNOWN} - documented == set()
    assert {name for name, _remedy in documented} == {known.name for known in causes.KNOWN} | causes.OTHERS


async def test_a_listener_gets_names_that_are_not_text() -> None:
    """A message has no lone surrogate, and one that could not be made would end the listener's stream."""
    bulletins = Bulletins()
    listener = bulletins.listen()
    recording = Recording(Subject("default", "web", "uid"), 1 << 14, lambda _recording: None, bulletins.hear)
    recording.add(Said(1, "main", "info", f"{CLUE}`/\udcff` belongs to 0:0"))
    recording.add(Life(2, "main", "c", "stopped", 1))
    told = await anext(aiter(listener))
    assert told.cause.encode().endswith("`/\ufffd` belongs to 0:0".encode())
