"""A hub on this machine that takes commits, for the hub's own client: create, tree, preupload, LFS batch, commit."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.hub import use_hub

LFS_FROM = 4000  # bytes from which a file is stored as an LFS object


@dataclass
class Stored:
    """A file of a repository: its content, and whether it is an LFS object."""

    content: bytes
    lfs: bool

    def listed(self, path: str) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(self.content), "oid": blob}
        if self.lfs:
            sha256 = hashlib.sha256(self.content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(self.content), "pointerSize": 130}
        return entry


@dataclass
class Repository:
    """branches: name -> path -> file."""

    private: bool = False
    branches: dict[str, dict[str, Stored]] = field(default_factory=lambda: {"main": {}})
    commits: int = 0

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


class WritableHub:
    """repositories by id; objects: LFS objects by sha256. asked: method and path of every request. trouble: a part of a path ->
    the status that it is answered with, or seconds to sleep first (a float)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.received = 0
        self.trouble: dict[str, int | float] = {}

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The content of a repository."""
        return {path: stored.content for path, stored in self.repositories[name].branches[branch].items()}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        self.asked.append(f"{method} {path}")
        for part, trouble in self.trouble.items():
            if part in f"{method} {path}":
                if isinstance(trouble, int):
                    return trouble, {}, {"error": "trouble"}
                threading.Event().wait(trouble)  # the client's own sleep is cut short
        words = path.partition("?")[0].strip("/").split("/")
        if words[:1] == ["objects"]:
            self.received += len(body)
            self.objects[words[1]] = body
            return 200, {}, {}
        if words == ["api", "validate-yaml"]:
            return 200, {}, {"errors": [], "warnings": []}
        if words == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if words[2:] == ["info", "lfs", "objects", "batch"] or words[1].endswith(".git"):
            return 200, {}, self._batch(json.loads(body))
        name = "/".join(words[2:4])
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, {}
        return self._of(self.repositories[name], name, words[4:], body)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return 409, {}, {"error": "exists"}
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.repositories[name] = Repository(private)
        self.repositories[name].branches["main"][".gitattributes"] = Stored(b"*.bin filter=lfs", False)
        return 200, {}, {"url": f"{self.address}/{name}", "id": name}

    def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for item in wanted["objects"]:
            there = item["oid"] in self.objects
            actions = {} if there else {"actions": {"upload": {"href": f"{self.address}/objects/{item['oid']}"}}}
            objects.append({**item, **actions})
        return {"transfer": "basic", "objects": objects}

    def _of(self, repository: Repository, name: str, words: list[str], body: bytes) -> tuple[int, dict[str, str], Any]:
        if not words:
            return 200, {}, {"id": name, "sha": repository.sha, "private": repository.private, "siblings": []}
        action, branch = words[0], words[1] if len(words) > 1 else "main"
        if action == "branch":
            if branch in repository.branches:
                return 409, {}, {"error": "exists"}
            repository.branches[branch] = dict(repository.branches["main"])
            return 200, {}, {}
        if branch not in repository.branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {}
        files = repository.branches[branch]
        if action == "tree":
            return 200, {}, [stored.listed(path) for path, stored in files.items()]
        if action == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {}, {"files": modes}
        if action == "commit":
            return self._commit(repository, name, files, [json.loads(line) for line in body.splitlines() if line])
        return 404, {}, {}

    def _commit(
        self, repository: Repository, name: str, files: dict[str, Stored], lines: list[dict[str, Any]]
    ) -> tuple[int, dict[str, str], Any]:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.sha):
            return 412, {}, {"error": "A commit has happened since. Please refresh and try again."}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Stored(self.objects[value["oid"]], True)
        repository.commits += 1
        url = f"{self.address}/{name}/commit/{repository.sha}"
        return 200, {}, {"commitUrl": url, "commitOid": repository.sha, "commitMessage": header["summary"]}


def serve(hub_class: Any) -> Iterator[Any]:
    """Runs a stand-in on this machine: `hub_class(address)`, whose `answer(method, path, body)` gives status, headers and JSON."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            status, headers, content = hub.answer(self.command, self.path, body)
            raw = json.dumps(content).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(raw))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(raw)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = hub_class(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def writable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WritableHub]:
    """An empty hub that takes commits. The client waits for nothing before it tries again."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    for hub in serve(WritableHub):
        use_hub(monkeypatch, hub.address, tmp_path / "hub-cache")
        yield hub
