"""Who may ask, and how much: Host, Origin, token, size of a request, and the headers of every answer.

A page of another site may send requests from the browser of somebody who uses this one; by a name of its own that
leads to this machine (DNS rebinding) it may even read the answers. So only known names are answered, and only requests
that no other site's page has sent.
"""

import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse

COOKIE = "kg_token"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
BODY = 2**20  # bytes of a request beside its text
CHARACTER = 12  # bytes of a character in JSON, at most: \ud83d\ude00
UPLOADS = "/api/jobs"  # the path whose requests may be as long as an upload


class Door(NamedTuple):
    """What is let in."""

    names: frozenset[str]  # that Host may hold, without port
    any_address: bool  # whether Host may hold any IP address; names are what rebinding needs
    token: str | None
    most_upload: int  # bytes
    most_body: int  # bytes of any other request


def make_door(host: str, allowed: list[str], token: str | None, most_upload: int, most_text: int) -> Door:
    """The door of a server that listens at `host`; `allowed`: other names of this machine; `most_upload`: bytes;
    `most_text`: characters.
    """
    names = {"127.0.0.1", "localhost", "::1", host.lower(), *(name.lower() for name in allowed)}
    everywhere = host in ("0.0.0.0", "::")
    if everywhere:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Door(frozenset(names), everywhere, token, most_upload, BODY + CHARACTER * most_text)


class Guard:
    """ASGI: the application behind a door."""

    def __init__(self, app, door: Door):
        self.app, self.door = app, door

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        answer = self._refuse(scope, headers)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
            return
        await self.app(scope, _bounded(receive, self._most(scope)), _with_headers(send))

    def _most(self, scope) -> int:
        """Bytes that the request may have."""
        return self.door.most_upload if scope["path"] == UPLOADS else self.door.most_body

    def _refuse(self, scope, headers: dict):
        """The answer to a request that is not let in; None: it is."""
        host = headers.get("host", "")
        if not _is_known(host, self.door):
            return _say(421, "this server is not known by that name (Host); --allow_host names others")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return _say(403, "the request comes from another site's page (Origin)")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and scope["path"] != "/":
            return _say(403, "the request comes from another site's page (Sec-Fetch-Site)")
        length = headers.get("content-length", "0")
        most = self._most(scope)
        if not length.isascii() or not length.isdigit():
            return _say(400, "Content-Length is no number")
        if len(length) > 15 or int(length) > most:
            return _say(413, f"the request is larger than {most:,} bytes")
        return self._ask_token(scope, headers) if self.door.token else None

    def _ask_token(self, scope, headers: dict):
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and _same(given, self.door.token):
            answer = RedirectResponse("/", 303)  # the token does not stay in the address
            answer.set_cookie(COOKIE, self.door.token, httponly=True, samesite="strict")
            return answer
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(shown.strip(), self.door.token):
            return None
        if _same(_cookie(headers.get("cookie", "")), self.door.token):
            return None
        if scope["path"] == "/":
            return PlainTextResponse("401: open this page as http://HOST:PORT/?token=TOKEN\n", 401)
        return _say(401, "no token, or a wrong one; send Authorization: Bearer TOKEN")


def _cookie(text: str) -> str:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _is_known(host: str, door: Door) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        _ = urlsplit(f"//{host}").port
    except ValueError:
        return False
    if name in door.names:
        return True
    try:
        return bool(ipaddress.ip_address(name)) and door.any_address
    except ValueError:
        return False


def _say(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, status)


def _bounded(receive, most: int):
    """`receive`, which refuses more than so many bytes, whatever the request's head says."""
    seen = 0

    async def bounded():
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, f"the request is larger than {most:,} bytes")
        return message

    return bounded


def _with_headers(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in there]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
