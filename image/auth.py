"""How a registry asks for authentication, and what answers it (RFC 9110, distribution's token specification)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from image.errors import AuthenticationRequired
from image.model import Credentials
from image.reference import DEFAULT_DOMAIN

# A scheme, followed by parameters, another scheme or the end.
_CHALLENGE = re.compile(r"""\s*,?\s*(?P<scheme>[A-Za-z][A-Za-z0-9-]*)(?:\s+(?=[A-Za-z_]+\s*=)|\s*(?=,|$))""")
_PARAMETER = re.compile(r"""\s*,?\s*(?P<key>[A-Za-z_]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s,"]+))""")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a WWW-Authenticate header offers. `scheme` is lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of one WWW-Authenticate header, as far as it can be understood."""
    found: list[Challenge] = []
    at = 0
    while match := _CHALLENGE.match(header, at):
        at = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, at):
            quoted = parameter["quoted"]
            parameters[parameter["key"].lower()] = (
                parameter["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            )
            at = parameter.end()
        found.append(Challenge(match["scheme"].lower(), parameters))
    return tuple(found)


def basic(credentials: Credentials) -> str:
    """The Authorization value of a name and a password."""
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


def usable_at(credentials: Credentials | None, domain: str) -> Credentials | None:
    """The credentials if they are for the registry `domain`, else None."""
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
    """The bearer token in a token service's answer. Raises AuthenticationRequired when there is none."""
    try:
        answer = msgspec.json.decode(body, type=_Token)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AuthenticationRequired(f"get token from {realm}: malformed answer: {error}") from None
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise AuthenticationRequired(f"get token from {realm}: the answer has no token")
    return token
