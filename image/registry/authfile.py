"""The node's own credentials: containers-auth.json(5), docker's config.json, and credential helpers.

Each file is read at each use, so that a login takes effect at the next pull.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from image.documents import Malformed, decode
from image.errors import AuthenticationRequired
from image.model import Credentials
from image.programs import ask
from image.reference import DEFAULT_DOMAIN, lower_host

NO_LOGINS = Path(os.devnull)  # an auth file without any logins
IN_FILES = "containers-auth.json"  # stands for these files in `credential-helpers` of registries.conf
_HELPER_SECONDS = 30.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_ANSWER_LIMIT = 1 << 20  # bytes
_TOKEN_USER = "<token>"  # a helper's user name for an identity token
_NOTHING_KEPT = ("credentials not found in native keychain", "no credentials")
_HUB_KEY = "https://index.docker.io/v1/"


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def credentials(self) -> Credentials | None:
        login = Credentials.from_auth(self.auth) if self.auth else Credentials()
        found = Credentials(
            username=login.username or self.username,
            password=login.password or self.password,
            identity_token=self.identitytoken,
            registry_token=self.registrytoken,
        )
        return found if found != Credentials() else None


class _File(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Entry] = msgspec.field(default_factory=dict)
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict)
    creds_store: str = ""


class _HelperAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


def default_files(home: Path = Path("/root"), runtime: Path = Path("/run/containers/0")) -> tuple[Path, ...]:
    """Return the files with root's logins of podman, skopeo and docker; earlier ones win."""
    return runtime / "auth.json", home / ".config/containers/auth.json", home / ".docker/config.json"


async def kept_credentials(location: str, files: Sequence[Path], helpers: Sequence[str] = ()) -> Credentials | None:
    """Return the credentials for `location` ("host[:port]/repository"); the longest key wins. None if there are none.

    `helpers` are asked in order; IN_FILES among them stands for the files, and an empty list means only the files.
    Raises AuthenticationRequired if a file is unreadable or a helper fails.
    """
    location = lower_host(location)
    host = location.partition("/")[0]
    for helper in helpers or (IN_FILES,):
        if helper != IN_FILES:
            if found := await _ask(helper, host):
                return found
            continue
        for path in files:
            if found := await _from_file(path, location, host):
                return found
    return None


async def _from_file(path: Path, location: str, host: str) -> Credentials | None:
    kept = await asyncio.to_thread(_read, path)
    if helper := {lower_host(key): helper for key, helper in kept.cred_helpers.items()}.get(host):
        return await _ask(helper, host)
    auths = {lower_host(key.rstrip("/")): entry for key, entry in kept.auths.items()}
    for key in _keys(location):
        if (entry := auths.get(key)) is not None and (found := _explained(path, key, entry)) is not None:
            return found
    for key, entry in kept.auths.items():
        if _legacy_host(key) == host and (found := _explained(path, key, entry)) is not None:
            return found
    return await _ask(kept.creds_store, _HUB_KEY if host == DEFAULT_DOMAIN else host) if kept.creds_store else None


def _explained(path: Path, key: str, entry: _Entry) -> Credentials | None:
    try:
        return entry.credentials()
    except AuthenticationRequired as error:
        raise AuthenticationRequired(f"read {path}: auths {key!r}: {error}") from None


def _read(path: Path) -> _File:
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
        return decode(text, _File) if text else _File()
    except (FileNotFoundError, NotADirectoryError):
        return _File()
    except OSError as error:
        raise AuthenticationRequired(f"read {path}: {error.strerror}") from error
    except Malformed as error:
        raise AuthenticationRequired(f"read {path}: {error}") from None


def _keys(location: str) -> Iterator[str]:
    """Yield "a.io/b/c", "a.io/b", "a.io"."""
    while location:
        yield location
        location = location.rpartition("/")[0]


def _legacy_host(key: str) -> str:
    """Return the registry of a key in docker's older form, such as "https://a.io/v1/"."""
    host = re.sub(r"^https?://", "", key)
    if host == key and "/" in key:
        return ""  # a repository's key, found by `_keys`
    host = host.partition("/")[0].lower()
    return DEFAULT_DOMAIN if host in ("index.docker.io", "registry-1.docker.io") else host


async def _ask(helper: str, server: str) -> Credentials | None:
    """Run `docker-credential-<helper> get`. The secret is passed through a pipe only."""
    what = f"ask credential helper {helper!r} for {server}"
    if not _HELPER_NAME.fullmatch(helper):
        raise AuthenticationRequired(f"{what}: not a valid name for a helper")
    try:
        status, said = await ask(
            f"docker-credential-{helper}", "get", given=server.encode(), seconds=_HELPER_SECONDS
        )
    except TimeoutError:
        raise AuthenticationRequired(f"{what}: no answer within {_HELPER_SECONDS:g} s") from None
    except OSError as error:
        raise AuthenticationRequired(f"{what}: {error.strerror}") from error
    return _answer(said[:_HELPER_ANSWER_LIMIT], status, what)


def _answer(said: bytes, status: int, what: str) -> Credentials | None:
    if status:
        reason = said.decode(errors="replace").strip()
        if reason.lower().startswith(_NOTHING_KEPT):
            return None
        raise AuthenticationRequired(f"{what}: {reason[:200] or f'exit status {status}'}")
    try:
        answer = decode(said, _HelperAnswer)
    except Malformed as error:
        raise AuthenticationRequired(f"{what}: malformed answer: {error}") from None
    if answer.username == _TOKEN_USER:
        return Credentials(identity_token=answer.secret)
    return Credentials(username=answer.username, password=answer.secret) if answer.username else None
