"""A server on a free port, for tests; and clients that send what no library would."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from edgevlm.bundle.manifest import open_bundle
from edgevlm.serve.options import ServeOptions
from edgevlm.serve.server import Server

COMPLETIONS = "/v1/chat/completions"


def picture(seed: int = 0, side: int = 64, kind: str = "PNG") -> bytes:
    """The file of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image(content: bytes | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(content or picture()), **more}}


def ask(content: Any = "What is this?", **more: Any) -> dict[str, Any]:
    """A request."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6, **more}


class Running:
    """A server in a thread."""

    def __init__(self, bundle: Path, **options: Any) -> None:
        self.server = Server(open_bundle(bundle), ServeOptions(**{"port": 0, "threads": 1, **options}))
        self.address, self.port = self.server.address, self.server.port
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def _run(self) -> None:
        try:
            self.server.serve_forever()
        except BaseException as error:
            self.error = error

    def await_health(self) -> Running:
        deadline = time.monotonic() + 60
        while self.client.get("/health").status_code != 200:
            assert time.monotonic() < deadline and self.thread.is_alive()
            time.sleep(0.02)
        return self

    def post(self, body: Any, **more: Any) -> httpx.Response:
        return self.client.post(COMPLETIONS, json=body, **more)

    def send(self, *parts: bytes, wait: float = 10.0, pause: float = 0.0) -> bytes:
        """Bytes on a connection of their own, and everything that comes back until it is closed or nothing comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as channel:
            for part in parts:
                channel.sendall(part)
                time.sleep(pause)
            received = b""
            try:
                while chunk := channel.recv(1 << 16):
                    received += chunk
                    if b"\r\n\r\n" in received and _is_whole(received):
                        break
            except (TimeoutError, ConnectionResetError):
                pass
            return received

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


def _is_whole(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":-1")
    return len(body) >= int(length.split(b":")[1]) >= 0


def head(port: int, length: int | str | None, *lines: str, path: str = COMPLETIONS, method: str = "POST") -> bytes:
    """The head of a request, as it is to be sent."""
    first = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    if length is not None:
        first.append(f"Content-Length: {length}")
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def request(port: int, body: Any, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    return head(port, len(data), *lines) + data


@contextmanager
def serving(bundle: Path, **options: Any) -> Iterator[Running]:
    running = Running(bundle, **options)
    try:
        yield running.await_health()
    finally:
        running.stop()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, in OpenAI's form and in no other."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str) and 0 < len(error["message"]) <= 1000 and isinstance(error["type"], str)
    return error
