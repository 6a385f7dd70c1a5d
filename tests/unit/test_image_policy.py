"""Signature policies: which requirements apply to a name, and which names a signature is good for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image.errors import InvalidConfiguration
from image.reference import parse_reference
from image.registry.transport import Transport
from image.settings import ImageSettings
from image.trust.enforce import Trust
from image.trust.policy import (
    Accept,
    ExactReference,
    ExactRepository,
    Identity,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    Reject,
    RemapIdentity,
    SignedBy,
    load_policy,
    names_it,
)
from image.trust.registries_d import lookaside

DIGEST = "sha256:" + "0" * 64


def policy_file(directory: Path, document: object) -> Path:
    path = directory / "policy.json"
    path.write_text(json.dumps(document))
    return path


def test_the_narrowest_scope_applies(tmp_path: Path) -> None:
    scopes = {
        scope: [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": f"/{number}"}]
        for number, scope in enumerate(
            ("docker.io/library/busybox:1", "docker.io/library", "a.io", "a.io/team", "*.wild.io", "*.b.wild.io", "")
        )
    }
    policy = load_policy(policy_file(tmp_path, {"default": [{"type": "reject"}], "transports": {"docker": scopes}}))

    def chosen(name: str) -> int:
        (requirement,) = policy.for_reference(parse_reference(name))
        assert isinstance(requirement, SignedBy)
        return int(requirement.key_path[1:])

    names = ["busybox:1", "busybox:2", "a.io/x", "a.io/team/x/y", "a.wild.io/x", "a.b.wild.io/x", "a.io:5000/x", "z/x"]
    assert [chosen(name) for name in names] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert policy.for_archive("oci", Path("/x")) == (Reject(),)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"default": []},
        {"default": [{"type": "unknown"}]},
        {"default": [{"type": "reject", "extra": 1}]},
        {"default": [{"type": "signedBy", "keyType": "X509", "keyPath": "/k"}]},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys"}]},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "keyData": "eA=="}]},
        {"default": [{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r"}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": {"caPath": "/c"}}]},
        {"default": [{"type": "reject"}], "transport": {}},
    ],
)
def test_what_is_not_understood_makes_the_file_unusable(document: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"policy\.json"):
        load_policy(policy_file(tmp_path, document))
    assert load_policy(policy_file(tmp_path, {"default": [{"type": "insecureAcceptAnything"}]})).default == (Accept(),)


REMAP = RemapIdentity(prefix="mirror.io/a", signed_prefix="a.io")


@pytest.mark.parametrize(
    ("identity", "asked", "signed", "good"),
    [
        (MatchExact(), "a.io/x:1", "a.io/x:1", True),
        (MatchExact(), "a.io/x:1", "a.io/x:2", False),
        (MatchExact(), "a.io/x:latest", "a.io/x", False),
        (MatchExact(), f"a.io/x@{DIGEST}", "a.io/x:1", False),
        (MatchExact(), f"a.io/x@{DIGEST}", f"a.io/x@{DIGEST}", False),
        (MatchRepoDigestOrExact(), "a.io/x:1", "a.io/x:1", True),
        (MatchRepoDigestOrExact(), "a.io/x:1", "a.io/x:2", False),
        (MatchRepoDigestOrExact(), f"a.io/x@{DIGEST}", "a.io/x:2", True),
        (MatchRepoDigestOrExact(), f"a.io/x@{DIGEST}", "a.io/y:2", False),
        (MatchRepository(), "a.io/x:1", "a.io/x", True),
        (MatchRepository(), "a.io/x:1", "a.io/xx", False),
        (MatchRepository(), "busybox", "docker.io/library/busybox:9", True),
        (MatchRepository(), "a.io/x:1", "A B", False),
        (ExactReference(docker_reference="b.io/y:3"), "a.io/x:1", "b.io/y:3", True),
        (ExactReference(docker_reference="b.io/y:3"), "a.io/x:1", "a.io/x:1", False),
        (ExactRepository(docker_repository="b.io/y"), "a.io/x:1", "b.io/y:3", True),
        (ExactRepository(docker_repository="b.io/y"), "a.io/x:1", "a.io/x:1", False),
        (REMAP, "mirror.io/a/x:1", "a.io/x:1", True),
        (REMAP, "mirror.io/a/x:1", "mirror.io/a/x:1", False),
        (REMAP, "mirror.io/ab/x:1", "mirror.io/ab/x:1", True),
    ],
)
def test_the_name_a_signature_is_good_for(identity: Identity, asked: str, signed: str, good: bool) -> None:
    assert names_it(identity, parse_reference(asked), signed) is good


def test_where_signatures_lie(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "default-docker:\n  sigstore: file:///var/lib/sigs\ndocker:\n  a.io/team:\n    lookaside: https://sigs.a.io/s\n"
    )
    (tmp_path / "b.yaml").write_text("docker:\n  a.io/team/app:1:\n    lookaside: https://one/\n")
    names = ["a.io/team/app:1", "a.io/team/app:2", "a.io/teamwork:1"]
    found = [lookaside(tmp_path, parse_reference(name)) for name in names]
    assert found == ["https://one/", "https://sigs.a.io/s", "file:///var/lib/sigs"]
    assert lookaside(tmp_path / "none", parse_reference("x")) == ""
    (tmp_path / "b2.yaml").write_text("default-docker:\n  lookaside-staging: x\n  lookaside:\ndocker:\n")
    (tmp_path / "b3.yaml").write_text("docker:\n  a.io/team:\ndefault-docker:\n")
    assert [lookaside(tmp_path, parse_reference(name)) for name in names] == ["https://one/", "", ""]
    (tmp_path / "c.yaml").write_text("docker: [")
    with pytest.raises(InvalidConfiguration, match=r"c\.yaml"):
        lookaside(tmp_path, parse_reference("x"))


async def test_a_default_policy_that_vanishes_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image.trust.enforce.DEFAULT_POLICY", tmp_path / "policy.json")
    transport = Transport(ImageSettings())
    trust = Trust(ImageSettings(), transport)
    assert trust.policy().default == (Accept(),)  # there never was one
    path = policy_file(tmp_path, {"default": [{"type": "reject"}]})
    assert trust.policy().default == (Reject(),)
    path.unlink()
    for _ in range(2):
        with pytest.raises(InvalidConfiguration, match=r"policy\.json: No such file"):
            trust.policy()
    policy_file(tmp_path, {"default": [{"type": "insecureAcceptAnything"}]})
    assert trust.policy().default == (Accept(),)
    await transport.close()
