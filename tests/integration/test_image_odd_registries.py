"""Registries, mirrors and token services that are not wrong but unusual, and mirrors that are wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from image.errors import (
    AuthenticationRequired,
    DigestMismatch,
    ImageError,
    InvalidImage,
    OtherPlatform,
    RegistryUnavailable,
)
from image.model import Credentials
from tests import faulty_registry
from tests.faulty_registry import Fault, FaultyRegistry
from tests.images import (
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    busybox_image,
    digest,
    entry,
    layer,
)
from tests.integration.test_image_registries import opened
from tests.pki import Authority
from tests.waiting import eventually

LOGIN = Credentials(username="user", password="pass")
BASIC = "Basic " + base64.b64encode(b"user:pass").decode()


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Any], tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server of one handler; its host and port."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# --- registries that redirect to registries


@pytest.mark.trial("redirected-registry", "a registry that another redirects to is asked as anybody would ask it")
@pytest.mark.parametrize("login", [None, LOGIN])
async def test_a_registry_behind_another(login: Credentials | None, tmp_path: Path) -> None:
    """As a gateway or content network in front of a public registry. Its own login is for itself."""
    image = {"a:1": busybox_image()}
    async with FaultyRegistry(dict(image), login=":").running() as behind, opened(tmp_path) as store:
        behind.open_tokens = True
        gateway = FaultyRegistry(dict(image), login="user:pass" if login else "")
        gateway.everything_at = f"http://{behind.host}"
        async with gateway.running():
            pulled = await store.pull(f"{gateway.host}/a:1", login)
            assert pulled.id == busybox_image().id
        told = {seen.authorization for seen in behind.seen if seen.path == "/token"}
        assert told == {""}
        assert {seen.authorization for seen in behind.seen} == {"", "Bearer t-repository:a:pull"}
        assert len([seen for seen in behind.seen if seen.path == "/token"]) == 1


@pytest.mark.trial("redirected-registry", "a registry that another redirects to is asked as anybody would ask it")
async def test_a_registry_behind_another_that_wants_a_name(tmp_path: Path) -> None:
    image = {"a:1": busybox_image()}
    async with (
        FaultyRegistry(dict(image), login="user:pass", basic=True).running() as behind,
        opened(tmp_path) as store,
    ):
        gateway = FaultyRegistry(dict(image))
        gateway.everything_at = f"http://{behind.host}"
        async with gateway.running():
            with pytest.raises(
                AuthenticationRequired, match=r"127\.0\.0\.1, to which the registry redirects, answered 401"
            ):
                await store.pull(f"{gateway.host}/a:1", LOGIN)
        assert {seen.authorization for seen in behind.seen} == {""}


# --- the client's limits


@pytest.mark.trial("large-headers", "headers are taken as Go's programs take them, to 10 MiB in all")
async def test_large_headers(tmp_path: Path) -> None:
    headers = {"X-One": "a" * 500_000, **{f"X-{number}": "b" * 1000 for number in range(300)}}
    path = "/v2/a/manifests/1"

    async def large(request: web.Request, content: bytes) -> web.StreamResponse | None:
        if not request.query_string:
            return web.Response(status=307, headers={"Location": f"{path}?signature={'s' * 50_000}"})
        return web.Response(body=content, headers={"Content-Type": OCI_MANIFEST, **headers})

    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        registry.always[path] = large
        await store.pull(f"{registry.host}/a:1")


@pytest.mark.trial("large-headers", "headers are taken as Go's programs take them, to 10 MiB in all")
async def test_headers_without_end(tmp_path: Path) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                writer.write(b"X-%d: " % sent + b"a" * 60_000 + b"\r\n")
                sent += 1
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with await asyncio.start_server(endless, "127.0.0.1", 0) as server, opened(tmp_path) as store:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (tmp_path / "registries.conf").write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
        store._transport._plain.add(host)
        with pytest.raises(RegistryUnavailable, match="headers of more than 10485760 bytes"):
            await store.pull(f"{host}/a:1")
        assert sent * 60_000 < 200 << 20


# --- challenges and token services


@asynccontextmanager
async def token_service(answer: Callable[[web.Request, dict[str, str]], Any]) -> AsyncIterator[tuple[str, list[Any]]]:
    """Where a service is that `answer`s a request and its form, and the requests that it had: method, path, scopes,
    Authorization, form."""
    had: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        scopes = request.query.getall("scope", [])
        had.append((request.method, request.path, scopes, request.headers.get("Authorization", ""), form))
        return await answer(request, form)

    async with serving(handle) as host:
        yield f"http://{host}", had


def wants(registry: FaultyRegistry, challenge: str, token: str = "A") -> None:
    """Have the registry ask for `token` in these words."""
    registry.challenge, registry.token = challenge, token


async def gives(request: web.Request, form: dict[str, str]) -> web.Response:
    return web.json_response({"token": "A", "access_token": None})


CHALLENGES = {
    'Bearer realm="{0}/t",service="s",scope="repository:a:pull repository:b:pull"': [
        "repository:a:pull",
        "repository:b:pull",
    ],
    'Bearer x-info="1, 2",realm="{0}/t",service="s"': ["repository:a:pull"],
    'Bearer realm="{0}/t", scope=""': ["repository:a:pull"],
    'Negotiate YIIB+/x==, Bearer error="invalid_token" , realm = "{0}/t"': ["repository:a:pull"],
    "Bearer !#$%&'*+-.^_`|~1=x;y,realm={0}/t": ["repository:a:pull"],
    'bearer realm="{0}\\/t", error="what, no \\"token\\"?", scope="repository:c:pull"': ["repository:c:pull"],
}


@pytest.mark.trial("challenges", "what RFC 9110 and the token specification allow in a challenge is understood")
@pytest.mark.parametrize("challenge", CHALLENGES)
async def test_challenges(challenge: str, tmp_path: Path) -> None:
    async with (
        token_service(gives) as (service, had),
        FaultyRegistry({"a:1": busybox_image()}).running() as registry,
        opened(tmp_path) as store,
    ):
        wants(registry, challenge.format(service))
        await store.pull(f"{registry.host}/a:1", LOGIN)
        assert had == [("GET", "/t", CHALLENGES[challenge], BASIC, {})]


@pytest.mark.trial("token-redirects", "a token service that redirects is followed, and the login goes to itself alone")
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["/moved", "elsewhere"])
async def test_a_token_service_that_moved(code: int, where: str, tmp_path: Path) -> None:
    async with token_service(gives) as (elsewhere, had_elsewhere):
        target = f"{elsewhere}/moved" if where == "elsewhere" else where

        async def answer(request: web.Request, form: dict[str, str]) -> web.Response:
            if request.path != "/t":
                return await gives(request, form)
            return web.Response(status=code, headers={"Location": f"{target}?{request.query_string}"})

        async with (
            token_service(answer) as (service, had),
            FaultyRegistry({"a:1": busybox_image()}).running() as registry,
            opened(tmp_path) as store,
        ):
            wants(registry, f'Bearer realm="{service}/t",service="s"')
            await store.pull(f"{registry.host}/a:1", LOGIN)
            scopes = ["repository:a:pull"]
            asked = ("GET", "/moved", scopes, BASIC if where == "/moved" else "", {})
            assert [*had, *had_elsewhere] == [("GET", "/t", scopes, BASIC, {}), asked]


@pytest.mark.trial("token-redirects", "a token service that redirects is followed, and the login goes to itself alone")
async def test_a_refresh_token_is_not_sent_on(tmp_path: Path) -> None:
    async with token_service(gives) as (elsewhere, had_elsewhere):
        targets = ["/again", f"{elsewhere}/thief"]

        async def answer(request: web.Request, form: dict[str, str]) -> web.Response:
            return web.Response(status=307, headers={"Location": targets[request.path == "/again"]})

        async with (
            token_service(answer) as (service, had),
            FaultyRegistry({"a:1": busybox_image()}).running() as registry,
            opened(tmp_path) as store,
        ):
            wants(registry, f'Bearer realm="{service}/t"')
            with pytest.raises(AuthenticationRequired, match=r"redirects to 127\.0\.0\.1, which would get the login"):
                await store.pull(f"{registry.host}/a:1", Credentials(identity_token="refresh"))
            assert [method for method, *_ in had] == ["POST", "POST"]
            assert had_elsewhere == []


@pytest.mark.trial(
    "identity-tokens", "an identity token is exchanged by POST, and a service without one is asked by name"
)
@pytest.mark.parametrize("refused", [401, 403, 404, 405])
@pytest.mark.parametrize("password", ["pass", ""])
async def test_a_token_service_without_post(refused: int, password: str, tmp_path: Path) -> None:
    async def answer(request: web.Request, form: dict[str, str]) -> web.Response:
        return web.Response(status=refused) if request.method == "POST" else await gives(request, form)

    async with (
        token_service(answer) as (service, had),
        FaultyRegistry({"a:1": busybox_image()}).running() as registry,
        opened(tmp_path) as store,
    ):
        wants(registry, f'Bearer realm="{service}/t",service="s"')
        with pytest.raises(AuthenticationRequired, match=f"answered {refused}"):
            await store.pull(f"{registry.host}/a:1", Credentials(identity_token="refresh"))
        login = Credentials(username="user", password=password, identity_token="refresh")
        await store.pull(f"{registry.host}/a:1", login)
        named = base64.b64encode(f"user:{password or 'refresh'}".encode()).decode()
        assert had[-1] == ("GET", "/t", ["repository:a:pull"], f"Basic {named}", {})


@pytest.mark.trial(
    "server-urls", "a URL of a server's that names a user is refused or stripped, never an internal error"
)
async def test_urls_with_a_user_in_them(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        wants(registry, f'Bearer realm="http://me:secret@{registry.host}/t"')
        with pytest.raises(AuthenticationRequired, match="a user name in its URL") as caught:
            await store.pull(f"{registry.host}/a:1", LOGIN)
        assert "secret" not in str(caught.value)
    async with (
        FaultyRegistry({"a:1": busybox_image()}, login="user:pass").running() as registry,
        opened(tmp_path) as store,
    ):
        path = "/v2/a/manifests/1"
        registry.faults[path] = [faulty_registry.moved(f"http://me:secret@{registry.host}{path}")]
        await store.pull(f"{registry.host}/a:1", LOGIN)
        assert registry.faults[path] == []


# --- whom `insecure` is said of


@pytest.mark.trial("insecure-is-one-host", "`insecure` is for the host that it is said of, not for those that it names")
@pytest.mark.parametrize("other", ["blobs", "tokens"])
async def test_insecure_is_said_of_one_host(other: str, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "ca").issue(tmp_path, "host")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    image = {"a:1": busybox_image()}

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"token": "A"})

    async with (
        FaultyRegistry(dict(image)).running(tls) as registry,
        FaultyRegistry(dict(image)).running(tls) as blobs,
        serving(answer, tls) as tokens,
    ):
        said = f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n'
        async with opened(tmp_path, said) as store:
            if other == "blobs":
                registry.blobs_at, host = f"https://{blobs.host}", blobs.host
            else:
                wants(registry, f'Bearer realm="https://{tokens}/t"')
                host = tokens
            with pytest.raises(RegistryUnavailable, match=f"{host}: .*certificate verify failed"):
                await store.pull(f"{registry.host}/a:1", LOGIN)
            (tmp_path / "registries.conf").write_text(f'{said}[[registry]]\nlocation = "{host}"\ninsecure = true\n')
            await store.pull(f"{registry.host}/a:1", LOGIN)


@pytest.mark.trial("errors-of-others", "errors repeat what the registry says, and not what a host says that it names")
async def test_words_of_a_host_that_the_registry_names_are_not_told(tmp_path: Path) -> None:
    async def internal(request: web.Request) -> web.Response:
        return web.json_response({"errors": [{"code": "DENIED", "message": "the internal secret"}]}, status=403)

    async with serving(internal) as host, opened(tmp_path) as store:
        async with FaultyRegistry({"a:1": busybox_image()}, blobs_at=f"http://{host}").running() as registry:
            with pytest.raises(AuthenticationRequired, match="to which the registry redirects, answered 403") as caught:
                await store.pull(f"{registry.host}/a:1")
            assert "secret" not in str(caught.value)
        async with FaultyRegistry({"a:1": busybox_image()}).running() as registry:
            registry.always["/v2/a/manifests/1"] = _says(403, "the registry's own word")
            with pytest.raises(AuthenticationRequired, match="DENIED: the registry's own word"):
                await store.pull(f"{registry.host}/a:1")


def _says(code: int, words: str) -> Fault:
    async def fault(request: web.Request, content: bytes) -> web.StreamResponse | None:
        return web.json_response({"errors": [{"code": "DENIED", "message": words, "detail": None}]}, status=code)

    return fault


# --- mirrors that are wrong


def _damage() -> Iterator[tuple[str, Callable[[FaultyRegistry, BuiltImage], None]]]:
    def blob(change: Callable[[bytes], bytes], *, config: bool = False) -> Callable[[FaultyRegistry, BuiltImage], None]:
        def apply(mirror: FaultyRegistry, image: BuiltImage) -> None:
            key = next(one for one in image.blobs if (one == image.id) == config)
            mirror.always[mirror.blob_path("a", key)] = faulty_registry.instead(change(image.blobs[key]))

        return apply

    def manifest(change: Callable[[Any], Any]) -> Callable[[FaultyRegistry, BuiltImage], None]:
        def apply(mirror: FaultyRegistry, image: BuiltImage) -> None:
            raw = change(json.loads(image.manifest))
            raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            mirror.always["/v2/a/manifests/1"] = faulty_registry.instead(raw, OCI_MANIFEST)

        return apply

    def elsewhere(document: Any) -> Any:
        """The same manifest with a configuration that is not there."""
        document["config"]["digest"] = digest(b"not there")
        return document

    other = build_image([layer(entry("another", b""))])
    yield "a layer's first bytes", blob(lambda raw: b"abcd" + raw[4:])
    yield "a layer's time", blob(lambda raw: raw[:4] + b"abcd" + raw[8:])
    yield "a layer's last bytes", blob(lambda raw: raw[:-4] + b"abcd")
    yield "a layer's middle", blob(lambda raw: raw[: len(raw) // 2] + bytes(1000) + raw[len(raw) // 2 + 1000 :])
    yield "a short layer", blob(lambda raw: raw[:-100])
    yield "a long layer", blob(lambda raw: raw + b"more")
    yield "a page for a layer", blob(lambda raw: b"<html>log in</html>")
    yield "a page of a layer's size", blob(lambda raw: b" " * len(raw))
    yield "another layer", blob(lambda raw: next(b for key, b in other.blobs.items() if key != other.id))
    yield "a configuration", blob(lambda raw: raw[:-1] + b" ", config=True)
    yield "a page for the configuration", blob(lambda raw: b"<html>", config=True)
    yield "a page for the manifest", manifest(lambda document: b"<html>log in</html>")
    yield "half a manifest", manifest(lambda document: json.dumps(document).encode()[:-50])
    yield "nothing for the manifest", manifest(lambda document: b"")
    yield "no manifest", manifest(lambda document: {"schemaVersion": 2})
    yield "schema 1", manifest(lambda document: {"schemaVersion": 1, "fsLayers": []})
    yield "an artifact", manifest(lambda document: {**document, "config": {**document["config"], "mediaType": "x/y"}})
    yield "layers of another image", manifest(lambda document: {**document, "layers": document["layers"][:1] * 3})
    yield "a configuration that is not there", manifest(elsewhere)
    yield (
        "an index without this machine",
        manifest(
            lambda document: {
                "schemaVersion": 2,
                "manifests": [other.descriptor(platform={"os": "linux", "architecture": "pdp11"})],
            }
        ),
    )


DAMAGE = dict(_damage())


@pytest.mark.trial("bad-mirrors", "a mirror with a damaged copy is passed over, whatever is damaged, layer by layer")
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("keep_blobs", [False, True])
async def test_a_damaged_mirror_is_passed_over(damage: str, keep_blobs: bool, tmp_path: Path) -> None:
    image = build_image([layer(entry(name, os.urandom(100_000))) for name in ("one", "two")])
    async with (
        FaultyRegistry({"a:1": image}).running() as bad,
        FaultyRegistry({"a:1": image}).running() as registry,
    ):
        conf = f'[[registry]]\nlocation = "{registry.host}"\n[[registry.mirror]]\nlocation = "{bad.host}"\n'
        async with opened(tmp_path, conf, keep_blobs=keep_blobs) as store:
            DAMAGE[damage](bad, image)
            pulled = await store.pull(f"{registry.host}/a:1")
            assert pulled.id == image.id
            assert registry.seen
            assert bad.seen
            names = [os.listdir(path) for path in store.layers(pulled)]
            assert names == [["two"], ["one"]]
            assert [verdict.problems for verdict in await store.verify()] == [()]
            if "layer" in damage and "layers of" not in damage:  # the rest came from the mirror
                assert {seen.path for seen in registry.seen} == {path for path in bad.always if "/blobs/" in path}


@pytest.mark.trial("bad-mirrors", "a mirror with a damaged copy is passed over, whatever is damaged, layer by layer")
async def test_an_image_that_is_wrong_everywhere_is_fetched_once_from_each(tmp_path: Path) -> None:
    tar = layer(entry("x", os.urandom(50_000)))
    image = build_image([tar], diff_ids=[digest(b"something else")])
    (blob,) = set(image.blobs) - {image.id}
    async with (
        FaultyRegistry({"a:1": image}).running() as mirror,
        FaultyRegistry({"a:1": image}).running() as other,
        FaultyRegistry({"a:1": image}).running() as registry,
    ):
        mirrors = "".join(f'[[registry.mirror]]\nlocation = "{one.host}"\n' for one in (mirror, other))
        async with opened(tmp_path, f'[[registry]]\nlocation = "{registry.host}"\n{mirrors}') as store:
            for reference in ("a:1", f"a@{image.digest}"):
                for place in (mirror, other, registry):
                    place.seen.clear()
                with pytest.raises(DigestMismatch, match="the image's configuration says"):
                    await store.pull(f"{registry.host}/{reference}")
                for place in (mirror, other, registry):
                    assert place.count()[place.blob_path("a", blob)] == 1
            for place in (mirror, other):
                place.always["/v2/a/manifests/1"] = faulty_registry.instead(b"<html>")
            registry.images = {}
            with pytest.raises(ImageError, match=r"answered 404.*parse manifest"):
                await store.pull(f"{registry.host}/a:1")


# --- what pulls again


@pytest.mark.trial(
    "repeated-pulls", "a pull of what is there asks by HEAD, which registries do not count, and fetches nothing"
)
async def test_a_repeated_pull_fetches_nothing(tmp_path: Path) -> None:
    here = build_image([layer(entry("here", b""))])
    index = build_index([(here, {"os": "linux", "architecture": _architecture(here)})])
    images = {"a:1": index}
    async with FaultyRegistry(images, login="user:pass").running() as registry, opened(tmp_path) as store:

        async def again(reference: str, login: Credentials | None = LOGIN) -> list[str]:
            registry.seen.clear()
            assert (await store.pull(f"{registry.host}/{reference}", login)).id == here.id
            return [seen.method for seen in registry.seen if seen.path != "/token" and seen.authorization]

        assert "HEAD" not in await again("a:1")
        assert await again("a:1") == ["HEAD"]
        assert await again(f"a@{index.digest}") == ["HEAD"]
        images["a:2"] = index
        assert await again("a:2") == ["HEAD"]
        (image,) = store.images()
        assert image.repo_tags == (f"{registry.host}/a:1", f"{registry.host}/a:2")
        with pytest.raises(AuthenticationRequired):  # what is here is not for everybody
            await store.pull(f"{registry.host}/a:1", Credentials(username="user", password="wrong"))
        moved = build_image([layer(entry("moved", b""))])
        images["a:1"] = moved
        assert (await store.pull(f"{registry.host}/a:1", LOGIN)).id == moved.id


@pytest.mark.trial(
    "repeated-pulls", "a pull of what is there asks by HEAD, which registries do not count, and fetches nothing"
)
async def test_registries_that_do_not_know_head(tmp_path: Path) -> None:
    image = busybox_image()
    wrong: dict[str, dict[str, str]] = {
        "no digest": {"Content-Type": OCI_MANIFEST},
        "nonsense": {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": "nonsense"},
        "another digest": {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": digest(b"another")},
        "a page": {"Content-Type": "text/html", "Docker-Content-Digest": image.digest},
    }

    def answering(said: str) -> Fault:
        async def answer(request: web.Request, content: bytes) -> web.StreamResponse | None:
            if request.method != "HEAD":
                return None
            return web.Response(status=int(said)) if said.isdigit() else web.Response(headers=wrong[said])

        return answer

    async with FaultyRegistry({"a:1": image}).running() as registry, opened(tmp_path) as store:
        for reference, asked in (("a:1", "1"), (f"a@{image.digest}", image.digest)):
            await store.pull(f"{registry.host}/{reference}")
            for said in ("405", "404", "500", *wrong):
                registry.always[f"/v2/a/manifests/{asked}"] = answering(said)
                registry.seen.clear()
                assert (await store.pull(f"{registry.host}/{reference}")).id == image.id
                assert [seen.method for seen in registry.seen] == ["HEAD", "GET"], said


def _architecture(image: BuiltImage) -> str:
    return str(json.loads(image.blobs[image.id])["architecture"])


# --- what is taken up again


@pytest.mark.trial("resumed-blobs", "a layer that ends early, or whose range is refused, is taken up again")
async def test_a_large_layer_comes_by_ranges_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the registry can; if it sends something else, or a connection breaks, the layer comes all the same."""
    monkeypatch.setattr("image.registry.ranges.LARGE", 100_000)
    monkeypatch.setattr("image.registry.ranges.RANGE", 40_000)
    built = build_image([layer(entry("large", os.urandom(300_000)))])
    (key,) = set(built.blobs) - {built.id}
    size = len(built.blobs[key])
    all_at_once = asyncio.Event()
    waiting = 0

    async def together(request: web.Request, content: bytes) -> web.StreamResponse | None:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            all_at_once.set()
        await asyncio.wait_for(all_at_once.wait(), 60)
        return None

    async def well(request: web.Request, content: bytes) -> web.StreamResponse | None:
        return None

    odd = faulty_registry
    cases: dict[str, tuple[list[Fault], int]] = {
        "at once": ([well, together, together, together], 0),
        "broken": ([odd.cut_range, odd.reset, odd.cut_range], 0),
        "the end is ignored": ([odd.to_the_end], 1),
        "ignored later": ([well, odd.whole_again], 1),
        "refused later": ([well, odd.status(416)], 1),
    }
    for what, (faults, whole) in cases.items():
        (tmp_path / what).mkdir()
        async with FaultyRegistry({"a:1": built}).running() as registry, opened(tmp_path / what) as store:
            path = registry.blob_path("a", key)
            registry.faults[path] = list(faults)
            await store.pull(f"{registry.host}/a:1")
            asked = [seen.range for seen in registry.seen if seen.path == path]
            assert sum(not one or one.endswith("-") for one in asked) == whole, (what, asked)
            assert f"bytes=0-{39_999}" in asked
            assert whole or f"bytes=280000-{size - 1}" in asked


async def test_few_large_layers_come_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all pulls, since their ranges wait in memory; a place is free again when such a layer has come."""
    monkeypatch.setattr("image.registry.ranges.LARGE", 100_000)
    monkeypatch.setattr("image.registry.ranges.RANGE", 40_000)
    images = {f"{number}:1": build_image([layer(entry("x", os.urandom(300_000)))]) for number in range(3)}
    keys = {name.partition(":")[0]: next(iter(set(built.blobs) - {built.id})) for name, built in images.items()}
    held = asyncio.Event()

    async def until_all_are_asked(request: web.Request, content: bytes) -> web.StreamResponse | None:
        await asyncio.wait_for(held.wait(), 60)
        return None

    async with FaultyRegistry(images).running() as registry, opened(tmp_path) as store:
        paths = [registry.blob_path(name, key) for name, key in keys.items()]
        for path in paths:
            registry.faults[path] = [until_all_are_asked]
        pulls = [asyncio.create_task(store.pull(f"{registry.host}/{name}")) for name in images]
        await eventually(lambda: all(not registry.faults[path] for path in paths))
        held.set()
        await asyncio.gather(*pulls)
        firsts = [next(seen.range for seen in registry.seen if seen.path == path) for path in paths]
        assert sorted(firsts) == ["", "bytes=0-39999", "bytes=0-39999"]
        await store.remove(f"{registry.host}/0:1")
        registry.seen.clear()
        await store.pull(f"{registry.host}/0:1")
        assert next(seen.range for seen in registry.seen if seen.path == paths[0]) == "bytes=0-39999"


async def test_ranges_that_are_refused(tmp_path: Path) -> None:
    image = build_image([layer(entry("x", os.urandom(300_000)))])
    (blob,) = set(image.blobs) - {image.id}
    async with FaultyRegistry({"a:1": image}).running() as registry, opened(tmp_path) as store:
        path = registry.blob_path("a", blob)
        for refusal in (400, 403, 405, 416, 501):

            async def no_ranges(
                request: web.Request, content: bytes, refusal: int = refusal
            ) -> web.StreamResponse | None:
                return web.Response(status=refusal) if "Range" in request.headers else None

            registry.always[path] = no_ranges
            registry.faults[path] = [faulty_registry.half]
            await store.pull(f"{registry.host}/a:1")
            assert registry.faults[path] == []
            await store.remove(image.id)


@pytest.mark.trial("resumed-blobs", "a layer that ends early, or whose range is refused, is taken up again")
async def test_a_body_that_ends_early_in_good_order(tmp_path: Path) -> None:
    image = build_image([layer(entry("x", os.urandom(300_000)))])
    (blob,) = set(image.blobs) - {image.id}
    async with FaultyRegistry({"a:1": image}).running() as registry, opened(tmp_path) as store:
        path = registry.blob_path("a", blob)
        registry.faults[path] = [faulty_registry.quietly_cut] * 5
        await store.pull(f"{registry.host}/a:1")
        size = len(image.blobs[blob])
        assert [seen.range for seen in registry.seen if seen.path == path][:3] == [
            "", f"bytes={(size + 1) // 2}-", f"bytes={(size + 1) // 2 + (size - (size + 1) // 2 + 1) // 2}-",
        ]  # fmt: skip
        await store.remove(image.id)

        async def never_whole(request: web.Request, content: bytes) -> web.StreamResponse | None:
            return await faulty_registry.quietly_cut(request.clone(headers={}), content[:-1000])

        registry.always[path] = never_whole
        with pytest.raises(RegistryUnavailable, match=r"ends after \d+ of \d+ bytes"):
            await store.pull(f"{registry.host}/a:1")


@pytest.mark.trial("transient-answers", "an answer that says `not now` is asked again, one that says `never` is not")
async def test_answers_that_pass(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        for code in (408, 425, 429, 500, 502, 503, 504, 507, 520, 522, 524, 529):
            paths = ["/v2/a/manifests/1"]
            if code == 520:
                paths += [registry.blob_path("a", key) for key in busybox_image().blobs]
            registry.faults = {path: [faulty_registry.status(code)] for path in paths}
            await store.pull(f"{registry.host}/a:1")
            assert not any(registry.faults.values()), code
            await store.remove(busybox_image().id)


@pytest.mark.trial("transient-answers", "an answer that says `not now` is asked again, one that says `never` is not")
async def test_answers_that_stay(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        for code in (404, 410, 418, 451, 501, 505, 511):
            registry.always["/v2/a/manifests/1"] = faulty_registry.status(code)
            registry.seen.clear()
            with pytest.raises(ImageError, match=f"answered {code}"):
                await store.pull(f"{registry.host}/a:1")
            assert len(registry.seen) == 1


# --- images that claim to be for others


@pytest.mark.trial("image-platforms", "platforms are compared as containerd does, and claims only doubted")
@pytest.mark.parametrize("claim", ["arm64", "386", "X86_64", "", "pdp11"])
async def test_a_configuration_that_claims_another_machine(
    claim: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = build_image([layer(entry("x", b""))], architecture=claim)
    index = build_index([(image, {"os": "linux", "architecture": _architecture(busybox_image())})])
    windows = build_image([layer(entry("x", b""))])
    document = {**json.loads(windows.blobs.pop(windows.id)), "os": "windows"}
    raw = json.dumps(document).encode()
    manifest = json.loads(windows.manifest)
    manifest["config"].update(digest=digest(raw), size=len(raw))
    windows.manifest, windows.blobs[digest(raw)] = json.dumps(manifest).encode(), raw
    images = {"a:1": image, "b:1": index, "windows:1": windows}
    async with FaultyRegistry(images).running() as registry, opened(tmp_path) as store:
        assert (await store.pull(f"{registry.host}/a:1")).id == image.id
        await store.remove(image.id)
        assert (await store.pull(f"{registry.host}/b:1")).id == image.id
        doubts = [record for record in caplog.records if "may not run on this platform" in record.message]
        assert len(doubts) == (2 if claim in ("arm64", "pdp11") else 0)
        with pytest.raises(OtherPlatform, match="is for windows"):
            await store.pull(f"{registry.host}/windows:1")


@pytest.mark.trial("inert-in-images", "what is inert in an image does not refuse it")
async def test_a_layer_that_is_not_for_distribution(tmp_path: Path) -> None:
    """The registry is asked for it, and whoever its urls name is not."""
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    image = build_image([layer(entry("x", b""))], layer_type=kind)
    (blob,) = set(image.blobs) - {image.id}
    async with FaultyRegistry({"a:1": image}).running() as other, opened(tmp_path) as store:
        manifest = json.loads(image.manifest)
        manifest["layers"][0]["urls"] = [f"http://{other.host}{other.blob_path('a', blob)}"]
        image.manifest = json.dumps(manifest).encode()
        other.seen.clear()
        async with FaultyRegistry({"a:1": image}).running() as registry:
            await store.pull(f"{registry.host}/a:1")
            await store.remove(image.id)
            del image.blobs[blob]
            with pytest.raises(ImageError, match=r"answered 404.*urls are not followed"):
                await store.pull(f"{registry.host}/a:1")
        assert other.seen == []


@pytest.mark.trial("inert-in-images", "what is inert in an image does not refuse it")
async def test_a_large_manifest_and_an_old_configuration(tmp_path: Path) -> None:
    image = build_image(
        [layer(entry("x", b""))], annotations={"large": "a" * (5 << 20)}, config_type="application/octet-stream"
    )
    huge = build_image([layer(entry("x", b""))], annotations={"large": "a" * (9 << 20)})
    odd = build_image([layer(entry("x", b""))], config_type="application/octet-stream")
    manifest = json.loads(odd.manifest)
    manifest["config"].update(digest=digest(b"no configuration"), size=len(b"no configuration"))
    odd.manifest, odd.blobs[digest(b"no configuration")] = json.dumps(manifest).encode(), b"no configuration"
    images = {"a:1": image, "huge:1": huge, "odd:1": odd}
    async with FaultyRegistry(images).running() as registry, opened(tmp_path) as store:
        assert (await store.pull(f"{registry.host}/a:1")).id == image.id
        with pytest.raises(DigestMismatch, match="longer than 8388608 bytes"):
            await store.pull(f"{registry.host}/huge:1")
        with pytest.raises(InvalidImage, match="parse configuration"):
            await store.pull(f"{registry.host}/odd:1")
