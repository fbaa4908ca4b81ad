"""Headers of a model on the Hub, by huggingface_hub's own client from a server here that counts what it sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_api

from edgevlm.checkpoint import hub
from edgevlm.checkpoint.checkpoint import open_checkpoint
from edgevlm.errors import EdgeVLMError
from edgevlm.io.safetensors import SafetensorsHeader


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of each answer about "someone/default", the model that ships with edgevlm."""
    folder, found = open_checkpoint("default").folder, list[int]()

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *said: Any) -> None:
            pass

        def _answer(self, body: bool = False) -> None:
            path = folder / self.path.rpartition("/")[2]
            exists = "/someone/default/" in self.path and path.is_file()
            data = path.read_bytes() if exists else b""
            if first := self.headers.get("range"):
                start, end = map(int, first.removeprefix("bytes=").split("-"))
                data = data[start : end + 1]
            self.send_response((206 if first else 200) if exists else 404)
            for name, value in (("X-Repo-Commit", "a" * 40), ("ETag", '"x"'), ("Content-Length", str(len(data)))):
                self.send_header(name, value)
            if not exists:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if body:
                found.append(len(data))
                self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hf_api.api, "endpoint", f"http://127.0.0.1:{server.server_port}")
        yield found
        server.shutdown()


def test_only_headers_are_fetched(sent: list[int]) -> None:
    whole = open_checkpoint("default")
    ((file, entries),) = hub.headers("someone/default", revision=None).items()
    header = SafetensorsHeader(Path(file), entries)
    assert {name: header.tensors[name].shape for name in header.tensors} == {n: whole.shape(n) for n in whole.names()}
    assert {header.dtype(name) for name in header.tensors} == {"float16"}
    assert 0 < sum(sent) < 200_000 < (whole.folder / file).stat().st_size  # 19 MB


def test_a_model_without_safetensors(sent: list[int]) -> None:
    with pytest.raises(EdgeVLMError, match="'someone/other' has no safetensors weights on the Hub"):
        hub.headers("someone/other", revision=None)
