"""Which recording a name means."""

from __future__ import annotations

from pods.diagnosis.inquiry import find
from pods.recorder.recording import Recording, Subject


def _recording(name: str, *ids: str) -> Recording:
    recording = Recording(Subject("default", name, "u"), 4096, lambda _recording: None)
    recording.ids = dict.fromkeys(ids, "")
    return recording


def test_a_name_that_begins_somebody_else_s_id_is_a_name() -> None:
    cafe, other = _recording("cafe", "1" * 64), _recording("other", "cafe" + "2" * 60)
    assert find("cafe", [cafe, other]) == [(cafe, "")]
    assert find("cafe2", [cafe, other]) == [(other, "")]
    assert find("default/other", [cafe, other]) == [(other, "")]
