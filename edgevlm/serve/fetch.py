"""Pictures from the network, of hosts that whoever started the server has named, and of nobody else.

A server that fetches what strangers name reaches what they cannot. So an address is parsed once and looked up once, and
the connection goes to that very IP address, which has to be one of the public internet; there are no redirects, no
proxies, and no second look-up that could say something else.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from edgevlm.inputs.kinds import HEAD, kind_of
from edgevlm.serve.refusals import Refusal, wrong

SECONDS = 10.0  # for one picture, from the look-up to its last byte
LONGEST = 2048  # characters of an address
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE)

Resolve = Callable[[str, int], Sequence[str]]  # (host, port) -> IP addresses
Connect = Callable[[str, int, float], socket.socket]  # (IP address, port, seconds)


class Fetcher:
    """Called with an address and the name of its field, it gives the file. Any thread may call it."""

    def __init__(
        self,
        hosts: Collection[str],
        most: int,
        *,
        seconds: float | None = None,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        """hosts: "host", or "host:port" for another port than the usual. most: bytes of a file."""
        self._hosts, self._most, self._seconds = frozenset(hosts), most, seconds or SECONDS
        self._resolve, self._connect = resolve or _resolve, connect or _connect

    def __call__(self, address: str, param: str) -> bytes:
        """Raises Refusal for everything else than a picture that came in time."""
        scheme, host, port, target = self._parse(address, param)
        deadline = time.monotonic() + self._seconds
        try:
            found = list(self._resolve(host, port))
        except OSError:
            found = []
        if not found or not all(map(is_public, found)):
            raise _refused(param, "its host has no address, or one that is not of the public internet")
        try:
            content = self._get(scheme, host, port, target, found[0], deadline)
        except _Unfit as error:
            raise _refused(param, str(error)) from None
        except (OSError, http.client.HTTPException, ValueError):  # TLS and time-outs are OSErrors, too
            late = time.monotonic() >= deadline
            raise _refused(param, f"it took over {self._seconds:g} seconds" if late else "it does not answer") from None
        if kind_of(content[:HEAD]) is None:
            raise _refused(param, "it is no picture")
        return content

    def _parse(self, address: str, param: str) -> tuple[str, str, int, str]:
        if not self._hosts:
            raise wrong(
                param,
                "This server fetches no pictures: send 'data:image/jpeg;base64,...', or start it with "
                "--allow-image-host HOST.",
                "invalid_image",
            )
        # Visible ASCII without what parsers disagree about.
        if len(address) > LONGEST or not re.fullmatch(r"[!-\[\]-~]+", address):
            raise _refused(param, "it is no plain address")
        try:
            parts = urlsplit(address)
            scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        except ValueError:
            raise _refused(param, "it is no plain address") from None
        if scheme not in _PORTS or "@" in parts.netloc or not _HOST.fullmatch(host):
            raise _refused(param, "it is no plain address of a host by its name")
        usual = _PORTS[scheme]
        named = host if port in (None, usual) else f"{host}:{port}"
        if named not in self._hosts and f"{host}:{port or usual}" not in self._hosts:
            raise _refused(param, "its host is none that this server was started with (--allow-image-host)")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return scheme, host, port or usual, target

    def _get(self, scheme: str, host: str, port: int, target: str, address: str, deadline: float) -> bytes:
        channel = self._connect(address, port, max(deadline - time.monotonic(), 0.001))
        watch = threading.Timer(max(deadline - time.monotonic(), 0.001), _cut, (channel,))
        watch.daemon = True
        watch.start()
        try:
            if scheme == "https":
                channel = ssl.create_default_context().wrap_socket(channel, server_hostname=host)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = channel
            headers = {
                "Host": host if port == _PORTS[scheme] else f"{host}:{port}",
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "User-Agent": "edgevlm",
                "Connection": "close",
            }
            connection.request("GET", target, headers=headers)
            return self._read(connection.getresponse(), deadline)
        finally:
            watch.cancel()
            channel.close()

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        if response.status != 200:
            raise _Unfit(f"it answers with the status {response.status}, and redirects are not followed")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Unfit("it is compressed")
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > self._most:
            raise _Unfit(f"it has over {self._most} bytes")
        content = bytearray()
        while chunk := response.read1(1 << 16):
            content += chunk
            if len(content) > self._most:
                raise _Unfit(f"it has over {self._most} bytes")
            if len(content) >= HEAD and kind_of(bytes(content[:HEAD])) is None:
                raise _Unfit("it is no picture")
            if time.monotonic() >= deadline:
                raise TimeoutError
        if length.isdigit() and len(content) != int(length):
            raise _Unfit("it ended too early")
        return bytes(content)


class _Unfit(Exception):
    """What came is not what was asked for."""


def _refused(param: str, why: str) -> Refusal:
    return wrong(param, f"The picture was not fetched: {why}.", "invalid_image")


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet, and stands for itself.

    Not one that a router of a transition (6to4, Teredo, NAT64, IPv4 in IPv6) makes another one of.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    inside = address.ipv4_mapped or address.sixtofour or address.teredo
    return inside is None and address.scope_id is None and address in _UNICAST and address not in _DOCUMENTATION


_UNICAST, _DOCUMENTATION = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("3fff::/20")


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _connect(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _cut(channel: Any) -> None:
    """End a connection that drips: each of its bytes is in time."""
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)
