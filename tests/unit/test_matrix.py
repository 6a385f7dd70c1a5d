"""docs/oci.md and docs/cri.md: fresh, without a row that no test is marked for, and without markers for no row."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from runtime.spec import parse as spec_parse
from tests.matrix import answers, cri, oci
from tests.matrix.__main__ import stale
from tests.matrix.markers import markers
from tests.matrix.table import strangers, untested

_REMEDY = 'mark a test, @pytest.mark.{}("...")'


def test_the_tables_are_fresh() -> None:
    assert stale() == [], "run: python -m tests.matrix"


def test_every_member_of_a_configuration_has_a_test() -> None:
    assert untested(oci.sections()) == [], _REMEDY.format("oci")


def test_every_call_and_member_of_cri_has_a_test() -> None:
    assert untested(cri.sections()) == [], _REMEDY.format("cri")


def test_markers_name_what_there_is() -> None:
    rows = [row.name for section in oci.sections() for row in section.rows]
    assert strangers(oci.marked(), rows) == []
    assert strangers(cri.marked(), cri.calls()) == []
    assert answers.strangers() == []


def test_members_are_named_as_the_parser_reads_them() -> None:
    read = {node.value for node in ast.walk(ast.parse(inspect.getsource(spec_parse))) if isinstance(node, ast.Constant)}
    named = {part.removesuffix("[]").removesuffix("{}") for member in oci.members() for part in member.split(".")}
    assert named - read == set()


def test_every_mount_option_is_in_one_group() -> None:
    grouped = [option for options in oci.OPTIONS.values() for option in options]
    assert len(grouped) == len(set(grouped))


def test_markers_of_a_module_are_for_each_of_its_tests() -> None:
    found = {marker.test for marker in markers("cri") if marker.arguments[:2] == ("CreateContainer", "mounts.image")}
    volumes = Path(__file__).parents[1] / "integration/test_image_volumes.py"
    assert len(found) == volumes.read_text().count("\ndef test_")
