"""Which trouble counts, and what it is called: pure functions over a recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from pods.diagnosis import causes, troubles
from pods.diagnosis.inquiry import find, inquire
from pods.errors import InvalidArgument, NotFound
from pods.life import last_words
from pods.recorder.entry import Answered, Entry, Left, Life, Plugin, Ran, Refused, Said, Step, Wrote
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


def test_the_last_line_of_a_log_is_found_without_what_cri_puts_before_it() -> None:
    log = b"half a line\n2026-11-29T21:12:31Z stderr F sh: tea: not found\n2026-11-29T21:12:31Z stdout F \n"
    assert last_words.last_line(log) == "sh: tea: not found"
    assert last_words.last_line(b"") == last_words.last_line(b"no log\n") == ""


def test_a_caller_that_left_is_told_what_took_its_time() -> None:
    left = Left(100, "", "RunPodSandbox", 90)
    steps = Step(20, "", "run", "files written", 5), Step(210, "", "run", "network added", 190)
    trouble = troubles.worst([steps[0], left, Plugin(205, "", "ADD", "bridge", 180), steps[1]])
    assert trouble is not None
    assert trouble.during.startswith("network plugin 'bridge' (ADD) took")
    trouble = troubles.worst([steps[0], left, Plugin(205, "", "ADD", "bridge", 20), steps[1]])
    assert trouble is not None
    assert trouble.during.startswith("step 'network added' took")


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
    ],
)
def test_an_error_is_known_by_its_classes_before_its_words(kinds: str, text: str, name: str) -> None:
    assert causes.of_error(tuple(kinds.split()), text).name == name


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
    told = inquire("web", every, ())
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
