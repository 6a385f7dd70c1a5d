"""Who we are to a registry, and which way we go: auth files, credential helpers, proxies, certificates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from yarl import URL

from image.errors import AuthenticationRequired, InvalidConfiguration
from image.model import Credentials
from image.registry.authfile import kept_credentials
from image.registry.proxy import from_environment
from image.registry.tls import HostCertificates

UP = "dTpw"  # u:p


def auth_file(directory: Path, document: object) -> Path:
    path = directory / "auth.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper `docker-credential-test`, which knows a.io; what it was asked is in its directory."""
    script = tmp_path / "docker-credential-test"
    script.write_text(
        f"""#!/bin/sh
read -r server; echo "$1 $server" >> {tmp_path}/asked
case $server in
a.io|https://index.docker.io/v1/) echo '{{"ServerURL": "x", "Username": "helped", "Secret": "s"}}';;
token.io) echo '{{"Username": "<token>", "Secret": "refresh"}}';;
odd.io) echo nonsense;;
broken.io) echo "the vault is locked"; exit 1;;
*) echo "credentials not found in native keychain"; exit 1;;
esac
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "asked"


@pytest.mark.parametrize(
    ("key", "location", "found"),
    [
        ("a.io", "a.io/team/app", True),
        ("a.io/team", "a.io/team/app", True),
        ("a.io/team/app", "a.io/team/app", True),
        ("a.io/team/app", "a.io/team/apple", False),
        ("a.io/tea", "a.io/team/app", False),
        ("a.io:5000", "a.io/team/app", False),
        ("https://a.io/v1/", "a.io/team/app", True),
        ("http://a.io", "a.io/x", True),
        ("https://index.docker.io/v1/", "docker.io/library/busybox", True),
        ("docker.io", "docker.io/library/busybox", True),
        ("https://a.io.evil/v1/", "a.io/x", False),
        ("a.io/", "a.io/team/app", True),
        ("A.io/team/", "a.io/team/app", True),
        ("a.io/v2/", "a.io/team/app", False),
    ],
)
async def test_keys_of_an_auth_file(key: str, location: str, found: bool, tmp_path: Path) -> None:
    path = auth_file(tmp_path, {"auths": {key: {"auth": UP}}})
    login = await kept_credentials(location, [tmp_path / "none.json", path])
    assert login == (Credentials(username="u", password="p") if found else None)


async def test_the_longest_key_wins_and_empty_entries_do_not_count(tmp_path: Path) -> None:
    auths = {
        "a.io": {"username": "wide", "password": "w"},
        "a.io/team": {"auth": UP, "identitytoken": "refresh"},
        "a.io/team/app": {},
    }
    path = auth_file(tmp_path, {"auths": auths})
    narrow = await kept_credentials("a.io/team/app", [path])
    assert narrow == Credentials(username="u", password="p", identity_token="refresh")
    assert await kept_credentials("a.io/other", [path]) == Credentials(username="wide", password="w")


async def test_helpers_are_asked_for_their_registries(tmp_path: Path, helper: Path) -> None:
    path = auth_file(tmp_path, {"auths": {"a.io": {"auth": UP}}, "credHelpers": {"a.io": "test", "token.io": "test"}})
    helped = Credentials(username="helped", password="s")
    assert await kept_credentials("a.io/x", [path]) == helped
    assert await kept_credentials("token.io/x", [path]) == Credentials(identity_token="refresh")
    assert await kept_credentials("b.io/x", [path]) is None
    store = auth_file(tmp_path, {"auths": {"docker.io": {}}, "credsStore": "test"})
    assert await kept_credentials("docker.io/x", [store]) == helped
    assert await kept_credentials("unknown.io/x", [store]) is None
    # registries.conf's own list of helpers, in its order.
    other = auth_file(tmp_path, {"auths": {"a.io": {"auth": UP}}})
    assert await kept_credentials("a.io/x", [other], ["test", "containers-auth.json"]) == helped
    assert await kept_credentials("a.io/x", [other], ["containers-auth.json", "test"]) == Credentials(
        username="u", password="p"
    )
    assert helper.read_text().splitlines()[0] == "get a.io"


@pytest.mark.trial("null-is-missing", "null is taken for a member that is missing, as Go's programs take it")
@pytest.mark.parametrize(
    "document",
    [
        {"auths": {"a.io": {"auth": UP, "identitytoken": None, "registrytoken": None, "username": None}}},
        {"auths": {"a.io": {"auth": UP}, "b.io": None, "c.io": {"auth": None}}, "credHelpers": None},
        {"auths": {"a.io": {"auth": UP, "email": None}}, "credsStore": None},
        {"auths": {"a.io": {"auth": UP}}, "credHelpers": {"a.io": None, "b.io": None}, "HttpHeaders": None},
        {"auths": {"a.io": {"auth": None, "username": "u", "password": "p"}}, "proxies": None, "plugins": {"x": None}},
        "\ufeff" + json.dumps({"auths": {"a.io": {"auth": UP}}}),
    ],
)
async def test_auth_files_as_programs_write_them(document: object, tmp_path: Path) -> None:
    path = auth_file(tmp_path, document)
    assert await kept_credentials("a.io/x", [path]) == Credentials(username="u", password="p")
    for location in ("b.io/x", "c.io/x", "d.io/x"):
        assert await kept_credentials(location, [path]) is None


@pytest.mark.parametrize("document", ["", " \n", "\ufeff", "{}", "null", '{"auths": null}'])
async def test_files_without_logins(document: str, tmp_path: Path) -> None:
    empty, path = auth_file(tmp_path, document), tmp_path / "other.json"
    path.write_text(json.dumps({"auths": {"a.io": {"auth": UP}}}))
    assert await kept_credentials("a.io/x", [empty]) is None
    assert await kept_credentials("a.io/x", [empty, path]) == Credentials(username="u", password="p")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "auth.json"),
        ({"auths": {"a.io": {"auth": "!"}}}, "auths 'a.io'"),
        ({"credHelpers": {"a.io": "../evil"}}, "not a valid name for a helper"),
        ({"credHelpers": {"a.io": "absent"}}, "No such file"),
        ({"auths": []}, "auths"),
    ],
)
async def test_what_cannot_be_used_is_named(document: object, says: str, tmp_path: Path, helper: Path) -> None:
    with pytest.raises(AuthenticationRequired, match=says):
        await kept_credentials("a.io/x", [auth_file(tmp_path, document)])


async def test_a_helper_that_fails_is_an_error(helper: Path) -> None:
    with pytest.raises(AuthenticationRequired, match="the vault is locked"):
        await kept_credentials("broken.io/x", [], ["test"])
    with pytest.raises(AuthenticationRequired, match="malformed answer"):
        await kept_credentials("odd.io/x", [], ["test"])


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("https://registry.example.com/v2/", "http://secure:3128"),
        ("http://registry.example.com/v2/", "http://plain:3128"),
        ("https://localhost:5000/", None),
        ("https://127.8.8.8/", None),
        ("https://[::1]/", None),
        ("https://a.internal/", None),
        ("https://internal/", None),
        ("https://notinternal/", "http://secure:3128"),
        ("https://x.dotted.io/", None),
        ("https://dotted.io/", "http://secure:3128"),
        ("https://10.1.2.3/", None),
        ("https://11.1.2.3/", "http://secure:3128"),
        ("https://192.168.0.1/", None),
        ("https://ported.io:5000/", None),
        ("https://ported.io/", "http://secure:3128"),
        ("https://[fd00::7]/", None),
    ],
)
def test_proxies_are_chosen_as_go_chooses_them(url: str, through: str | None) -> None:
    environment = {
        "HTTPS_PROXY": "http://secure:3128",
        "http_proxy": "plain:3128",
        "NO_PROXY": "Internal, .dotted.io,10.0.0.0/8,192.168.0.1,ported.io:5000,fd00::/8,nonsense/99",
    }
    assert from_environment(environment).for_url(URL(url)) == (URL(through) if through else None)


def test_proxies_for_nothing_and_of_no_use() -> None:
    everything = from_environment({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"})
    assert everything.for_url(URL("https://a.io/")) is None
    with pytest.raises(InvalidConfiguration, match="HTTPS_PROXY"):
        from_environment({"https_proxy": "socks5://p:1"})


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    assert HostCertificates([tmp_path]).context("a.io", 443, insecure=False) is True
    assert HostCertificates([tmp_path]).context("a.io", 443, insecure=True) is False
    for name in ("a.io:5000", "b.io", "c.io"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.io:5000/ca.crt").write_text("no certificate")
    (tmp_path / "b.io/client.key").write_text("")
    (tmp_path / "c.io/client.cert").write_text("no certificate")
    for host, port, file in (("a.io", 5000, "ca.crt"), ("b.io", 443, "client.key"), ("c.io", 443, "client.cert")):
        with pytest.raises(InvalidConfiguration, match=file):
            HostCertificates([tmp_path]).context(host, port, insecure=False)
