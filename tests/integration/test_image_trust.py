"""The signature policy: what it refuses is neither pulled nor run. gpg and skopeo make the signatures, as for users."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cri.v1 import api_pb2 as cri
from image.errors import InvalidConfiguration, InvalidImage, RegistryBlocked, SignatureRefused
from image.settings import ImageSettings
from image.store import ImageStore
from tests import faulty_registry
from tests.daemon import Daemon
from tests.faulty_registry import FaultyRegistry
from tests.images import (
    ARCHITECTURE,
    OCI_MANIFEST,
    BuiltImage,
    build_image,
    build_index,
    busybox_image,
    busybox_layout,
    digest,
    entry,
    layer,
)
from tests.registry import Registry

ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}
_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"


def write_policy(tmp_path: Path, docker: Mapping[str, Any], default: Any = REJECT) -> None:
    transports = {"docker": {scope: [one] for scope, one in docker.items()}}
    (tmp_path / "policy.json").write_text(json.dumps({"default": [default], "transports": transports}))


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[ImageStore]:
    settings = ImageSettings(signature_policy=tmp_path / "policy.json", registries_d=tmp_path / "registries.d")
    store = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf", settings)
    try:
        yield store
    finally:
        await store.close()


class Cosign:
    """A key, and signatures by it as cosign leaves them beside images."""

    def __init__(self, path: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        encoding = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        path.write_bytes(self._key.public_key().public_bytes(*encoding))
        self.requirement = {"type": "sigstoreSigned", "keyPath": str(path)}

    def sign(self, image: BuiltImage, name: str, *, kind: str = "cosign container image signature") -> BuiltImage:
        """What the tag sha256-<hex>.sig is to name."""
        names = {"image": {"docker-manifest-digest": image.digest}, "identity": {"docker-reference": name}}
        claim = {"type": kind, **names}
        payload = json.dumps({"critical": claim, "optional": None}).encode()
        signature = base64.b64encode(self._key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
        config = b"{}"
        described = {
            "mediaType": _PAYLOAD,
            "digest": digest(payload),
            "size": len(payload),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": 2},
            "layers": [described],
        }
        blobs = {digest(payload): payload, digest(config): config}
        return BuiltImage(json.dumps(manifest).encode(), OCI_MANIFEST, blobs, digest(config))


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def tag(image: BuiltImage) -> str:
    return image.digest.replace(":", "-") + ".sig"


async def test_rejected_images_are_not_even_asked_for(tmp_path: Path) -> None:
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry:
        write_policy(tmp_path, {registry.host: REJECT, f"{registry.host}/a:1": REJECT}, default=ACCEPT)
        async with opened(tmp_path) as store:
            with pytest.raises(SignatureRefused, match=r"^accept .*rejects it"):
                await store.pull(f"{registry.host}/a:1")
            assert not registry.seen
            write_policy(tmp_path, {registry.host: REJECT, f"{registry.host}/a": ACCEPT})
            image = await store.pull(f"{registry.host}/a:1")
            write_policy(tmp_path, {registry.host: REJECT})
            with pytest.raises(SignatureRefused):
                await store.require_trusted(image, image.id)
            (tmp_path / "policy.json").write_text('{"default": [{"type": "sigstoreSigned", "fulcio": {}}]}')
            with pytest.raises(InvalidConfiguration, match=r"policy\.json.*fulcio"):
                await store.pull(f"{registry.host}/a:1")


async def test_names_of_registries_are_the_same_in_capitals(tmp_path: Path) -> None:
    """DNS does not tell LOCALHOST from localhost: neither may a policy, nor what registries.conf blocks."""
    async with FaultyRegistry({"a:1": busybox_image()}).running() as registry:
        port = registry.host.rpartition(":")[2]
        write_policy(tmp_path, {f"LocalHost:{port}": REJECT}, default=ACCEPT)
        async with opened(tmp_path) as store:
            for host in ("localhost", "LOCALHOST"):
                with pytest.raises(SignatureRefused, match="rejects it"):
                    await store.pull(f"{host}:{port}/a:1")
            write_policy(tmp_path, {}, default=ACCEPT)
            conf = f'[[registry]]\nlocation = "LocalHost:{port}"\nblocked = true\n'
            (tmp_path / "registries.conf").write_text(conf)
            for host in ("localhost", "LOCALHOST"):
                with pytest.raises(RegistryBlocked):
                    await store.pull(f"{host}:{port}/a:1")
            (tmp_path / "registries.conf").write_text("")
            image = await store.pull(f"LOCALHOST:{port}/a:1")
            assert image.repo_tags == (f"localhost:{port}/a:1",)
            assert not [seen for seen in registry.seen if "LOCALHOST" in seen.path]


async def test_a_signature_names_a_blob_and_no_other_path_of_the_registry(tmp_path: Path) -> None:
    image, cosign = busybox_image(), Cosign(tmp_path / "key.pub")
    async with FaultyRegistry({"a:1": image}).running() as registry:
        good = cosign.sign(image, f"{registry.host}/a:1")
        manifest = json.loads(good.manifest)
        manifest["layers"][0]["digest"] = "x/../../../../elsewhere"
        evil = BuiltImage(json.dumps(manifest).encode(), OCI_MANIFEST, good.blobs, good.id)
        registry.images[f"a:{tag(image)}"] = evil
        write_policy(tmp_path, {registry.host: cosign.requirement})
        async with opened(tmp_path) as store:
            with pytest.raises(InvalidImage, match="is not a sha256 digest"):
                await store.pull(f"{registry.host}/a:1")
        assert not [seen.path for seen in registry.seen if "/manifests/" not in seen.path]


async def test_a_mirror_without_signatures_still_serves_the_image(tmp_path: Path) -> None:
    image, cosign = busybox_image(), Cosign(tmp_path / "key.pub")
    async with FaultyRegistry({"a:1": image}).running() as mirror, FaultyRegistry({"a:1": image}).running() as registry:
        conf = f'[[registry]]\nlocation = "{registry.host}"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n'
        (tmp_path / "registries.conf").write_text(conf)
        signature = cosign.sign(image, f"{registry.host}/a:1")
        registry.images[f"a:{tag(image)}"] = signature
        write_policy(tmp_path, {registry.host: cosign.requirement})
        async with opened(tmp_path) as store:
            await store.pull(f"{registry.host}/a:1")
        blobs = {seen.path.rpartition("/")[2] for seen in registry.seen if "/blobs/" in seen.path}
        assert blobs.isdisjoint(image.blobs)
        assert blobs <= signature.blobs.keys()


@pytest.mark.trial("bad-mirrors", "a mirror with a damaged copy is passed over, whatever is damaged, layer by layer")
async def test_a_mirror_whose_copy_is_not_the_signed_one_is_passed_over(tmp_path: Path) -> None:
    """Nothing of it is fetched but its manifest, and its word for signatures is not the last one."""
    image, cosign = busybox_image(), Cosign(tmp_path / "key.pub")
    forged = build_image([layer(entry("forged", b""))])
    async with (
        FaultyRegistry({"a:1": forged}).running() as mirror,
        FaultyRegistry({"a:1": image}).running() as registry,
    ):
        conf = f'[[registry]]\nlocation = "{registry.host}"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n'
        (tmp_path / "registries.conf").write_text(conf)
        signature = cosign.sign(image, f"{registry.host}/a:1")
        registry.images[f"a:{tag(image)}"] = signature
        page = faulty_registry.instead(b"<html>log in</html>")
        mirror.images[f"a:{tag(image)}"] = signature
        mirror.always = {f"/v2/a/manifests/{tag(image)}": page}
        write_policy(tmp_path, {registry.host: cosign.requirement})
        async with opened(tmp_path) as store:
            assert (await store.pull(f"{registry.host}/a:1")).id == image.id
            assert not any("/blobs/" in seen.path for seen in mirror.seen)
            await store.remove(image.id)
            mirror.images["a:1"] = image
            assert (await store.pull(f"{registry.host}/a:1")).id == image.id
            await store.remove(image.id)
            mirror.images["a:1"] = forged
            registry.images = {}
            with pytest.raises(SignatureRefused, match="there is none"):
                await store.pull(f"{registry.host}/a:1")
            assert store.images() == []


async def test_of_what_a_short_name_means_the_first_that_is_accepted_is_pulled(tmp_path: Path) -> None:
    async with (
        FaultyRegistry({"a:1": busybox_image()}).running() as refused,
        FaultyRegistry({"a:1": busybox_image()}).running() as accepted,
    ):
        search = f'unqualified-search-registries = ["{refused.host}", "{accepted.host}"]\n'
        (tmp_path / "registries.conf").write_text(search)
        write_policy(tmp_path, {accepted.host: ACCEPT})
        async with opened(tmp_path) as store:
            assert (await store.pull("a:1")).repo_tags == (f"{accepted.host}/a:1",)
            assert not refused.seen


async def test_sigstore_signatures_of_images_and_indexes(tmp_path: Path) -> None:
    ours, theirs = Cosign(tmp_path / "ours.pub"), Cosign(tmp_path / "theirs.pub")
    images = {n: build_image([layer(entry(n, b""))]) for n in ("good", "unsigned", "other", "moved", "type", "listed")}
    index = build_index([(images["listed"], {"os": "linux", "architecture": ARCHITECTURE})])
    async with FaultyRegistry().running() as registry:
        name = f"{registry.host}/a"
        signed = {
            "good": ours.sign(images["good"], f"{name}:good"),
            "other": theirs.sign(images["other"], f"{name}:other"),
            "moved": ours.sign(images["moved"], f"{name}:elsewhere"),
            "type": ours.sign(images["type"], f"{name}:type", kind="something else"),
        }
        registry.images = {f"a:{n}": image for n, image in images.items()} | {"a:listed": index}
        registry.images |= {f"a:{tag(images[n])}": signature for n, signature in signed.items()}
        # A signature of another image, put where this one's would be.
        registry.images[f"a:{tag(images['unsigned'])}"] = signed["good"]
        registry.images[f"a:{tag(index)}"] = ours.sign(index, name)
        write_policy(tmp_path, {registry.host: ours.requirement})
        async with opened(tmp_path) as store:
            refusals = {
                "unsigned": f"one covers {images['good'].digest}",
                "other": "not made by a key",
                "moved": "one is for .*:elsewhere",
                "type": "not made by a key",
                "listed": f"one is for '{name}'",
            }
            for which, says in refusals.items():
                with pytest.raises(SignatureRefused, match=says):
                    await store.pull(f"{name}:{which}")
            assert store.images() == []
            assert os.listdir(tmp_path / "image/layers") == ["0"]
            good = await store.pull(f"{name}:good")
            await store.require_trusted(good, f"{name}:good")
            with pytest.raises(SignatureRefused):
                await store.require_trusted(good, f"{name}:other")
            by_repository = {**ours.requirement, "signedIdentity": {"type": "matchRepository"}}
            write_policy(tmp_path, {registry.host: by_repository})
            assert (await store.pull(f"{name}:listed")).id == images["listed"].id
            await store.pull(f"{name}:moved")
        # What was pulled is known to be signed without its registry, and after a restart.
        async with opened(tmp_path) as store:
            await store.require_trusted(good, good.id)
            write_policy(tmp_path, {registry.host: theirs.requirement})
            with pytest.raises(SignatureRefused, match="not made by a key"):
                await store.require_trusted(good, good.id)


async def test_simple_signatures_by_gpg_as_skopeo_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    make = ("gpg", "--batch", "--passphrase", "", "--quick-generate-key")
    for who in ("good@example.com", "bad@example.com"):
        run(*make, who, "ed25519", "sign", "never")
    try:
        for who, armour in (("good", "--armor"), ("bad", "--no-armor")):
            (tmp_path / f"{who}.gpg").write_bytes(run("gpg", armour, "--export", f"{who}@example.com"))
        layout = busybox_layout(tmp_path / "layout", "1")
        with Registry(tmp_path / "registry") as registry:
            _sign_with_skopeo(tmp_path, registry, layout)
            requirement = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(tmp_path / "good.gpg")}
            write_policy(tmp_path, {registry.host: requirement})
            async with opened(tmp_path) as store:
                image = await store.pull(f"{registry.host}/app:1")
                await store.require_trusted(image, image.id)
                await store.remove(image.id)
                registry.push("unsigned", "1", build_image([layer(entry("x", b""))]))
                with pytest.raises(SignatureRefused, match="there is none"):
                    await store.pull(f"{registry.host}/unsigned:1")
                registry.push("app", "2", busybox_image())
                with pytest.raises(SignatureRefused, match=r"there is none|one is for"):
                    await store.pull(f"{registry.host}/app:2")
                write_policy(tmp_path, {registry.host: {**requirement, "keyPath": str(tmp_path / "bad.gpg")}})
                with pytest.raises(SignatureRefused, match="not made by a key"):
                    await store.pull(f"{registry.host}/app:1")
                assert store.images() == []
                both = [str(tmp_path / "bad.gpg"), str(tmp_path / "good.gpg")]
                either = {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": both}
                write_policy(tmp_path, {registry.host: either})
                await store.pull(f"{registry.host}/app:1")
    finally:
        run("gpgconf", "--kill", "gpg-agent")


def _sign_with_skopeo(tmp_path: Path, registry: Registry, layout: Path) -> None:
    lookaside = tmp_path / "lookaside"
    registries_d = tmp_path / "registries.d"
    registries_d.mkdir()
    here = f"default-docker:\n  sigstore: file://{lookaside}\n  sigstore-staging: file://{lookaside}\n"
    (registries_d / "default.yaml").write_text(here)
    command = ("skopeo", "--insecure-policy", "--registries.d", registries_d, "copy", "-q", "--dest-tls-verify=false")
    to = f"docker://{registry.host}/app:1"
    run(*command, "--sign-by", "good@example.com", f"oci:{layout}:1", to)


async def test_archives_are_accepted_by_their_own_scopes(tmp_path: Path) -> None:
    layout = busybox_layout(tmp_path / "layout")
    write_policy(tmp_path, {"": ACCEPT})
    async with opened(tmp_path) as store:
        with pytest.raises(SignatureRefused, match="oci"):
            await store.import_archive(layout)
        policy = {"default": [REJECT], "transports": {"oci": {str(tmp_path): [ACCEPT]}, "docker": {"": [ACCEPT]}}}
        (tmp_path / "policy.json").write_text(json.dumps(policy))
        (image,) = await store.import_archive(layout)
        await store.require_trusted(image, image.id)
        policy["transports"]["oci"] = {str(tmp_path / "trusted"): [ACCEPT]}
        (tmp_path / "policy.json").write_text(json.dumps(policy))
        (tmp_path / "trusted").mkdir()
        (tmp_path / "trusted/link").symlink_to(layout)
        for path in (tmp_path / "trusted/../layout", tmp_path / "trusted/link"):
            with pytest.raises(SignatureRefused, match="oci"):
                await store.import_archive(path)


def test_containers_are_made_of_accepted_images_only(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [ACCEPT]}))
    with Daemon.running(f"--signature-policy={policy}") as daemon:
        daemon.import_busybox()
        with daemon.pod("judged") as pod:
            pod.run("true", name="before")
            policy.write_text(json.dumps({"default": [REJECT]}))
            with pytest.raises(grpc.RpcError, match="SignatureValidationFailed") as refused:
                pod.create("true", name="after")
            assert refused.value.code() is grpc.StatusCode.UNKNOWN
            spec = cri.ImageSpec(image="127.0.0.1:1/never:asked")
            with pytest.raises(grpc.RpcError, match="SignatureValidationFailed"):
                daemon.images.PullImage(cri.PullImageRequest(image=spec), timeout=10)


PROFILE_TYPE = "application/vnd.cncf.seccomp-profile.config.v1+json"
PROFILES = pytest.mark.trial(
    "signed-profiles", "A security profile is what the signature policy accepts of the reference that names it."
)


def profile() -> BuiltImage:
    content, config = b'{"defaultAction": "SCMP_ACT_ALLOW"}', b"{}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": PROFILE_TYPE, "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": "application/json", "digest": digest(content), "size": len(content)}],
    }
    blobs = {digest(content): content, digest(config): config}
    return BuiltImage(json.dumps(manifest).encode(), OCI_MANIFEST, blobs, "")


async def pull_profile(store: ImageStore, reference: str) -> bool:
    return await store.profiles.pull(reference, PROFILE_TYPE, None, lambda _: None)


@PROFILES
async def test_a_profile_is_refused_until_it_is_signed(tmp_path: Path) -> None:
    artifact, cosign = profile(), Cosign(tmp_path / "key.pub")
    async with FaultyRegistry({"a:1": artifact}).running() as registry:
        wanted = f"{registry.host}/a@{artifact.digest}"
        write_policy(tmp_path, {registry.host: REJECT}, default=ACCEPT)
        async with opened(tmp_path) as store:
            with pytest.raises(SignatureRefused, match="rejects it"):
                await pull_profile(store, wanted)
            write_policy(tmp_path, {registry.host: cosign.requirement}, default=ACCEPT)
            with pytest.raises(SignatureRefused, match="there is none"):
                await pull_profile(store, wanted)
            registry.images[f"a:{tag(artifact)}"] = Cosign(tmp_path / "other.pub").sign(artifact, f"{registry.host}/a")
            with pytest.raises(SignatureRefused, match="not made by a key of the policy"):
                await pull_profile(store, wanted)
            assert (await store.profiles.accepted(wanted), store.profiles.all()) == (None, [])
            registry.images[f"a:{tag(artifact)}"] = cosign.sign(artifact, f"{registry.host}/a")
            assert not await pull_profile(store, wanted)
            assert await pull_profile(store, wanted)  # is there
        registry.images.clear()
        async with opened(tmp_path) as store:
            assert await store.profiles.accepted(wanted) == b'{"defaultAction": "SCMP_ACT_ALLOW"}'
            assert await pull_profile(store, wanted)
            write_policy(tmp_path, {registry.host: REJECT}, default=ACCEPT)
            with pytest.raises(SignatureRefused, match="rejects it"):
                await store.profiles.accepted(wanted)


@PROFILES
async def test_a_profile_of_one_repository_is_not_taken_for_anothers(tmp_path: Path) -> None:
    """Each has a policy of its own, and signatures of its own, of the same digest."""
    artifact, cosign, other = profile(), Cosign(tmp_path / "key.pub"), Cosign(tmp_path / "other.pub")
    async with FaultyRegistry({"open:1": artifact, "strict:1": artifact, "other:1": artifact}).running() as registry:
        names = [f"{registry.host}/{name}" for name in ("open", "strict", "other")]
        accepting, strict, strict_too = (f"{name}@{artifact.digest}" for name in names)
        policy = dict(zip(names, (ACCEPT, cosign.requirement, other.requirement), strict=True))
        write_policy(tmp_path, policy)
        async with opened(tmp_path) as store:
            assert not await pull_profile(store, accepting)
            for wanted in (strict, strict_too):
                with pytest.raises(SignatureRefused, match="there is none"):
                    await store.profiles.accepted(wanted)
                with pytest.raises(SignatureRefused, match="there is none"):
                    await pull_profile(store, wanted)
            assert await store.profiles.accepted(accepting)
            registry.images[f"strict:{tag(artifact)}"] = cosign.sign(artifact, names[1])
            assert not await pull_profile(store, strict)
            with pytest.raises(SignatureRefused, match="not made by a key"):
                await store.profiles.accepted(strict_too)
            registry.images[f"other:{tag(artifact)}"] = other.sign(artifact, names[2])
            assert not await pull_profile(store, strict_too)
        async with opened(tmp_path) as store:
            for wanted in (accepting, strict, strict_too):
                assert await store.profiles.accepted(wanted)
                assert await pull_profile(store, wanted)
            (info,) = store.profiles.all()
            assert info.references == (accepting, strict, strict_too)


@PROFILES
@pytest.mark.cri("CreateContainer", "security_context.seccomp")
def test_containers_are_made_with_accepted_profiles_only(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [ACCEPT]}))
    with Daemon.running(f"--signature-policy={policy}") as daemon, Registry(tmp_path / "registry") as registry:
        daemon.import_busybox()
        daemon.registries_conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
        pinned = f"@{registry.push('open', 'latest', profile())}"
        request = cri.PullSecurityProfileRequest(
            image=cri.ImageSpec(image=f"{registry.host}/open{pinned}"), profile_kind=cri.Seccomp
        )
        daemon.images.PullSecurityProfile(request, timeout=60)
        policy.write_text(
            json.dumps({"default": [ACCEPT], "transports": {"docker": {f"{registry.host}/strict": [REJECT]}}})
        )

        def linux(name: str) -> dict[str, Any]:
            asked = cri.SecurityProfile(profile_type=cri.SecurityProfile.OCI, oci_ref=f"{registry.host}/{name}{pinned}")
            of_container = cri.LinuxContainerSecurityContext(seccomp=asked)
            return {"linux": cri.LinuxContainerConfig(security_context=of_container)}

        with daemon.pod("profiled") as pod:
            pod.run("true", name="open", **linux("open"))
            with pytest.raises(grpc.RpcError, match="SignatureValidationFailed"):
                pod.create("true", name="strict", **linux("strict"))
