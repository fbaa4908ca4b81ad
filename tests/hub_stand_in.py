"""A stand-in for the Hugging Face Hub on this machine: the calls of huggingface_hub that a bundle's travel needs.

Paths and bodies are those of the Hub's own API (https://huggingface.co/docs/hub/api, and git-lfs's batch API); the
client on the other side is the real one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE = 20_000  # bytes from which on a file is stored by its sha256: git-lfs


def _git_name(data: bytes) -> str:
    """What git calls a file; a large one is known by its sha256."""
    if len(data) > LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    name: str
    private: bool = True
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{".gitattributes": b""}]})
    card: dict[str, Any] | None = None  # what the Hub reads from the front of README.md

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1]

    def commit(self, branch: str) -> str:
        """Each has a name of its own."""
        return self._hash(branch, len(self.branches[branch]))

    def _hash(self, branch: str, number: int) -> str:
        return hashlib.sha1(f"{self.name} {branch} {number}".encode()).hexdigest()

    def find(self, revision: str) -> dict[str, bytes] | None:
        for branch, commits in self.branches.items():
            for number, files in enumerate(commits, 1):
                if revision == self._hash(branch, number):
                    return files
        return self.branches[revision][-1] if revision in self.branches else None


@dataclass
class Hub:
    """What the server knows and was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str | None = "hf_right"  # None: everybody may write
    large: dict[str, bytes] = field(default_factory=dict)  # by sha256
    asked: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)  # name: bytes after which its download breaks, once
    broken: set[str] = field(default_factory=set)  # names whose downloads always break
    sent: dict[str, int] = field(default_factory=dict)  # bytes of each file that were sent
    spoil: dict[str, bytes] = field(default_factory=dict)  # name: other bytes to send in its place
    listed: dict[str, int] = field(default_factory=dict)  # name: another size in the listing
    gated: set[str] = field(default_factory=set)  # repositories whose files take an agreement
    stalled: set[str] = field(default_factory=set)  # names of which half is sent, and the rest not before `go`
    go: threading.Event = field(default_factory=threading.Event)
    race: bool = False  # somebody else commits first

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        made = self.repositories[name] = Repository(name, **options)
        made.branches["main"].append(files)
        return made


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def log_message(self, *said: Any) -> None:
        pass

    def _get(self, body: bool) -> None:
        path, query = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(found[1], found[2] or "main", "blobs" in query)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            if (files := self._files(found[1], found[2])) is not None:
                self._json([{"type": "file", "path": name, **self._blob(name, files[name])} for name in files])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], unquote(found[3]), body)
        else:
            self._error(404, "EntryNotFound")

    def do_POST(self) -> None:
        path, _ = self._path()
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.hub.token is not None and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            return self._error(401, None, "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if name.startswith("other/"):
                return self._error(403, None, "You don't have the rights to create a model under this namespace")
            if name in self.hub.repositories or name.startswith("hidden/"):
                return self._json({"url": f"{self.hub.url}/{name}"}, 409)
            private = asked.get("private", asked.get("visibility") == "private")
            self.hub.repositories[name] = Repository(name, bool(private))
            return self._json({"url": f"{self.hub.url}/{name}", "name": name})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            repository = self.hub.repositories[found[1]]
            if found[2] in repository.branches:
                return self._error(409, None, "exists")
            repository.branches[unquote(found[2])] = [dict(repository.files)]
            return self._json({})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            there = self.hub.repositories[found[1]].branches.get(unquote(found[2]), [{}])[-1]
            modes = []
            for each in json.loads(body)["files"]:
                mode = "lfs" if each["size"] > LARGE else "regular"
                oid = _git_name(there[each["path"]]) if each["path"] in there else None
                modes.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self._json({"files": modes})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = []
            for each in json.loads(body)["objects"]:
                href = f"{self.hub.url}/storage/{each['oid']}"
                missing = {} if each["oid"] in self.hub.large else {"actions": {"upload": {"href": href}}}
                objects.append({"oid": each["oid"], "size": each["size"], **missing})
            return self._json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            return self._commit(found[1], unquote(found[2]), [json.loads(line) for line in body.splitlines()])
        return self._error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        path, _ = self._path()
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while count := int(self.rfile.readline(), 16):
                body += self.rfile.read(count)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["content-length"]))
        digest = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != digest:
            return self._error(400, None, "another sha256")
        self.hub.large[digest] = body
        return self._json({})

    def _path(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {parts.path}")
        return parts.path, parse_qs(parts.query)

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a repository; where there are none, the Hub's answer has been sent."""
        known = self.hub.token is None or self.headers.get("authorization") == f"Bearer {self.hub.token}"
        if name not in self.hub.repositories or (self.hub.repositories[name].private and not known):
            self._error(404 if known else 401, "RepoNotFound")
        elif (files := self.hub.repositories[name].find(unquote(revision))) is None:
            self._error(404, "RevisionNotFound")
        else:
            return files
        return None

    def _blob(self, name: str, data: bytes) -> dict[str, Any]:
        size = self.hub.listed.get(name, len(data))
        found: dict[str, Any] = {"size": size, "oid": hashlib.sha1(data).hexdigest()}
        if len(data) > LARGE:
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 130}
        return found

    def _info(self, name: str, revision: str, blobs: bool) -> None:
        if (files := self._files(name, revision)) is None:
            return
        repository, siblings = self.hub.repositories[name], []
        for path, data in files.items():
            blob = self._blob(path, data)
            extra = {"size": blob["size"], "blobId": blob["oid"], "lfs": blob.get("lfs")} if blobs else {}
            siblings.append({"rfilename": path, **{k: v for k, v in extra.items() if v is not None}})
        self._json(
            {
                "id": name,
                "modelId": name,
                "sha": repository.commit(revision) if revision in repository.branches else revision,
                "private": repository.private,
                "siblings": siblings,
                "cardData": repository.card,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _file(self, name: str, revision: str, path: str, body: bool) -> None:
        if (files := self._files(name, revision)) is None:
            return
        if name in self.hub.gated:
            return self._error(403, "GatedRepo")
        if path not in files:
            return self._error(404, "EntryNotFound")
        repository = self.hub.repositories[name]
        data, digest = files[path], hashlib.sha256(files[path]).hexdigest()
        data = self.hub.spoil.get(path, data)
        start = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers["range"])[1]) if "range" in self.headers else 0  # type: ignore[index]
        commit = repository.commit(revision) if revision in repository.branches else revision
        self.send_response(206 if start else 200)
        etag = digest if len(data) > LARGE else hashlib.sha1(data).hexdigest()
        for key, value in (("X-Repo-Commit", commit), ("ETag", f'"{etag}"'), ("Content-Length", len(data) - start)):
            self.send_header(key, str(value))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return None
        rest = data[start:]
        if path in self.hub.stalled:
            self.wfile.write(rest[: len(rest) // 2])
            self.hub.go.wait(30)
            self.close_connection = True
            return None
        end = 0 if path in self.hub.broken else self.hub.cut.pop(path, len(rest))
        self.wfile.write(rest[:end])
        self.hub.sent[path] = self.hub.sent.get(path, 0) + len(rest[:end])
        if end < len(rest):
            self.close_connection = True
        return None

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        if self.hub.race:
            repository.branches[branch].append({**repository.branches[branch][-1], "other.txt": b"first"})
        head = lines[0]["value"]
        if head.get("parentCommit") not in (None, repository.commit(branch)):
            return self._error(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.branches[branch][-1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.branches[branch].append(files)
        commit = repository.commit(branch)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _json(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str | None, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def standing_in(patch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """A running server that huggingface_hub takes for the Hub in this process, with its cache in the folder `cache`."""
    hub = Hub()
    handler = type("Handler", (Answers,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        constants = "huggingface_hub.constants"
        patch.setattr(f"{constants}.ENDPOINT", hub.url)
        patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(f"{constants}.HF_HUB_CACHE", cache)
        patch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)  # uploads by git-lfs, which can be stood in for
        patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        patch.setenv("HF_TOKEN", "hf_right")
        yield hub
        server.shutdown()
