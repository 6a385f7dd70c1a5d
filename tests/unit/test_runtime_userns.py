"""Mappings of a user namespace: whose ids are whose, and configurations that cannot be."""

from __future__ import annotations

import pytest

from runtime.errors import SpecError
from runtime.namespaces.user import IDMappings, mappings_of
from runtime.spec.values import IDMapping, Linux, Namespace, Root, Spec

_LINES = (IDMapping(0, 5000, 1), IDMapping(1, 100, 9))


def _spec(*namespaces: Namespace, uids: tuple[IDMapping, ...] = (), gids: tuple[IDMapping, ...] = ()) -> Spec:
    return Spec("1.2.0", Root("rootfs"), linux=Linux(namespaces=namespaces, uid_mappings=uids, gid_mappings=gids))


def test_ids_outside() -> None:
    mappings = IDMappings(_LINES, (IDMapping(0, 7, 2),))
    assert mappings.root == (5000, 7)
    assert [mappings.uid(number) for number in (1, 9)] == [100, 108]
    with pytest.raises(SpecError, match="group 2 is not mapped"):
        mappings.gid(2)
    assert IDMappings.of_lines(*mappings.lines()) == mappings


@pytest.mark.oci("linux.uidMappings", "linux.gidMappings")
def test_mappings_and_namespace_come_together() -> None:
    user = Namespace("user")
    assert mappings_of(_spec()) is None
    assert mappings_of(_spec(user, uids=_LINES, gids=_LINES)) == IDMappings(_LINES, _LINES)
    for wrong in (
        _spec(uids=_LINES, gids=_LINES),
        _spec(user, uids=_LINES),
        _spec(user),
        _spec(user, uids=(IDMapping(1, 1, 1),), gids=_LINES),
    ):
        with pytest.raises(SpecError) as raised:
            mappings_of(wrong)
        assert raised.value.path.startswith("linux.uidMappings")


@pytest.mark.oci("linux.namespaces")
def test_a_joined_namespace_tells_its_mappings() -> None:
    assert mappings_of(_spec(Namespace("user", "/proc/self/ns/user"))) is not None
