"""Who may ask, and how much: checked before a request's body is read.

A page of a stranger in a browser on this machine can reach a server on localhost, under a name of its own that it lets
point here (DNS rebinding). So the name that the server is called by has to be one of its own, and a page that asks has
to be its own. No header of CORS is ever sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from edgevlm.serve.options import ServeOptions
from edgevlm.serve.refusals import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

LOCAL = (".localhost", ".local", ".lan", ".internal", ".home.arpa")  # names that no public resolver has
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


class Guard:
    """Refuses a request by its headers."""

    def __init__(self, options: ServeOptions, open_paths: Collection[str]) -> None:
        """open_paths: need no API key."""
        self._key = None if options.api_key is None else _digest(options.api_key)
        self._open, self._own = frozenset(open_paths), {*options.hosts, options.host.lower()}
        self._loopback = options.host == "localhost" or _is_loopback(options.host)

    def check(self, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises Refusal."""
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name, []).append(value.decode("latin-1"))
        if {b"content-length", b"transfer-encoding"} <= found.keys():  # where a proxy reads one, and we the other
            raise Refusal(
                400,
                "A request has a Content-Length or a Transfer-Encoding, not both.",
                code="invalid_http",
                headers={"Connection": "close"},
            )
        hosts = found.get(b"host", [""])
        if len(hosts) > 1 or not self._is_own(hosts[0].lower()):
            raise Refusal(
                403,
                "This server is not called by the name in the Host header: if it is its own, start it with "
                "--allow-host NAME.",
                code="foreign_host",
            )
        for origin in found.get(b"origin", []):
            if origin.lower() not in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}"):
                raise Refusal(
                    403, "Pages of other sites may not ask this server: send no Origin header.", code="foreign_origin"
                )
        if self._key is not None and path not in self._open:
            given = [value for value in found.get(b"authorization", []) if value[:7].lower() == "bearer "]
            key = given[0][7:].strip() if len(given) == 1 else ""
            if not hmac.compare_digest(_digest(key), self._key):
                raise Refusal(
                    401,
                    "The API key is missing or wrong: send the header 'Authorization: Bearer KEY'.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _is_own(self, host: str) -> bool:
        name, number = _split(host)
        if number and not number.isdigit():
            return False
        if host in self._own or name in self._own:
            return True
        address = _address(name)
        if self._loopback:
            return name == "localhost" or (address is not None and address.is_loopback)
        # An address is no name that could be made to point here, nor is one without a dot, as in a container's network.
        return address is not None or bool(_NAME.fullmatch(name) and ("." not in name or name.endswith(LOCAL)))


def _split(host: str) -> tuple[str, str]:
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, number = host.partition(":")
    return name, number


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class Budget:
    """Bytes of requests that are held at the same time."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> bool:
        if count > self._left:
            return False
        self._left -= count
        return True

    def give(self, count: int) -> None:
        self._left += count


class Body:
    """A request's body, read within bounds. A context manager: what it holds of the budget is given back at its end."""

    def __init__(self, request: Request, options: ServeOptions, budget: Budget, busy: Callable[[], Refusal]) -> None:
        self._request, self._options, self._budget, self._busy = request, options, budget, busy
        self._held = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *exception: object) -> None:
        self._budget.give(self._held)
        self._held = 0

    async def read(self) -> bytes:
        """Raises Refusal: 413 for too many bytes, 408 for too slow ones, 415 for what is not called JSON."""
        headers, most = self._request.headers, self._options.max_body
        length = headers.get("content-length", "")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "The request is no JSON: send the header 'Content-Type: application/json'.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "Compressed requests are not taken: send the JSON as it is.", param="Content-Encoding")
        if length.isdigit() and int(length) > most:
            raise self._too_large()
        chunks, total, deadline = list[bytes](), 0, time.monotonic() + self._options.body_seconds
        while True:
            message = await self._next(deadline)
            chunk = message.get("body", b"")
            total += len(chunk)
            if total > most:
                raise self._too_large()
            if not self._budget.take(len(chunk)):
                raise self._busy()
            self._held += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _next(self, deadline: float) -> Any:
        try:
            message = await asyncio.wait_for(self._request.receive(), max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise Refusal(
                408,
                f"The request took over {self._options.body_seconds:g} seconds to arrive: send it faster.",
                code="timeout",
                headers={"Connection": "close"},
            ) from None
        if message["type"] == "http.disconnect":
            raise Gone
        return message

    def _too_large(self) -> Refusal:
        most = self._options.max_body
        return Refusal(
            413,
            f"The request has over {most} bytes, which is the most that is taken: send smaller or fewer pictures.",
            code="request_too_large",
        )


class Gone(Exception):
    """The client closed its connection before it had asked."""
