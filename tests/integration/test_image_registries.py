"""Pulls from registries as nodes in production meet them: logins, certificates, proxies, limits, bad days."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession, web

from cri.v1 import api_pb2 as cri
from image.errors import (
    AuthenticationRequired,
    InvalidConfiguration,
    InvalidImage,
    InvalidReference,
    RegistryUnavailable,
)
from image.model import Credentials
from image.platforms import node_platforms
from image.settings import ImageSettings
from image.store import ImageStore
from tests import faulty_registry
from tests.daemon import Daemon
from tests.faulty_registry import FaultyRegistry
from tests.images import OCI_INDEX, OCI_LAYER, build_image, build_index, busybox_image, digest, entry, layer
from tests.pki import Authority
from tests.registry import Registry
from tests.waiting import until


@asynccontextmanager
async def opened(tmp_path: Path, conf: str = "", **settings: Any) -> AsyncIterator[ImageStore]:
    """A store of its own, which sees none of this machine's configuration."""
    (tmp_path / "registries.conf").write_text(conf)
    settings = {"auth_file": tmp_path / "auth.json", "certs_dirs": (tmp_path / "certs.d",), **settings}
    store = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf", ImageSettings(**settings))
    try:
        yield store
    finally:
        assert not os.listdir(tmp_path / "image/tmp")
        await store.close()


def log_in(path: Path, **logins: str) -> None:
    auths = {key.replace("__", "/"): {"auth": base64.b64encode(v.encode()).decode()} for key, v in logins.items()}
    path.write_text(json.dumps({"auths": auths}))


@asynccontextmanager
async def token_service(authority: Authority, directory: Path, login: str) -> AsyncIterator[str]:
    """A token service whose signature docker-registry accepts (distribution's token specification); its URL."""

    async def answer(request: web.Request) -> web.Response:
        form = await request.post()
        known = request.headers.get("Authorization") == "Basic " + base64.b64encode(login.encode()).decode()
        if not known and form.get("refresh_token") != "refresh":
            return web.Response(status=401)
        kind, name, actions = str(form.get("scope") or request.query["scope"]).split(":")
        access = [{"type": kind, "name": name, "actions": actions.split(",")}]
        claims = {"iss": "here", "sub": "", "aud": "registry", "exp": int(time.time()) + 60, "access": access}
        return web.json_response({"token": authority.sign_token(claims)})

    application = web.Application()
    application.router.add_route("*", "/token", answer)
    certificate, key = authority.issue(directory, "token")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


async def test_a_registry_with_tokens_tls_and_client_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with Registry(tmp_path / "registry") as filling:
        filling.push("team/busybox", "1", busybox_image())
    certificate, key = authority.issue(tmp_path, "registry")
    client, client_key = authority.issue(tmp_path, "client")
    tls = {"certificate": str(certificate), "key": str(key), "clientcas": [str(authority.certificate)]}
    async with token_service(authority, tmp_path, "user:pass") as realm, opened(tmp_path) as store:
        token = {"realm": realm, "service": "registry", "issuer": "here", "rootcertbundle": str(authority.certificate)}
        with Registry(tmp_path / "registry", {"token": token}, tls) as registry:
            name = f"{registry.host}/team/busybox:1"
            for host in (registry.host, realm.split("/")[2]):
                (tmp_path / "certs.d" / host).mkdir(parents=True)
            with pytest.raises(RegistryUnavailable, match="certificate verify failed"):
                await store.pull(name)
            for host in (registry.host, realm.split("/")[2]):
                (tmp_path / "certs.d" / host / "ca.crt").write_bytes(authority.certificate.read_bytes())
            with pytest.raises(RegistryUnavailable, match=r"certificate required|SSL|connection"):
                await store.pull(name)
            (tmp_path / "certs.d" / registry.host / "client.cert").write_bytes(client.read_bytes())
            (tmp_path / "certs.d" / registry.host / "client.key").write_bytes(client_key.read_bytes())
            with pytest.raises(AuthenticationRequired, match="answered 401"):
                await store.pull(name)
            log_in(tmp_path / "auth.json", **{f"{registry.host}__team": "user:pass"})
            assert (await store.pull(name)).id == busybox_image().id
            await store.remove(name)
            await store.pull(name, Credentials(identity_token="refresh"))
            await store.remove(name)
            (tmp_path / "other.json").write_text("{}")
            with pytest.raises(AuthenticationRequired):
                await store.pull(name, auth_file=tmp_path / "other.json")


async def test_mirrors_are_logged_in_to_with_their_own_credentials(tmp_path: Path) -> None:
    image = {"a:1": busybox_image()}
    async with (
        FaultyRegistry(dict(image), login="mirror:m", basic=True).running() as mirror,
        FaultyRegistry(dict(image), login="own:o").running() as registry,
    ):
        conf = f'[[registry]]\nlocation = "{registry.host}"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n'
        async with opened(tmp_path, conf) as store:
            log_in(tmp_path / "auth.json", **{mirror.host: "mirror:m", registry.host: "own:o"})
            await store.pull(f"{registry.host}/a:1", Credentials(username="given", password="g"))
            assert not registry.seen
            mirrored = {seen.authorization for seen in mirror.seen}
            assert mirrored == {"", "Basic " + base64.b64encode(b"mirror:m").decode()}
            await store.remove(f"{registry.host}/a:1")
            mirror.login = "changed:c"
            await store.pull(f"{registry.host}/a:1")
            assert registry.seen


async def test_a_host_that_we_are_redirected_to_gets_no_credentials_by_asking_for_them(tmp_path: Path) -> None:
    """It names a token service of its own, which would be told the registry's login (as in CVE-2020-15157)."""
    image = {"a:1": busybox_image()}
    async with (
        FaultyRegistry(dict(image), login="other:o").running() as elsewhere,
        FaultyRegistry(dict(image), login="own:o", blobs_at=f"http://{elsewhere.host}").running() as registry,
        opened(tmp_path) as store,
    ):
        with pytest.raises(AuthenticationRequired, match="answered 401"):
            await store.pull(f"{registry.host}/a:1", Credentials(username="own", password="o"))
        assert any("/blobs/" in seen.path for seen in elsewhere.seen)
        assert {seen.authorization for seen in elsewhere.seen} == {""}


@pytest.mark.parametrize("where", ["http://[/x", "https://a:99999/x"])
async def test_urls_that_are_none(tmp_path: Path, where: str) -> None:
    """A registry's nonsense is the registry's failure."""
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        path = "/v2/a/manifests/1"
        registry.faults[path] = [faulty_registry.status(307, {"Location": where})] * 3
        with pytest.raises(RegistryUnavailable, match="redirect"):
            await store.pull(f"{registry.host}/a:1")
        registry.faults[path] = [faulty_registry.status(401, {"WWW-Authenticate": f'Bearer realm="{where}"'})]
        with pytest.raises(AuthenticationRequired, match="token service"):
            await store.pull(f"{registry.host}/a:1")


async def test_errors_tell_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed URLs' queries, the proxy's password."""

    async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        refused = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        writer.write(refused if asked.startswith(b"CONNECT") else b"HTTP/1.1 zero\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(no_http, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        image = {"a:1": busybox_image()}
        async with FaultyRegistry(image, blobs_at=f"http://{host}").running() as registry, opened(tmp_path) as store:
            with pytest.raises(RegistryUnavailable) as caught:
                await store.pull(f"{registry.host}/a:1")
            assert "secret" not in str(caught.value)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:hidden@{host}")
        async with opened(tmp_path) as store:
            with pytest.raises(RegistryUnavailable, match="407") as caught:
                await store.pull("registry.invalid/a:1")
            assert "hidden" not in str(caught.value)


async def test_a_bearer_token_is_sent_as_it_is(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}, login="x:y").running() as registry, opened(tmp_path) as store:
        await store.pull(f"{registry.host}/a:1", Credentials(registry_token="t-given"))
        assert {seen.authorization for seen in registry.seen} == {"Bearer t-given"}


async def test_requests_go_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is the only one who can resolve the registry's name."""
    asked: list[str] = []
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry:

        async def forward(request: web.Request) -> web.Response:
            asked.append(str(request.url.host))
            async with ClientSession() as session, session.get(f"http://{registry.host}{request.path}") as answer:
                headers = {"Content-Type": answer.headers["Content-Type"]}
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)

        server = web.AppRunner(_application(forward))
        await server.setup()
        try:
            await web.TCPSite(server, "127.0.0.1", 0).start()
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.addresses[0][1]}")
            conf = '[[registry]]\nlocation = "registry.invalid"\ninsecure = true\n'
            async with opened(tmp_path, conf) as store:
                await store.pull("registry.invalid/a:1")
            assert set(asked) == {"registry.invalid"}
            monkeypatch.setenv("NO_PROXY", ".invalid")
            async with opened(tmp_path, conf) as store:
                await store.remove("registry.invalid/a:1")
                with pytest.raises(RegistryUnavailable):
                    await store.pull("registry.invalid/a:1")
        finally:
            await server.cleanup()


def _application(handler: Callable[[web.Request], Any]) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    return application


async def test_a_registry_that_limits_us_is_asked_again_when_it_says(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        registry.faults["/v2/a/manifests/1"] = [faulty_registry.status(429, {"Retry-After": "1"})]
        before = time.monotonic()
        await store.pull(f"{registry.host}/a:1")
        assert time.monotonic() - before >= 1


async def test_a_registry_that_drips_ends_its_pull_and_holds_up_no_other(tmp_path: Path) -> None:
    dripping = build_image([layer(entry(str(n), os.urandom(200_000))) for n in range(6)])
    async with (
        FaultyRegistry({"slow:1": dripping, "quick:1": busybox_image()}).running() as registry,
        opened(tmp_path, progress_timeout=2.0) as store,
    ):
        for blob in set(dripping.blobs) - {dripping.id}:
            registry.faults[registry.blob_path("slow", blob)] = [faulty_registry.drip] * 3
        slow = asyncio.create_task(store.pull(f"{registry.host}/slow:1"))
        await store.pull(f"{registry.host}/quick:1")
        with pytest.raises(RegistryUnavailable, match=r"no progress within 2 s: \d+ of at least 65536 .* in all"):
            await asyncio.wait_for(slow, 60)


@pytest.mark.cri("PullImage", "image", "a client that goes away")
async def test_a_cri_client_that_goes_away_ends_its_pull() -> None:
    built = build_image([layer(entry("x", os.urandom(200_000)))])
    (blob,) = set(built.blobs) - {built.id}
    async with FaultyRegistry({"a:1": built}).running() as registry:
        registry.faults[registry.blob_path("a", blob)] = [faulty_registry.drip] * 2

        def pull_and_leave() -> None:
            with Daemon.running() as daemon:
                request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry.host}/a:1"))
                with pytest.raises(grpc.RpcError) as left:
                    daemon.images.PullImage(request, timeout=1.5)
                assert left.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                until(lambda: not os.listdir(daemon.root / "image/tmp"))

        await asyncio.to_thread(pull_and_leave)


async def test_the_variant_of_this_machine_is_chosen_through_nested_indexes(tmp_path: Path) -> None:
    images = {v: build_image([layer(entry(v, b""))]) for v in ("v5", "v6", "v7")}
    for image in images.values():  # what the configuration itself says of the platform
        _rewrite(image, architecture="arm")
    arm = build_index([(image, {"os": "linux", "architecture": "arm", "variant": v}) for v, image in images.items()])
    outer = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [arm.descriptor()]}).encode()
    top = type(arm)(outer, OCI_INDEX, {}, "", [arm, *images.values()])
    async with FaultyRegistry({"a:1": top}).running() as registry, opened(tmp_path) as store:
        store.pulls._platforms = node_platforms("armv6l")
        image = await store.pull(f"{registry.host}/a:1")
        assert os.listdir(store.layers(image)[0]) == ["v6"]


def _rewrite(image: Any, **fields: str) -> None:
    """Change members of an image's configuration, and the manifest with it."""
    config = json.loads(image.blobs.pop(image.id))
    raw = json.dumps({**config, **fields}).encode()
    manifest = json.loads(image.manifest)
    manifest["config"].update(digest=digest(raw), size=len(raw))
    image.blobs[digest(raw)] = raw
    image.id, image.manifest = digest(raw), json.dumps(manifest).encode()


async def test_what_is_no_image_is_refused_by_its_kind(tmp_path: Path) -> None:
    schema1 = build_image([])
    schema1.manifest = b'{"schemaVersion": 1}'
    schema1.media_type = "application/vnd.docker.distribution.manifest.v1+json"
    kinds = {
        "schema1": (schema1, "Docker schema 1"),
        "artifact": (build_image([layer()], config_type="application/vnd.example.chart+json"), "artifact of type"),
        "encrypted": (build_image([layer()], layer_type=f"{OCI_LAYER}+gzip+encrypted"), "unsupported type"),
        "unknown": (build_image([layer()], layer_type="application/x-strange"), "unsupported type"),
    }
    async with (
        FaultyRegistry({f"{kind}:1": image for kind, (image, _) in kinds.items()}).running() as registry,
        opened(tmp_path) as store,
    ):
        for kind, (_, says) in kinds.items():
            with pytest.raises(InvalidImage, match=says):
                await store.pull(f"{registry.host}/{kind}:1")


async def test_a_wrong_configuration_refuses_the_pull_not_the_store(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry, opened(tmp_path) as store:
        (tmp_path / "registries.conf").write_text("[[registry]\n")
        with pytest.raises(InvalidConfiguration, match=r"registries\.conf"):
            await store.pull(f"{registry.host}/a:1")
        search = f'unqualified-search-registries = ["127.0.0.1:1", "{registry.host}"]\n'
        (tmp_path / "registries.conf").write_text(search + 'short-name-mode = "enforcing"\n')
        with pytest.raises(InvalidReference, match="enforcing"):
            await store.pull("a:1")
        (tmp_path / "registries.conf").write_text(search)
        image = await store.pull("a:1")
        assert image.repo_tags == (f"{registry.host}/a:1",)
        assert store.find("a:1") == image
