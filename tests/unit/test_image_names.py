"""References, registries.conf, authentication challenges: what a name means and where it leads."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.errors import AuthenticationRequired, InvalidConfiguration, InvalidReference, RegistryBlocked
from image.model import Credentials
from image.reference import NAME_LIMIT, Reference, parse_reference, short_references
from image.registry.auth import basic, parse_challenges, usable_at
from image.registry.registries import Registries
from image.registry.registries_conf import is_loopback, load
from image.registry.transport import Transport
from image.settings import ImageSettings

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("[::1]:5000/x:y", "[::1]:5000/x:y"),
        ("quay.io/a/b__c/d-e.f:v1", "quay.io/a/b__c/d-e.f:v1"),
        ("UPPER/x", "upper/x:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox:1@{DIGEST}"),
    ],
)
def test_references_are_qualified_as_docker_does(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full


@pytest.mark.parametrize(
    "text",
    ["", ":", "@", "a b", "Busybox", "a//b", "/a", "a/", "a:", "a:b:c", "a@sha256:12", f"a@sha512:{HEX}{HEX}", "-a",
     "a_-b", "quay.io:x/a", "exa mple/a", "a/../b", "a:" + "t" * 129, HEX, "a\n", "x.y/" + "a" * 300, "é/a", "a" * 9999,
     f"a@sha256:{HEX.upper()}", "http://a/b", "a.io/b@", "٣"],
)  # fmt: skip
def test_what_is_no_reference_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidReference, match="parse reference"):
        parse_reference(text)


_WORD = st.text("az09", min_size=1, max_size=5)
_COMPONENT = st.tuples(_WORD, st.sampled_from([".", "_", "__", "-", "---"]), _WORD).map("".join) | _WORD
_HOST = st.tuples(_WORD, st.sampled_from([".", "-a.", ".b-c."]), _WORD).map("".join) | st.just("localhost")
_DOMAIN = st.tuples(_HOST, st.sampled_from(["", ":5000"])).map("".join)
_TAG = st.tuples(st.sampled_from("aZ9_"), st.text("aZ9_.-", max_size=127)).map("".join)


@given(
    domain=_DOMAIN,
    components=st.lists(_COMPONENT, min_size=1, max_size=4),
    tag=_TAG | st.just(""),
    digest=st.sampled_from(["", DIGEST]),
)
def test_a_full_reference_survives_parsing(domain: str, components: list[str], tag: str, digest: str) -> None:
    path = "/".join(components)
    written = Reference(domain, path, tag or ("" if digest else "latest"), digest)
    assert len(written.repository) <= NAME_LIMIT
    assert parse_reference(str(written)) == written
    assert parse_reference(written.name).name == written.name


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(reference)) == reference


def test_short_names_are_tried_at_the_search_registries() -> None:
    found = short_references("busybox:1", ("quay.io", "docker.io"))
    assert [str(r) for r in found] == ["quay.io/busybox:1", "docker.io/library/busybox:1"]
    assert [str(r) for r in short_references("quay.io/busybox", ())] == ["quay.io/busybox:latest"]
    with pytest.raises(InvalidReference, match="unqualified-search-registries is empty"):
        short_references("busybox", ())


# --- registries.conf


def conf(directory: Path, text: str, **drop_ins: str) -> Path:
    path = directory / "registries.conf"
    path.write_text(text)
    (directory / "registries.conf.d").mkdir()
    for name, content in drop_ins.items():
        (directory / "registries.conf.d" / f"{name}.conf").write_text(content)
    return path


def places(path: Path, text: str) -> list[str]:
    return [f"{e.host}/{e.repository}{'!' if e.insecure else ''}" for e in load(path).endpoints(parse_reference(text))]


def test_mirrors_come_first_and_the_longest_prefix_decides(tmp_path: Path) -> None:
    path = conf(
        tmp_path,
        """
        [[registry]]
        prefix = "example.com"
        location = "big.example.net/all"
        [[registry]]
        prefix = "example.com/team"
        location = "team.example.net"
        [[registry.mirror]]
        location = "10.0.0.1:5000/cache"
        insecure = true
        [[registry.mirror]]
        location = "digests.example.net"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.example.net"
        pull-from-mirror = "tag-only"
        [[registry]]
        prefix = "*.wild.io"
        insecure = true
        """,
    )
    tagged = ["10.0.0.1:5000/cache/app!", "tags.example.net/app", "team.example.net/app"]
    assert places(path, "example.com/team/app:1") == tagged
    by_digest = ["10.0.0.1:5000/cache/app!", "digests.example.net/app", "team.example.net/app"]
    assert places(path, f"example.com/team/app@{DIGEST}") == by_digest
    assert places(path, "example.com/teamwork") == ["big.example.net/all/teamwork"]
    assert places(path, "a.wild.io/x/y") == ["a.wild.io/x/y!"]
    assert places(path, "wild.io/x") == ["wild.io/x"]
    assert places(path, "busybox") == ["registry-1.docker.io/library/busybox"]


def test_drop_ins_replace_entries_in_lexical_order(tmp_path: Path) -> None:
    entry = '[[registry]]\nprefix = "a.io"\nlocation = "{}"\n'
    search = 'unqualified-search-registries = ["{}"]\n'
    drop_ins = {"20": entry.format("third.io"), "10": search.format("x.io") + entry.format("second.io")}
    path = conf(tmp_path, search.format("y.io") + entry.format("first.io"), **drop_ins)
    assert places(path, "a.io/b") == ["third.io/b"]
    assert load(path).search == ("x.io",)


def test_without_the_file_everything_is_as_written(tmp_path: Path) -> None:
    assert load(tmp_path / "nothing.conf").search == ("docker.io",)
    assert places(tmp_path / "nothing.conf", "a.io/b") == ["a.io/b"]


def test_blocked_registries_are_refused(tmp_path: Path) -> None:
    path = conf(tmp_path, '[[registry]]\nlocation = "bad.io"\nblocked = true\n')
    with pytest.raises(RegistryBlocked, match=r"bad\.io/x:latest"):
        places(path, "bad.io/x")


def test_wildcards_cover_subdomains_paths_and_ports(tmp_path: Path) -> None:
    path = conf(
        tmp_path,
        """
        [[registry]]
        prefix = "*.wild.io"
        location = "new.example/all"
        [[registry]]
        prefix = "*.wild.io/team"
        [[registry.mirror]]
        location = "mirror.example/t"
        """,
    )
    assert places(path, "a.wild.io/x") == ["new.example/all/x"]
    assert places(path, "a.b.wild.io/team/x") == ["mirror.example/t/x", "a.b.wild.io/team/x"]
    assert places(path, "a.wild.io/teamwork") == ["new.example/all/teamwork"]
    assert places(path, "evil.io/a.wild.io/x") == ["evil.io/a.wild.io/x"]
    assert places(path, "a.wild.io.evil/x") == ["a.wild.io.evil/x"]


def test_short_names_by_alias_and_by_mode(tmp_path: Path) -> None:
    search = 'unqualified-search-registries = ["a.io", "b.io"]\n'
    aliases = '[aliases]\nfedora = "quay.io/fedora/fedora"\n"team/app" = "c.io/app"\ngone = "x.io/gone"\n'
    path = conf(tmp_path, search + aliases, more='[aliases]\nfedora = "b.io/fedora"\ngone = ""\n')
    loaded = load(path)
    assert [str(r) for r in loaded.to_pull("fedora:40")] == ["b.io/fedora:40"]
    assert [str(r) for r in loaded.to_pull(f"team/app@{DIGEST}")] == [f"c.io/app@{DIGEST}"]
    assert [str(r) for r in loaded.to_pull("gone")] == ["a.io/gone:latest", "b.io/gone:latest"]
    assert [str(r) for r in loaded.to_pull("docker.io/fedora")] == ["docker.io/library/fedora:latest"]
    path.write_text('short-name-mode = "enforcing"\n' + search + aliases)
    assert [str(r) for r in load(path).to_pull("fedora")] == ["b.io/fedora:latest"]
    with pytest.raises(InvalidReference, match=r"enforcing .* a\.io/other:latest, b\.io/other:latest"):
        load(path).to_pull("other")
    assert len(load(path).meanings("other")) == 2


def test_what_a_name_means_is_what_the_configuration_says_now(tmp_path: Path) -> None:
    """Whatever was pulled since, or not; and what it said before while it says nothing that can be read."""
    file = tmp_path / "registries.conf"
    registries = Registries(file, ImageSettings(), cast(Transport, None))

    def meant() -> list[str]:
        return [reference.domain for reference in registries.meanings("app")]

    assert meant() == ["docker.io"]
    file.write_text('unqualified-search-registries = ["a.io"]')
    assert meant() == ["a.io"]
    (tmp_path / "registries.conf.d").mkdir()
    drop_in = tmp_path / "registries.conf.d/1.conf"
    drop_in.write_text('unqualified-search-registries = ["b.io", "c.io"]')
    assert meant() == ["b.io", "c.io"]
    drop_in.write_text("unqualified-search-registries = 7")
    assert meant() == ["b.io", "c.io"]
    with pytest.raises(InvalidConfiguration, match=r"1\.conf"):
        registries.read()
    drop_in.unlink()
    assert meant() == ["a.io"]
    file.unlink()
    assert meant() == ["docker.io"]
    assert registries.read().search == ("docker.io",)


@pytest.mark.parametrize(
    "text",
    ["[[registry]\n", "[registries.search]\nregistries = ['a']\n", "[[registry]]\nprefix = 'a.io'\n",
     "[[registry]]\nlocation = 'https://a.io'\n", "[[registry]]\nlocation = 3\n",
     "[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\nlocation = 'b.io'\npull-from-mirror = 'never'\n",
     "[[registry]]\nlocation = 'a.io'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'b.io'\n"
     "pull-from-mirror = 'all'\n", "short-name-mode = 'strict'\n", "[aliases]\n'a.io/b' = 'c.io/d'\n",
     "[aliases]\nb = 'c'\n", "[aliases]\nb = 'c.io/d:1'\n", "[[registry]]\nlocation = '*.a.io'\n"],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    path = conf(tmp_path, "", wrong=text)
    with pytest.raises(InvalidConfiguration, match=r"registries\.conf\.d/wrong\.conf"):
        load(path)


@pytest.mark.parametrize(("host", "loopback"), [
    ("localhost:5000", True), ("127.9.0.1", True), ("[::1]:80", True), ("x.localhost", True),
    ("localhost.example.com", False), ("128.0.0.1:5000", False), ("[::2]", False), ("127.0.0.1.example.com", False),
])  # fmt: skip
def test_loopback_hosts(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# --- authentication


def test_challenges_are_understood_as_servers_write_them() -> None:
    header = 'Bearer realm="https://a.io/token",service="a.io",scope="repository:x:pull,push", Basic realm="a \\"b\\""'
    bearer, basic = parse_challenges(header)
    assert bearer.scheme == "bearer"
    assert bearer.parameters == {"realm": "https://a.io/token", "service": "a.io", "scope": "repository:x:pull,push"}
    assert (basic.scheme, basic.parameters["realm"]) == ("basic", 'a "b"')
    assert [c.scheme for c in parse_challenges("Negotiate, Basic realm=x")] == ["negotiate", "basic"]


_TOKENS = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=12)
_SPACE = st.sampled_from(["", " ", "  ", "\t"])
_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@st.composite
def _header(draw: st.DrawFn) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """A WWW-Authenticate value as RFC 9110 allows it (11.6.1, lists as in 5.6.1), and what it says."""
    text, said = "", []
    for _ in range(draw(st.integers(1, 4))):
        scheme = draw(_TOKENS)
        parameters = draw(st.dictionaries(_TOKENS.map(str.lower), _VALUES, max_size=4))
        listed = [_parameter(draw, key, value) for key, value in parameters.items()]
        credentials = "" if listed else draw(st.sampled_from(["", "", " YWJj", " a+/b==", " ~-._"]))
        comma = draw(st.sampled_from([",", ", ", " ,\t", ",, "]))
        text += (comma if text else draw(st.sampled_from(["", ", "]))) + scheme + credentials
        text += (" " if listed else "") + comma.join(listed)
        said.append((scheme.lower(), parameters))
    return text, said


def _parameter(draw: st.DrawFn, key: str, value: str) -> str:
    cased = draw(st.sampled_from([key, key.upper()]))
    plain = value and all(letter in "!#$%&'*+-.^_`|~0123456789abcXYZ" for letter in value)
    if not plain or draw(st.booleans()):
        escaped = draw(st.sampled_from(['"\\', '"\\abc 1']))
        value = '"' + "".join(f"\\{letter}" if letter in escaped else letter for letter in value) + '"'
    return f"{cased}{draw(_SPACE)}={draw(_SPACE)}{value}"


@pytest.mark.trial("challenges", "what RFC 9110 and the token specification allow in a challenge is understood")
@given(_header())
def test_every_challenge_of_the_grammar_is_understood(header: tuple[str, list[tuple[str, dict[str, str]]]]) -> None:
    text, said = header
    assert [(one.scheme, dict(one.parameters)) for one in parse_challenges(text)] == said


@given(st.text(max_size=200) | st.text('Bearer realm="x", \\=;\t', max_size=200))
def test_no_challenge_header_hangs_or_raises(header: str) -> None:
    for one in parse_challenges(header):
        assert one.scheme == one.scheme.lower()


@pytest.mark.parametrize("part", ['a="', "a", "a=", ",", '"', "=", " ", "\\", 'a="\\"', "a b", "Bearer "])
def test_a_long_header_of_nonsense_takes_no_time(part: str) -> None:
    """It is looked at once, not once for each of its letters: this test would not end otherwise."""
    assert len(parse_challenges(part * (1 << 20))) <= 1 << 16


def test_credentials_stay_with_their_server() -> None:
    login = Credentials(username="u", password="p", server_address="https://index.docker.io/v1/")
    assert usable_at(login, "docker.io") is login
    assert usable_at(login, "quay.io") is None
    assert "p" not in repr(login).replace("Credentials(...)", "")
    assert Credentials.from_auth("dTpwOnE=") == Credentials(username="u", password="p:q")


@pytest.mark.trial("logins-in-lines", "base64 of a login is taken in lines and unpadded, and need not be of UTF-8")
@pytest.mark.parametrize("name", [b"u", b"user" * 20, "caf\xe9".encode(), b"caf\xe9"])
@pytest.mark.parametrize("password", [b"", b"p", b"p:q", b"p" * 100, b"\xff\xfe:", b"p\0\0"])
def test_logins_as_tools_write_them(name: bytes, password: bytes) -> None:
    text = base64.b64encode(name + b":" + password).decode()
    lines = base64.encodebytes(name + b":" + password).decode()
    login = Credentials.from_auth(text)
    assert basic(login) == "Basic " + base64.b64encode(name + b":" + password.rstrip(b"\0")).decode()
    for form in (lines, lines.replace("\n", "\r\n"), text.rstrip("="), f" {text}\n", lines.rstrip("=\n")):
        assert Credentials.from_auth(form) == login


@given(st.text(max_size=30) | st.binary(max_size=30).map(lambda raw: base64.b64encode(raw).decode()))
def test_any_text_is_a_login_or_refused(text: str) -> None:
    with suppress(AuthenticationRequired):
        assert basic(Credentials.from_auth(text)).startswith("Basic ")
