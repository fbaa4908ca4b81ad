"""Requests that mean harm: each is refused in OpenAI's form, and the next good one is answered."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Running, ask, data_url, head, image, picture, request, serving

from edgevlm.serve import contract, fetch
from edgevlm.serve.fetch import Fetcher, is_public
from edgevlm.serve.options import ServeOptions
from edgevlm.serve.refusals import Refusal

KEY = "a-key-of-this-test"
BODY_SECONDS, MAX_BODY = 1.0, 1 << 20
PUBLIC = "93.184.216.34"


# --- the network, as it is for this test -------------------------------------------------------------------


class Origin:
    """A server of pictures behind the public address, and one on this machine that nobody may reach."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.canary = socket.create_server(("127.0.0.1", 0))
        self.canary.setblocking(False)
        self.connected: list[tuple[str, int]] = []
        self.looked_up: list[str] = []
        self.heads: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        addresses = {
            "inside.example.com": ["127.0.0.1"],
            "mixed.example.com": [PUBLIC, "10.0.0.1"],
            "mapped.example.com": ["::ffff:127.0.0.1"],
            "metadata.example.com": ["169.254.169.254"],
            "tunnel.example.com": ["2002:7f00:1::1"],
            "nat.example.com": ["64:ff9b::7f00:1"],
            "nowhere.example.com": [],
        }
        if host == "rebind.example.com":  # another address at each question
            return [PUBLIC] if self.looked_up.count(host) == 1 else ["127.0.0.1"]
        return addresses.get(host, [PUBLIC])

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        self.connected.append((address, port))
        assert address == PUBLIC, address
        return socket.create_connection(self._listener.getsockname(), timeout=seconds)

    def _serve(self) -> None:
        while True:
            channel, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(channel,), daemon=True).start()

    def _answer(self, channel: socket.socket) -> None:
        with channel:
            asked = b""
            while b"\r\n\r\n" not in asked and (chunk := channel.recv(4096)):
                asked += chunk
            self.heads.append(asked)
            path, content = asked.split(b" ")[1].decode("latin-1"), picture(5)
            plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
            try:
                if path == "/redirect":
                    place = b"http://127.0.0.1:%d/" % self.canary.getsockname()[1]
                    channel.sendall(b"HTTP/1.1 302 Found\r\nLocation: " + place + b"\r\nContent-Length: 0\r\n\r\n")
                elif path == "/huge":
                    channel.sendall(plain % (1 << 40) + content)
                elif path == "/endless":
                    channel.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + content)
                    while True:
                        channel.sendall(b"\0" * 65536)
                elif path == "/short":
                    channel.sendall(plain % (len(content) + 5) + content)
                elif path == "/text":
                    channel.sendall(plain % 6 + b"secret")
                elif path == "/packed":
                    channel.sendall(plain.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") % 4 + b"....")
                elif path == "/drip":
                    for byte in plain % len(content) + content:
                        channel.sendall(bytes([byte]))
                        time.sleep(0.05)
                elif path == "/silent":
                    time.sleep(5)
                elif path == "/garbage":
                    channel.sendall(b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n")
                else:
                    channel.sendall(plain % len(content) + content)
            except OSError:
                pass


@pytest.fixture(scope="module")
def origin() -> Origin:
    return Origin()


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, origin: Origin) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_resolve", origin.resolve)
        patch.setattr(fetch, "_connect", origin.connect)
        patch.setattr(fetch, "SECONDS", 1.0)
        names = ("pictures", "inside", "mixed", "mapped", "metadata", "tunnel", "nat", "nowhere", "rebind")
        hosts = tuple(f"{name}.example.com" for name in names)
        with serving(
            tiny_bundle, api_key=KEY, image_hosts=hosts, max_body=MAX_BODY, body_seconds=BODY_SECONDS,
            max_pixels=1_000_000, max_pictures=4, aliases=("eyes",),
        ) as running:  # fmt: skip
            running.client.headers["Authorization"] = f"Bearer {KEY}"
            yield running


# --- a list of hostile requests ----------------------------------------------------------------------------


def png(width: int, height: int, rest: bytes = b"") -> bytes:
    """The file of a picture that is smaller than it says."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", rest or zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def shown(url: Any) -> dict[str, Any]:
    return ask([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}])


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?", **fields}]}


SMALL = data_url(picture())
JSON: dict[str, Any] = {  # requests that are JSON, and what is wrong with them
    "base64 with a hole": shown(SMALL[:100] + "*" + SMALL[101:]),
    "base64 without padding": shown(SMALL.rstrip("=")[:-1]),
    "base64 in lines": shown(SMALL[:200] + "\n" + SMALL[200:]),
    "base64 of the web": shown("data:image/png;base64,-_-_"),
    "no base64": shown("data:image/png,%89PNG"),
    "an empty picture": shown("data:image/png;base64,"),
    "text as a picture": shown("data:text/html;base64,PGI+"),
    "a picture that is text": shown(data_url(b"<svg onload=alert(1)>")),
    "a bomb by its header": shown(data_url(png(60_000, 60_000))),
    "a bomb within Pillow's bound": shown(data_url(png(5_000, 5_000))),
    "a bomb of one row": shown(data_url(png(1, 2_000_000))),
    "a picture of no pixels": shown(data_url(png(0, 10))),
    "a picture without its pixels": shown(data_url(png(64, 64))),
    "a picture cut off": shown(data_url(picture()[:300])),
    "a JPEG of noise": shown(data_url(b"\xff\xd8\xff" + b"\x55" * 2000, "jpeg")),
    "a TIFF": shown(data_url(picture(kind="TIFF"), "tiff")),
    "a JPEG 2000": shown(data_url(picture(kind="JPEG2000"), "jp2")),
    "a program": shown(data_url(b"\x7fELF" + b"\0" * 100)),
    "a file": shown("file:///etc/passwd"),
    "a path": shown("/etc/passwd"),
    "an address of FTP": shown("ftp://pictures.example.com/a.png"),
    "an address in gopher": shown("gopher://127.0.0.1:6379/_FLUSHALL"),
    "too many pictures": ask([image()] * 5),
    "a picture that is a number": shown(5),
    "a picture that is null": shown(None),
    "a picture that is a list": shown([SMALL]),
    "a detail of another type": ask([{"type": "image_url", "image_url": {"url": SMALL, "detail": ["low"]}}]),
    "image_url of another type": ask([{"type": "image_url", "image_url": 7}]),
    "no messages": {"model": "eyes"},
    "messages of another type": {"messages": "Hello"},
    "messages without any": {"messages": []},
    "too many messages": {"messages": [{"role": "user", "content": "?"}] * 2000},
    "a message of another type": {"messages": ["Hello"]},
    "a message without content": {"messages": [{"role": "user"}]},
    "content of another type": message(content=5),
    "content without parts": message(content=[]),
    "content that is an object": message(content={"type": "text", "text": "?"}),
    "a part of another type": message(content=["Hello"]),
    "a part of an unknown type": message(content=[{"type": "input_audio", "input_audio": {}}]),
    "a text of another type": message(content=[{"type": "text", "text": {"a": 1}}]),
    "a question of blanks": message(content="   "),
    "an unknown role": message(role="root"),
    "a role of another type": message(role={"a": 1}),
    "a tool's answer": message(role="tool", tool_call_id="a"),
    "an answer to go on with": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "I"}]},
    "no number of tokens": ask(max_tokens="5"),
    "tokens that are true": ask(max_tokens=True),
    "no tokens": ask(max_tokens=0),
    "fewer than no tokens": ask(max_tokens=-1),
    "a part of a token": ask(max_tokens=1.5),
    "a temperature below zero": ask(temperature=-1),
    "a temperature of text": ask(temperature="hot"),
    "a chance above one": ask(top_p=1.5),
    "a seed of another type": ask(seed="1"),
    "stops of another type": ask(stop=[1, 2]),
    "an empty stop": ask(stop=""),
    "too many stops": ask(stop=[str(k) for k in range(100)]),
    "a stream that is text": ask(stream="yes"),
    "a model of another type": ask(model=["eyes"]),
    "a model that is a path": ask(model="../../etc/passwd"),
    "a form of another type": ask(response_format="json_object"),
    "a schema of another type": ask(response_format={"type": "json_schema", "json_schema": {"schema": "{}"}}),
    "a schema that refers outside": ask(
        response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/schema.json"}}}
    ),
    "a schema of an unknown kind": ask(
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "array", "uniqueItems": True}}}
    ),
    "a schema too long": ask(
        response_format={"type": "json_object", "schema": {"type": "string", "description": "x" * 200_000}}
    ),
    "a schema of a million": ask(
        response_format={"type": "json_object", "schema": {"type": "integer", "multipleOf": 999_983}}
    ),
    "a prompt too long": ask("word " * 20_000),
    "an unknown field": ask(**{"__proto__": {"admin": True}}),
    "a field of half a character": ask(**{"\ud800": 1}),
    "a list": [1, 2],
    "a text": "Hello",
    "null": None,
}

ADDRESSES = {  # of pictures, each of which would reach what it should not
    "loopback": "http://127.0.0.1:{port}/a.png",
    "localhost": "http://localhost:{port}/a.png",
    "one number": "http://2130706433:{port}/a.png",
    "octal": "http://0177.0.0.1:{port}/a.png",
    "hexadecimal": "http://0x7f.1:{port}/a.png",
    "short": "http://127.1:{port}/a.png",
    "zero": "http://0:{port}/a.png",
    "IPv6": "http://[::1]:{port}/a.png",
    "IPv4 in IPv6": "http://[::ffff:127.0.0.1]:{port}/a.png",
    "a zone": "http://[fe80::1%25lo]:{port}/a.png",
    "a user": "http://pictures.example.com@127.0.0.1:{port}/a.png",
    "a password": "http://a:b@pictures.example.com/a.png",
    "a backslash": "http://pictures.example.com\\@127.0.0.1:{port}/a.png",
    "a fragment": "http://127.0.0.1:{port}#@pictures.example.com/a.png",
    "a tab": "http://127.0.0.1:{port}/\t.pictures.example.com",
    "a line feed": "http://pictures.example.com/a.png\r\nHost: inside",
    "another port": "http://pictures.example.com:{port}/a.png",
    "a port out of range": "http://pictures.example.com:99999/a.png",
    "a dot at the end": "http://pictures.example.com./a.png",
    "a name below": "http://a.pictures.example.com/a.png",
    "a name around": "http://pictures.example.com.attacker.net/a.png",
    "other letters": "http://pıctures.example.com/a.png",
    "full-width letters": "http://pictures.example。com/a.png",
    "no host": "http:///a.png",
    "metadata": "http://169.254.169.254/latest/meta-data",
    "a name that is here": "http://inside.example.com/a.png",
    "a name that is here, too": "http://mixed.example.com/a.png",
    "a name in IPv6": "http://mapped.example.com/a.png",
    "a name of metadata": "http://metadata.example.com/a.png",
    "a name of 6to4": "http://tunnel.example.com/a.png",
    "a name of NAT64": "http://nat.example.com/a.png",
    "a name of nothing": "http://nowhere.example.com/a.png",
    "a redirect": "http://pictures.example.com/redirect",
    "too large": "http://pictures.example.com/huge",
    "endless": "http://pictures.example.com/endless",
    "cut off": "http://pictures.example.com/short",
    "no picture": "http://pictures.example.com/text",
    "compressed": "http://pictures.example.com/packed",
    "a drip": "http://pictures.example.com/drip",
    "silence": "http://pictures.example.com/silent",
    "no HTTP": "http://pictures.example.com/garbage",
    "TLS without TLS": "https://pictures.example.com/garbage",
    "a long address": "http://pictures.example.com/" + "a" * 5000,
}

Raw = Callable[[int], tuple[bytes, ...]]


def sent(data: bytes, *lines: str) -> Raw:
    return lambda port: (head(port, len(data), f"Authorization: Bearer {KEY}", *lines) + data,)


GOOD = json.dumps(ask()).encode()
AUTH = f"Authorization: Bearer {KEY}"
DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BYTES: dict[str, Raw] = {  # bytes on the wire
    "no JSON": sent(b"hello"),
    "no bytes": sent(b""),
    "JSON cut off": sent(GOOD[:-5]),
    "JSON and more": sent(GOOD + GOOD),
    "deep JSON": sent(DEEP),
    "JSON of many lists": sent(b"[" + b"[]," * 300_000 + b"[]]"),
    "a key twice": sent(b'{"messages": [], ' + GOOD[1:]),
    "NaN": sent(GOOD[:-1] + b', "temperature": NaN}'),
    "infinity": sent(GOOD[:-1] + b', "temperature": 1e999}'),
    "a number of a thousand digits": sent(GOOD[:-1] + b', "seed": ' + b"9" * 1000 + b"}"),
    "half a character": sent(b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    "bytes that are no text": sent(b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    "UTF-16": sent(GOOD.decode().encode("utf-16")),
    "a byte order mark": sent(b"\xef\xbb\xbf" + GOOD),
    "too many bytes": sent(b'{"a": "' + b"x" * MAX_BODY + b'"}'),
    "a length beyond any": lambda port: (head(port, 1 << 62, AUTH) + b"{}",),
    "too many bytes in chunks": lambda port: (
        head(port, None, AUTH, "Transfer-Encoding: chunked") + b"10000\r\n%s\r\n" % (b"x" * 65536) * 20,
    ),
    "a slow body": lambda port: (head(port, 500, AUTH), b"{", b'"', b"a"),
    "a body that does not come": lambda port: (head(port, 500, AUTH),),
    "a form": lambda port: (
        head(port, 3, AUTH).replace(b"application/json", b"application/x-www-form-urlencoded") + b"a=b",
    ),
    "text, as a page of a stranger may send it": lambda port: (
        head(port, len(GOOD), AUTH).replace(b"application/json", b"text/plain") + GOOD,
    ),
    "compressed": sent(GOOD, "Content-Encoding: gzip"),
    "length and chunks": lambda port: (
        head(port, len(GOOD), AUTH, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD),
    ),
    "two lengths": lambda port: (head(port, len(GOOD), AUTH, "Content-Length: 5") + GOOD,),
    "a length that is none": lambda port: (head(port, "5x", AUTH) + GOOD,),
    "a length below zero": lambda port: (head(port, "-1", AUTH) + GOOD,),
    "chunks of an unknown coding": lambda port: (head(port, None, AUTH, "Transfer-Encoding: gzip, chunked") + GOOD,),
    "chunks that are none": lambda port: (head(port, None, AUTH, "Transfer-Encoding: chunked") + b"zz\r\nhello\r\n",),
    "a chunk of a negative size": lambda port: (head(port, None, AUTH, "Transfer-Encoding: chunked") + b"-5\r\nhello",),
    "a header in two lines": lambda port: (head(port, len(GOOD), "X-A: b\r\n c: d\x00") + GOOD,),
    "a NUL in a header": lambda port: (head(port, len(GOOD), AUTH + "\x00") + GOOD,),
    "a space before the colon": lambda port: (head(port, len(GOOD), "Transfer-Encoding : chunked") + GOOD,),
    "a huge header": lambda port: (head(port, len(GOOD), "X-A: " + "a" * 100_000) + GOOD,),
    "many headers": lambda port: (head(port, len(GOOD), *[f"X-{k}: a" for k in range(20_000)]) + GOOD,),
    "no host": lambda port: (b"GET /health HTTP/1.1\r\n\r\n",),
    "two hosts": lambda port: (head(port, None, "Host: other", path="/health", method="GET"),),
    "another protocol": lambda port: (b"GET /health FTP/1.1\r\nHost: localhost\r\n\r\n",),
    "no HTTP": lambda port: (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",),
    "a control character in a path": lambda port: (head(port, None, AUTH, path="/v1/\x01models", method="GET"),),
    "an encoded NUL in a path": lambda port: (head(port, None, AUTH, path="/v1/models/%00", method="GET"),),
    "a path that climbs": lambda port: (head(port, None, AUTH, path="/../../etc/passwd", method="GET"),),
    "an encoded path that climbs": lambda port: (
        head(port, None, AUTH, path="/%2e%2e/%2e%2e/etc/passwd", method="GET"),
    ),
    "a path that climbs from the page": lambda port: (
        head(port, None, AUTH, path="/page.js/../../api.py", method="GET"),
    ),
    "a path with backslashes": lambda port: (head(port, None, AUTH, path="/..%5c..%5capi.py", method="GET"),),
    "a whole address as path": lambda port: (head(port, None, AUTH, path="http://127.0.0.1/health", method="GET"),),
    "CONNECT": lambda port: (head(port, None, AUTH, path="127.0.0.1:22", method="CONNECT"),),
    "a socket of the web": lambda port: (
        head(port, None, AUTH, "Connection: Upgrade", "Upgrade: websocket", path="/ws", method="GET"),
    ),
    "no key": lambda port: (request(port, ask()),),
    "a wrong key": lambda port: (request(port, ask(), "Authorization: Bearer wrong"),),
    "two keys": lambda port: (request(port, ask(), AUTH, AUTH),),
    "a key of another scheme": lambda port: (request(port, ask(), f"Authorization: Basic {KEY}"),),
    "an empty key": lambda port: (request(port, ask(), "Authorization: Bearer "),),
    "a key that is no ASCII": lambda port: (request(port, ask(), "Authorization: Bearer \xe9\xff"),),
    "metrics without a key": lambda port: (head(port, None, path="/metrics", method="GET"),),
    "models without a key": lambda port: (head(port, None, path="/v1/models", method="GET"),),
    "props without a key": lambda port: (head(port, None, path="/props", method="GET"),),
    "a stranger's host": lambda port: (request(port, ask(), AUTH).replace(b"127.0.0.1", b"attacker.example"),),
    "a stranger's host with our name": lambda port: (
        request(port, ask(), AUTH).replace(b"127.0.0.1", b"localhost.attacker.example"),
    ),
    "a host with a user": lambda port: (request(port, ask(), AUTH).replace(b"127.0.0.1", b"127.0.0.1:80@attacker"),),
    "a stranger's page": lambda port: (request(port, ask(), AUTH, "Origin: https://attacker.example"),),
    "a page of another port": lambda port: (request(port, ask(), AUTH, "Origin: http://127.0.0.1:1"),),
    "a page of nowhere": lambda port: (request(port, ask(), AUTH, "Origin: null"),),
    "a page's question beforehand": lambda port: (
        head(port, None, "Origin: https://a.example", "Access-Control-Request-Method: POST", method="OPTIONS"),
    ),
}


def good(server: Running) -> None:
    made = server.post(ask([image(), {"type": "text", "text": "What?"}], max_tokens=2))
    assert made.status_code == 200 and made.json()["choices"][0]["finish_reason"] == "length"


def check(status: int, content: bytes, kind: str) -> dict[str, Any]:
    assert 400 <= status < 500, (status, content[:500])
    error: dict[str, Any] = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"} and kind.startswith("application/json")
    assert error["message"] and len(content) < 2000 and error["type"] != "server_error"
    assert b"Traceback" not in content and b"root:" not in content and KEY.encode() not in content
    return error


@pytest.mark.parametrize("name", JSON)
def test_json_that_means_harm(server: Running, name: str) -> None:
    data = json.dumps(JSON[name]).encode()
    made = server.client.post("/v1/chat/completions", content=data, headers={"Content-Type": "application/json"})
    check(made.status_code, made.content, made.headers["content-type"])
    good(server)


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_that_reach_further(server: Running, origin: Origin, name: str) -> None:
    address = ADDRESSES[name].format(port=origin.canary.getsockname()[1])
    start = time.monotonic()
    made = server.post(shown(address))
    error = check(made.status_code, made.content, made.headers["content-type"])
    assert error["code"] == "invalid_image" and time.monotonic() - start < 4
    with pytest.raises(BlockingIOError):
        origin.canary.accept()
    assert {address for address, _ in origin.connected} <= {PUBLIC}
    good(server)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_mean_harm(server: Running, name: str) -> None:
    received = server.send(*BYTES[name](server.port), pause=0.1 if name == "a slow body" else 0.0)
    top, _, content = received.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    check(int(lines[0].split(" ")[1]), content, headers["content-type"])
    assert not [header for header in headers if header.startswith("access-control")]
    good(server)


def test_the_list_is_as_long_as_the_docs_say() -> None:
    assert len(JSON) + len(ADDRESSES) + len(BYTES) == 178


# --- any request -------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "?", "user", "text", "image_url", "json_schema", SMALL, "data:,", "http://a.example/", "\u2028", "low"]
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.text(max_size=8)
)
INNER = ["role", "content", "type", "text", "image_url", "url", "detail", "schema", "json_schema", "enable_thinking"]
ANY = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ["model", "messages", "stream", "stream_options", "response_format", "chat_template_kwargs", "max_tokens"]
FIELDS += ["max_completion_tokens", "user", *contract.SAMPLING, *contract.DEFAULTS]
MESSAGES = st.just(ask()["messages"]) | ANY


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=4), MESSAGES)
def test_any_json_is_read_or_refused(fields: dict[str, Any], messages: Any) -> None:
    """In a text that can be sent, with a field that the request has."""
    body = {"messages": messages, **fields}
    try:
        data = json.dumps(body).encode()
        found = contract.read_request(data, ["eyes"], False, ServeOptions(), Fetcher((), 1))
    except Refusal as refusal:
        assert 400 <= refusal.status < 500 and len(refusal.message) < 1000
        json.dumps(refusal.body, ensure_ascii=False).encode()
        field = (refusal.param or "messages").partition(".")[0].partition("[")[0]
        assert field in body
    else:
        assert found.conversation[-1]["role"] != "assistant"
        assert sum(isinstance(each["content"], str) for each in found.conversation) <= len(messages)


# --- what is allowed ---------------------------------------------------------------------------------------


def test_a_picture_of_an_allowed_host(server: Running, origin: Origin) -> None:
    made = server.post(shown("http://pictures.example.com/a.png?size=1"))
    same = server.post(shown(data_url(picture(5))))
    assert made.status_code == 200 and made.json()["choices"] == same.json()["choices"]
    sent = origin.heads[-1].lower()
    assert sent.startswith(b"get /a.png?size=1 http/1.1") and b"host: pictures.example.com\r\n" in sent
    assert origin.connected[-1] == (PUBLIC, 80)


def test_a_name_that_changes_its_address_is_looked_up_once(server: Running, origin: Origin) -> None:
    before = len(origin.connected)
    assert server.post(shown("http://rebind.example.com/a.png")).status_code == 200
    assert origin.connected[before:] == [(PUBLIC, 80)] and origin.looked_up.count("rebind.example.com") == 1
    made = server.post(shown("http://rebind.example.com/a.png"))  # and is held to what it says then
    assert made.status_code == 400 and len(origin.connected) == before + 1


def test_without_hosts_nothing_is_fetched() -> None:
    asked: list[str] = []
    fetcher = Fetcher((), 1000, resolve=lambda host, port: asked.append(host) or [])  # type: ignore[func-returns-value]
    with pytest.raises(Refusal, match="fetches no pictures"):
        fetcher("http://pictures.example.com/a.png", "url")
    assert not asked


def test_no_proxy_of_the_environment_is_asked(server: Running, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"http://127.0.0.1:{origin.canary.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, place)
    assert server.post(shown("http://pictures.example.com/b.png")).status_code == 200
    with pytest.raises(BlockingIOError):
        origin.canary.accept()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::", "::1", "::ffff:8.8.8.8", "::127.0.0.1",
        "64:ff9b::808:808", "64:ff9b:1::1", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fe80::1",
        "fe80::1%lo", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1", "3fff::1", "", "nonsense",
        "2001:4860:4860::8888%eth0",
    ],
)  # fmt: skip
def test_what_is_not_of_the_public_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "1.1.1.1", "2001:4860:4860::8888", "2606:4700::1111"])
def test_what_is(address: str) -> None:
    assert is_public(address)


def test_tls_is_of_the_name(tmp_path: Path) -> None:
    """The certificate is checked for the host, whatever address was connected to; and the name is sent (SNI)."""
    ours, theirs = socket.socketpair()
    hello: list[bytes] = []

    def answer() -> None:
        hello.append(theirs.recv(4096))
        theirs.close()

    threading.Thread(target=answer).start()
    fetcher = Fetcher(
        ("pictures.example.com",), 1000, resolve=lambda host, port: [PUBLIC], connect=lambda *given: ours, seconds=5
    )
    with pytest.raises(Refusal, match="does not answer"):
        fetcher("https://pictures.example.com/a.png", "url")
    assert b"pictures.example.com" in hello[0]


@pytest.mark.parametrize(
    ("options", "host", "status"),
    [
        ({}, "localhost", 200),
        ({}, "127.0.0.1:9", 200),
        ({}, "[::1]:80", 200),
        ({}, "127.8.8.8", 200),
        ({}, "192.168.1.5", 403),
        ({}, "0.0.0.0", 403),
        ({}, "cameras", 403),
        ({}, "eyes.example.com", 403),
        ({"hosts": ("Eyes.Example.com",)}, "eyes.example.com:443", 200),
        ({"host": "0.0.0.0", "api_key": KEY}, "192.168.1.5:8080", 200),
        ({"host": "0.0.0.0", "api_key": KEY}, "[fd00::5]:8080", 200),
        ({"host": "0.0.0.0", "api_key": KEY}, "edgevlm:8080", 200),
        ({"host": "0.0.0.0", "api_key": KEY}, "eyes.local", 200),
        ({"host": "0.0.0.0", "api_key": KEY}, "attacker.example", 403),
        ({"host": "0.0.0.0", "api_key": KEY}, "a/.local", 403),
        ({"host": "0.0.0.0", "api_key": KEY}, "attacker.example:80:.local", 403),
    ],
)
def test_names_of_the_server(options: dict[str, Any], host: str, status: int) -> None:
    from edgevlm.serve.guard import Guard

    headers = [(b"host", host.encode()), (b"authorization", f"bearer {KEY}".encode())]
    guard = Guard(ServeOptions(**options), ["/health"])
    if status == 200:
        guard.check("/v1/models", headers)
        guard.check("/v1/models", [*headers, (b"origin", f"http://{host}".encode())])
    else:
        with pytest.raises(Refusal) as raised:
            guard.check("/health", headers)
        assert raised.value.status == status
