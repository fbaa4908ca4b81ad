"""The server itself: a socket, uvicorn, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note
from edgevlm.serve.app import make_app
from edgevlm.serve.fetch import Fetcher
from edgevlm.serve.options import ServeOptions
from edgevlm.serve.pages import read_pages
from edgevlm.serve.refusals import Refusal
from edgevlm.serve.service import Service

HEAD = 1 << 14  # bytes of a request's head
HEAD_SECONDS = 20.0  # in which it has to arrive
KEEP_ALIVE = 30  # seconds that a connection is kept without a request
CONNECTIONS = 512


class Server(uvicorn.Server):
    """Serves one bundle until a signal comes, or `should_exit` is set."""

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        self.service, self._failure = Service(bundle, options), list[BaseException]()
        app = make_app(self.service, read_pages(), Fetcher(options.image_hosts, options.max_body), self._fail)
        config = uvicorn.Config(
            app, loop="asyncio", http=Protocol, ws="none", lifespan="on", log_config=None, log_level="critical",
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(options.stop_seconds) + 5, h11_max_incomplete_event_size=HEAD,
        )  # fmt: skip
        super().__init__(config)
        self._socket = _listen(options.host, options.port)
        self.port: int = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        host = self.service.options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def serve_forever(self) -> None:
        """Raises EdgeVLMError where the model cannot be loaded."""
        note(f"Serving {self.service.name} at {self.address}; loading...")
        try:
            self.run(sockets=[self._socket])
        finally:
            self._socket.close()
        if self._failure:
            raise self._failure[0]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers come to their end, the second does not. Neither is a failure."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.service.ready:
            sessions, seconds = self.service.sessions, self.service.options.stop_seconds
            sessions.stop()
            asyncio.get_running_loop().call_later(seconds, sessions.end)
        await super().shutdown(sockets)

    def _fail(self, error: BaseException) -> None:
        self._failure.append(error)
        self.should_exit = True


class Protocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, but that a head has to arrive in time and errors have the one form."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._late)
        if len(self.connections) > CONNECTIONS:
            transport.abort()

    def on_response_complete(self) -> None:
        self._head_timer.cancel()
        self._head_timer = self.loop.call_later(KEEP_ALIVE + HEAD_SECONDS, self._late)
        super().on_response_complete()

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        refusal = Refusal(400, "This is no valid HTTP/1.1 request.", code="invalid_http")
        body = json.dumps(refusal.body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                if data := self.conn.send(event):
                    self.transport.write(data)
        except h11.LocalProtocolError:  # in the middle of an answer
            pass
        self.transport.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is called TCP by its number: of another, asyncio leaves Nagle's algorithm on, 40 ms an answer."""
    made = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)  # localhost has both
        made = socket.socket(family, kind, socket.IPPROTO_TCP)
        if os.name == "posix":  # elsewhere it lets two servers have one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(256)
        return made
    except OSError as error:
        if made is not None:
            made.close()
        raise EdgeVLMError(
            f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port or --host."
        ) from None
