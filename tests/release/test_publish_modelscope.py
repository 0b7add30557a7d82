"""Publishing on ModelScope, through its real client, against a server on this machine that answers as its client expects."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.writable_hub import serve

pytest.importorskip("modelscope_hub", reason="pip install modelscope")


class StandInModelScope:
    """One repository. files: path -> (size, sha256); created: what it was created with. trouble: a part of a path -> a status."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.created: dict[str, Any] | None = None
        self.files: dict[str, tuple[int, str]] = {}
        self.objects: set[str] = set()
        self.put = 0
        self.trouble: dict[str, int] = {}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        for part, status in self.trouble.items():
            if part in f"{method} {path}":
                return status, {}, {"Code": status, "Success": False, "Message": "trouble"}
        data: Any = {}
        if "/repo/files" in path:
            if self.created is None:
                return 404, {}, {"Code": 10010205001, "Success": False, "Message": "not exist"}
            listed = [{"Path": k, "Size": size, "Sha256": sha, "Type": "blob"} for k, (size, sha) in self.files.items()]
            data = {"Files": listed}
        elif path.endswith("/api/v1/models"):
            self.created = self.created or json.loads(body)
        elif "/lfs/objects/batch" in path:
            data = {"objects": [self._object(item) for item in json.loads(body)["objects"]]}
        elif path.startswith("/put/"):
            self.put += 1
            self.objects.add(path.removeprefix("/put/"))
        elif "/commit/" in path:
            for action in json.loads(body)["actions"]:
                self._store(action)
        return 200, {}, {"Code": 200, "Success": True, "Data": data}

    def _object(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.objects:
            return item
        return {**item, "actions": {"upload": {"href": f"{self.address}/put/{item['oid']}"}}}

    def _store(self, action: dict[str, Any]) -> None:
        import hashlib

        sha = action["sha256"] or hashlib.sha256(base64.b64decode(action["content"])).hexdigest()
        self.files[action["path"]] = (action["size"], sha)


@pytest.fixture
def modelscope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInModelScope]:
    for server in serve(StandInModelScope):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-not-a-token")
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
        yield server


TARGET = "modelscope://me/tiny-int4"


def test_a_bundle_arrives_and_is_not_sent_again(bundle: Path, modelscope: StandInModelScope, run_qtk) -> None:
    before = sorted(bundle.rglob("*"))
    dry = run_qtk("publish", bundle, TARGET)
    assert (dry.returncode, modelscope.created) == (0, None)
    answer = run_qtk("publish", bundle, TARGET, "--yes", "--private", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["published"]
    assert modelscope.created is not None
    assert (modelscope.created["Visibility"], modelscope.created["License"]) == (1, "mit")
    names = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert set(modelscope.files) == names
    sent = modelscope.put
    again = run_qtk("publish", bundle, TARGET, "--yes")
    assert "Published: 0 files" in again.stdout
    assert modelscope.put == sent
    assert sorted(bundle.rglob("*")) == before, "the client leaves nothing in the bundle"


def test_other_content_is_refused(bundle: Path, modelscope: StandInModelScope, run_qtk) -> None:
    modelscope.created = {}
    modelscope.files["README.md"] = (3, "0" * 64)
    answer = run_qtk("publish", bundle, TARGET, "--yes")
    assert (answer.returncode, "other content is there already" in answer.stderr) == (3, True)


@pytest.mark.parametrize(("status", "code"), [(401, 2), (403, 2), (500, 4)])
def test_a_refusal_is_a_sentence(bundle: Path, modelscope: StandInModelScope, run_qtk, status: int, code: int) -> None:
    modelscope.trouble["POST /api/v1/models"] = status
    answer = run_qtk("publish", bundle, TARGET, "--yes")
    assert answer.returncode == code, answer.stderr
    assert "Nothing there was changed" in answer.stderr
