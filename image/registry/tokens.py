"""Fetches bearer tokens from a registry's token service (distribution's token specification)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace
from yarl import URL

from image.errors import AuthenticationRequired
from image.model import Credentials
from image.registry.auth import basic, parse_token
from image.registry.later import aiohttp
from image.registry.transport import (
    CLIENT_ID,
    REDIRECTS,
    Answer,
    Transport,
    bounded,
    http_url,
    is_transient,
    redirected,
)

_ANSWER_LIMIT = 4 << 20  # bytes
# Answers of services that have no POST, or only deny it: Docker's own, GitHub's, Google's, Artifactory's.
_NO_POST = (401, 403, 404, 405)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A challenge to answer. `credentials` of None ask for anonymous access."""

    parameters: Mapping[str, str]  # of the challenge, `realm` among them
    scope: str  # used if the challenge has none
    credentials: Credentials | None
    asked_at: URL  # the URL that sent the challenge
    insecure: Callable[[URL], bool]  # whether not to verify a host's certificate
    what: str  # for errors

    @property
    def scopes(self) -> list[str]:
        return (self.parameters.get("scope") or self.scope).split()

    def service(self) -> URL:
        """Return the token service's URL. Raises AuthenticationRequired if it must not be used."""
        realm = self.parameters["realm"]
        url = http_url(realm)
        if url is None:
            raise self.refusal(f"{realm[:200]!r} is not an http or https URL")
        if url.raw_user is not None or url.raw_password is not None:
            raise self.refusal(f"at {url.host} has a user name in its URL, which is not allowed")
        if url.scheme not in ("https", self.asked_at.scheme):
            raise self.refusal(f"{realm[:200]} would get the credentials unencrypted")
        return url

    def refusal(self, why: str) -> AuthenticationRequired:
        return AuthenticationRequired(f"get {self.what}: token service {why}")


async def get_token(transport: Transport, request: TokenRequest) -> str:
    """Fetch a token that answers the challenge. Raises AuthenticationRequired, and what `Transport.request` does."""
    service = request.service()
    credentials = request.credentials
    response = None
    if credentials is not None and credentials.identity_token:
        response = await _post(transport, request, service, credentials.identity_token)
        if response.status in _NO_POST and credentials.username:
            response.close()
            response = None
    if response is None:
        response = await _get(transport, request, service)
    name = service.with_query(None)
    async with Answer(response):
        if is_transient(response.status):
            raise aiohttp.ClientConnectionError(f"token service {name} answered {response.status}")
        if response.status != 200:
            sent = ", though credentials were sent" if credentials is not None else ""
            raise request.refusal(f"{name} answered {response.status}{sent}")
        return parse_token(await bounded(response, _ANSWER_LIMIT, f"token from {name}"), str(name))


async def _get(transport: Transport, request: TokenRequest, service: URL) -> aiohttp.ClientResponse:
    headers = {}
    login = request.credentials
    if login is not None and login.username:
        # Some services, such as Azure's, use a name without a password beside an identity token.
        headers["Authorization"] = basic(replace(login, password=login.password or login.identity_token))
    named = [("service", request.parameters["service"])] if request.parameters.get("service") else []
    url = service.update_query([*named, *(("scope", scope) for scope in request.scopes)])
    for _ in range(REDIRECTS):
        sent = headers if _is_same(service, url) else {}
        response = await transport.request("GET", url, sent, insecure=request.insecure(url))
        target = _next(request, response, url)
        if target is None:
            return response
        url = target
    raise request.refusal(f"{service.with_query(None)} redirects more than {REDIRECTS} times")


async def _post(transport: Transport, request: TokenRequest, service: URL, token: str) -> aiohttp.ClientResponse:
    """Exchange a refresh token (RFC 6749, section 6). It is sent to the service itself only."""
    form = {
        "grant_type": "refresh_token",
        "refresh_token": token,
        "client_id": CLIENT_ID,
        "service": request.parameters.get("service", ""),
        "scope": " ".join(request.scopes),
    }
    url = service
    for _ in range(REDIRECTS):
        response = await transport.request("POST", url, {}, insecure=request.insecure(url), form=form)
        target = _next(request, response, url)
        if target is None:
            return response
        if not _is_same(service, target):
            raise request.refusal(f"{service.with_query(None)} redirects to {target.host}, which would get the login")
        url = target
    raise request.refusal(f"{service.with_query(None)} redirects more than {REDIRECTS} times")


def _next(request: TokenRequest, response: aiohttp.ClientResponse, url: URL) -> URL | None:
    """Return the URL that the service redirects to, closing the answer; None if it does not redirect."""
    try:
        target = redirected(response, url)
        if target is None:
            return None
    except BaseException:
        response.close()
        raise
    response.close()
    if url.scheme == "https" and target.scheme != "https":
        raise request.refusal(f"at {url.host} redirects to {target.host} by http, which would expose the token")
    return target.with_user(None)


def _is_same(service: URL, url: URL) -> bool:
    """Return whether `url` is still the service: the same origin, or its https variant."""
    usual = service.scheme == "http" and service.is_default_port() and url.is_default_port()
    return url.origin() == service.origin() or (usual and url.scheme == "https" and url.host == service.host)
