"""Registries' authentication challenges and the answers (RFC 9110, distribution's token specification)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from image.documents import Malformed, decode
from image.errors import AuthenticationRequired
from image.model import Credentials
from image.reference import DEFAULT_DOMAIN

_HEADER_LIMIT = 64 << 10  # characters of a header to parse

# RFC 9110, 5.6.2 (token), 5.6.4 (quoted-string), 11.2 (auth-param, token68), 11.6.1. Unquoted URLs, which some servers
# send, are accepted as values.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_SCHEME = re.compile(rf"(?P<scheme>{_TOKEN})(?=[\s,]|$)(?:[ \t]+[A-Za-z0-9._~+/-]++=*+[ \t]*(?=,|$))?")
_PARAMETER = re.compile(
    rf"""(?P<key>{_TOKEN})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<plain>[^\s,"][^\s,]*+))""", re.DOTALL
)
_BETWEEN = re.compile(r"[\s,]*")
_JUNK = re.compile(r"[^,]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of a WWW-Authenticate header. `scheme` is lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Parse the challenges in a WWW-Authenticate header, as far as possible."""
    found: list[tuple[str, dict[str, str]]] = []
    header = header[:_HEADER_LIMIT]
    at = 0
    while at < len(header):
        if (match := _PARAMETER.match(header, at)) and found:
            quoted = match["quoted"]
            value = match["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
            found[-1][1][match["key"].lower()] = value
        elif match := _SCHEME.match(header, at):
            found.append((match["scheme"].lower(), {}))
        else:
            match = _JUNK.match(header, at)
        at = _BETWEEN.match(header, match.end() if match else at + 1).end()  # type: ignore[union-attr]  # it may be empty
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def basic(credentials: Credentials) -> str:
    """Return the Authorization value for a name and password."""
    login = f"{credentials.username}:{credentials.password}"
    return "Basic " + base64.b64encode(login.encode(errors="surrogateescape")).decode()


def usable_at(credentials: Credentials | None, domain: str) -> Credentials | None:
    """Return the credentials if they are for the registry `domain`, else None."""
    if credentials is None or not credentials.server_address:
        return credentials
    host = re.sub(r"^https?://", "", credentials.server_address).partition("/")[0].lower()
    if host in ("index.docker.io", "registry-1.docker.io"):
        host = DEFAULT_DOMAIN
    return credentials if host == domain else None


class _Token(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


def parse_token(body: bytes, realm: str) -> str:
    """Return the bearer token in a token service's answer. Raises AuthenticationRequired if there is none."""
    try:
        answer = decode(body, _Token)
    except Malformed as error:
        raise AuthenticationRequired(f"get token from {realm}: malformed answer: {error}") from None
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise AuthenticationRequired(f"get token from {realm}: the answer has no token")
    return token
