"""Who may speak to the server: the token, the Host and Origin headers, the size of a body, and the answers' headers.

A page of another site that is open in the same browser must not be able to read or write: not under a name of its own
that points here (DNS rebinding), and not by posting across.
"""

import hashlib
import hmac
import ipaddress
import json
import logging
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_TOKEN_CHARS = 16
MAX_BODY_BYTES = 256 * 1024
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_CSP = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'"
)
FAILED = "The server failed; what went wrong stands in its terminal. Try again."
HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

logger = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


class Refused(Exception):
    """A request that is answered with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """The ASGI app behind the checks; whatever is refused, or fails, is answered as {"error": {"message": ...}}.

    `hosts` are the names, without port, that a Host header may have (None: any, which asks for a token). With `token`
    None everybody is let in who can reach the address.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...] | None = LOCAL_NAMES, token: str | None = None) -> None:
        if hosts is None and token is None:
            raise ValueError("an address that others reach needs a token")
        self.app, self._hosts, self._token = app, hosts, token
        self._cookie = token and hmac.new(token.encode(), b"evergreen cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: there are none
            return
        begun = ended = False

        async def with_headers(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "http.response.start":
                begun = True
                own = {name for name, _ in message.get("headers", ())}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            if (answer := self._admit(scope)) is not None:
                await _send(with_headers, *answer)
                return
            await self.app(scope, await _bounded(scope, receive), with_headers)
        except Refused as refused:
            await _send_error(with_headers, refused.status, refused.message)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if begun and not ended:
                raise
            if not begun:
                await _send_error(with_headers, 500, FAILED)

    def _admit(self, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """None for a request that may pass, or what to answer in its place; raises Refused."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host).casefold() not in self._hosts:
            raise Refused(403, f"The host {host[:100]!r} is not this server. Open the address that it printed.")
        if scope["method"] not in ("GET", "HEAD"):
            _refuse_foreign(headers, host)
        if self._token is None:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.casefold() == "bearer" and _equal(given.strip(), self._token):
            return None
        port = (scope.get("server") or ("", 0))[1]
        name = f"evergreen_{port}"  # a browser sends a host's cookies to all its ports
        if _equal(_cookie(headers.get("cookie", ""), name), self._cookie):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] == "GET" and _equal(dict(query).get("token", ""), self._token):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            # One slash: two would name another host.
            place = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
            cookie = f"{name}={self._cookie}; Path=/; HttpOnly; SameSite=Strict"
            cookie += "; Secure" if scope.get("scheme") == "https" else ""
            return 303, [(b"location", place.encode("latin-1")), (b"set-cookie", cookie.encode("latin-1"))], b""
        raise Refused(
            401, "This server asks for its token: open it with ?token=... once, or send it as a bearer token."
        )


def _refuse_foreign(headers: dict[str, str], host: str) -> None:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = origin is not None and origin.casefold() not in (
        f"http://{host.casefold()}",
        f"https://{host.casefold()}",
    )
    if foreign or site not in (None, "same-origin", "none"):
        raise Refused(403, f"A page of {(origin or site)[:100]!r} may not write here. Use the server's own page.")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and (port.isdigit() or not port) else host


def _cookie(header: str, name: str) -> str:
    try:
        cookies = SimpleCookie(header)
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


async def _bounded(scope: Scope, receive: Receive) -> Receive:
    """The whole body, read here as far as it may be; Refused with 413 for a longer one."""
    if scope["method"] in ("GET", "HEAD"):
        return receive
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        chunks.append(message.get("body", b""))
        size, more = size + len(chunks[-1]), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise Refused(413, f"The request has more than {MAX_BODY_BYTES} bytes. Shorten what you write.")
    whole = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


async def _send_error(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    await _send(send, status, [(b"content-type", b"application/json")], body)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
