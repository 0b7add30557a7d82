"""Publishing: what is sent, what is not sent again, and everything that stops it, through the hub's real client."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.writable_hub import Repository, Stored

from qtk.checkpoint.directory_lock import held_directory
from qtk.checkpoint.sums import read_sums
from qtk.errors import InputError, MachineError
from qtk.release.destinations import Wishes
from qtk.release.leaks import leaks
from qtk.release.publish import destination
from qtk.release.publish_hub import HubRepository

TARGET = "hf://me/tiny-int4"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_without_yes_nothing_is_changed_anywhere(bundle: Path, writable_hub, run_qtk) -> None:
    answer = run_qtk("publish", bundle, TARGET, "--json")
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert {file["file"] for file in told["files"]} == set(contents(bundle))
    assert {file["status"] for file in told["files"]} == {"new"}
    assert (told["exists"], told["published"], writable_hub.repositories) == (False, False, {})
    assert all(line.startswith("GET") for line in writable_hub.asked)
    assert "Nothing was changed. --yes would send" in run_qtk("publish", bundle, TARGET).stdout


def test_everything_arrives_in_one_commit_and_is_not_sent_again(
    bundle: Path, writable_hub, run_qtk, tmp_path: Path
) -> None:
    answer = run_qtk("publish", bundle, TARGET, "--yes", "--private")
    assert answer.returncode == 0, answer.stderr
    repository = writable_hub.repositories["me/tiny-int4"]
    assert (repository.commits, repository.private) == (1, True)
    assert {k: v for k, v in writable_hub.files("me/tiny-int4").items() if k != ".gitattributes"} == contents(bundle)
    assert f"{writable_hub.address}/me/tiny-int4/commit/" in answer.stdout

    writable_hub.asked.clear()
    again = run_qtk("publish", bundle, TARGET, "--yes")
    assert again.returncode == 0, again.stderr
    assert "Published: 0 files" in again.stdout
    assert all(line.startswith("GET") for line in writable_hub.asked)

    downloaded = tmp_path / "downloaded"
    for name, content in writable_hub.files("me/tiny-int4").items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    assert run_qtk("verify", downloaded).returncode == 0


def test_a_stopped_upload_sends_no_object_twice(bundle: Path, writable_hub, run_qtk) -> None:
    writable_hub.trouble["/commit/"] = 500
    stopped = run_qtk("publish", bundle, TARGET, "--yes")
    assert stopped.returncode == 4
    assert "answered with status 500" in stopped.stderr
    assert "Nothing there was changed; what was uploaded before is not sent again" in stopped.stderr
    sent = writable_hub.received
    assert sent > 0
    writable_hub.trouble.clear()
    assert run_qtk("publish", bundle, TARGET, "--yes").returncode == 0
    assert writable_hub.received == sent
    assert writable_hub.files("me/tiny-int4").keys() >= contents(bundle).keys()


def test_a_branch_is_made(bundle: Path, writable_hub, run_qtk) -> None:
    answer = run_qtk("publish", bundle, TARGET, "--yes", "--revision", "int4")
    assert answer.returncode == 0, answer.stderr
    assert "README.md" not in writable_hub.files("me/tiny-int4")
    assert contents(bundle).items() <= writable_hub.files("me/tiny-int4", "int4").items()


@pytest.fixture
def occupied(writable_hub):
    """A hub on which me/tiny-int4 holds something else."""
    files = {"README.md": Stored(b"# Mine", False), "model.safetensors": Stored(b"w" * 9000, True)}
    writable_hub.repositories["me/tiny-int4"] = Repository(branches={"main": files})
    return writable_hub


def test_other_content_is_refused_unless_it_is_to_be_replaced(bundle: Path, occupied, run_qtk) -> None:
    answer = run_qtk("publish", bundle, TARGET, "--yes")
    assert answer.returncode == 3
    assert "1 of its files differ there and 1 other files are there; --replace" in answer.stderr
    assert occupied.files("me/tiny-int4")["README.md"] == b"# Mine"
    assert occupied.repositories["me/tiny-int4"].commits == 0
    replaced = run_qtk("publish", bundle, TARGET, "--yes", "--replace", "--json")
    assert replaced.returncode == 0, replaced.stderr
    assert json.loads(replaced.stdout)["others"] == ["model.safetensors"]
    assert occupied.files("me/tiny-int4")["README.md"] == (bundle / "README.md").read_bytes()
    assert occupied.files("me/tiny-int4")["model.safetensors"] == b"w" * 9000


def test_a_public_repository_does_not_get_private_files(bundle: Path, occupied, run_qtk) -> None:
    answer = run_qtk("publish", bundle, TARGET, "--yes", "--private", "--replace")
    assert answer.returncode == 3
    assert "the repository is public" in answer.stderr


@pytest.mark.parametrize(
    ("part", "status", "code", "sentence"),
    [
        ("GET /api/models", 401, 2, "does not let this user write to me/tiny-int4"),
        ("/preupload/", 403, 2, "hf auth login"),
        ("/repos/create", 403, 2, "hf auth login"),
        ("/commit/", 429, 4, "asks to wait (status 429)"),
        ("GET /api/models", 500, 4, "answered with status 500"),
        ("/objects/batch", 503, 4, "answered with status 503"),
        ("PUT /objects", 500, 4, "answered with status 500"),
        ("/commit/", 400, 2, "does not take this (status 400)"),
        ("/commit/", 412, 3, "was changed by somebody else meanwhile"),
    ],
)
def test_a_hub_that_refuses_is_a_sentence(
    bundle: Path, writable_hub, run_qtk, part: str, status: int, code: int, sentence: str
) -> None:
    before = contents(bundle)
    writable_hub.trouble[part] = status
    answer = run_qtk("publish", bundle, TARGET, "--yes", "--json")
    assert answer.returncode == code, answer.stderr
    assert sentence in answer.stderr
    assert "hf_x" not in answer.stderr + answer.stdout
    assert json.loads(answer.stdout)["exit_code"] == code
    assert contents(bundle) == before
    assert not any(repository.commits for repository in writable_hub.repositories.values())


def test_a_hub_that_is_down_is_the_machines_lack(bundle: Path, unreachable_hub, run_qtk) -> None:
    answer = run_qtk("publish", bundle, TARGET)
    assert answer.returncode == 4
    assert "cannot be reached" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_hub_that_does_not_answer_in_time(writable_hub) -> None:
    writable_hub.trouble["GET /api/models"] = 2.0
    with pytest.raises(MachineError, match="did not answer in time"):
        HubRepository("me/tiny-int4", Wishes(), patience=0.05).state(Path())


def test_a_failed_gate_stops_it(bundle: Path, released_run: Path, writable_hub, run_qtk, tmp_path: Path) -> None:
    run = shutil.copytree(released_run.parent, tmp_path / "place") / "run"
    strict = tmp_path / "strict.yaml"
    strict.write_text("gates: [{metric: kl, at_most: 0.0000001}]\n")
    assert run_qtk("gate", run, "--gates", strict).returncode == 3
    made = tmp_path / "failed"
    assert run_qtk("bundle", run, "-o", made).returncode == 0
    assert "Gates of its release did not pass" in (made / "README.md").read_text()
    answer = run_qtk("publish", made, TARGET, "--yes")
    assert answer.returncode == 3
    assert "its gates failed; --despite-gate" in answer.stderr
    assert writable_hub.repositories == {}
    assert run_qtk("publish", made, TARGET, "--yes", "--despite-gate").returncode == 0

    shutil.rmtree(run / "gate")
    assert run_qtk("bundle", run, "-o", tmp_path / "unjudged").returncode == 0
    assert "no gate was judged" in run_qtk("publish", tmp_path / "unjudged", "hf://me/other").stderr


def test_a_changed_bundle_and_what_is_no_bundle(bundle: Path, released_run: Path, run_qtk, writable_hub) -> None:
    answer = run_qtk("publish", released_run / "quantized", TARGET)
    assert (answer.returncode, "is not a bundle" in answer.stderr) == (2, True)
    (bundle / "LICENSE").write_text("do what you like")
    answer = run_qtk("publish", bundle, TARGET, "--yes")
    assert (answer.returncode, "changed: LICENSE" in answer.stderr) == (3, True)
    assert writable_hub.repositories == {}


@pytest.mark.parametrize(
    "target", ["org/name", "s3://bucket/x", "hf://only-a-name", "hf://", "modelscope://a/b/c", "file://"]
)
def test_a_target_that_is_none(target: str) -> None:
    with pytest.raises(InputError, match=r"not a place to publish at|is not a repository"):
        destination(target, Wishes())


@pytest.mark.parametrize("place", ["{home}/models/x", "/home/somebody/run/engine"])
def test_a_place_is_found_and_the_file_named(
    released_run: Path, writable_hub, run_qtk, tmp_path: Path, monkeypatch, place: str
) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    text = place.format(home="/somewhere/else")
    run = shutil.copytree(released_run.parent, tmp_path / "place") / "run"
    recipe = run / "recipe.yaml"
    recipe.write_text(f"{recipe.read_text()}\n# {text}\n")
    made = tmp_path / "b"
    assert run_qtk("bundle", run, "-o", made).returncode == 0
    answer = run_qtk("publish", made, TARGET, "--yes")
    assert answer.returncode == 3
    assert "recipe.yaml: a" in answer.stderr
    assert text not in answer.stderr + answer.stdout
    assert writable_hub.repositories == {}


@pytest.mark.parametrize("secret", ["hf_" + "a" * 34, "an-unusual-token-value"])
def test_a_secret_in_a_file_of_the_model_is_found_and_the_file_named(
    tiny, writable_hub, run_qtk, tmp_path: Path, monkeypatch, secret: str
) -> None:
    """What qtk itself writes holds none; the model's files stay as they are, byte for byte."""
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token-value")
    base = shutil.copytree(tiny(), tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"note": secret}))
    for words in (
        ("quantize", base, "-o", tmp_path / "int4", "--method", "rtn", "--group-size", 32),
        ("bundle", tmp_path / "int4", "-o", tmp_path / "b"),
    ):
        done = run_qtk(*words)
        assert done.returncode == 0, done.stderr
    answer = run_qtk("publish", tmp_path / "b", TARGET, "--yes", "--despite-gate")
    assert answer.returncode == 3
    assert "generation_config.json: a" in answer.stderr
    assert secret not in answer.stderr + answer.stdout
    assert writable_hub.repositories == {}


def test_secrets_are_found_across_blocks_of_large_files(tmp_path: Path) -> None:
    token = b"hf_" + b"q" * 34
    for offset in (8 * 2**20 - 10, 8 * 2**20 + 100, 100):
        with open(tmp_path / "weights", "wb") as stream:
            stream.seek(offset)
            stream.write(token)
            stream.truncate(9 * 2**20)
        assert [leak.what for leak in leaks(tmp_path, ["weights"])] == ["a token of the Hugging Face hub"]
    (tmp_path / "weights").write_bytes(os.urandom(2**20))
    assert leaks(tmp_path, ["weights"]) == []


def test_a_path_in_the_card_of_another_is_an_example(tmp_path: Path) -> None:
    (tmp_path / "README-base.md").write_text("docker run -v /home/user/models:/models")
    (tmp_path / "README.md").write_text("docker run -v /home/user/models:/models")
    assert [leak.file for leak in leaks(tmp_path, ["README-base.md", "README.md"])] == ["README.md"]


def test_a_directory_takes_a_bundle(bundle: Path, run_qtk, tmp_path: Path) -> None:
    share = tmp_path / "share" / "tiny"
    target = f"file://{share}"
    assert run_qtk("publish", bundle, target).returncode == 0
    assert not share.exists()
    assert run_qtk("publish", bundle, target, "--yes").returncode == 0
    assert contents(share) == contents(bundle)
    assert run_qtk("verify", share).returncode == 0

    (share / "SHA256SUMS").unlink()
    (share / "LICENSE").write_text("another")
    answer = run_qtk("publish", bundle, target, "--yes", "--json")
    assert answer.returncode == 3
    statuses = {file["file"]: file["status"] for file in json.loads(answer.stdout)["files"]}
    assert (statuses["SHA256SUMS"], statuses["LICENSE"], statuses["README.md"]) == ("new", "differs", "same")
    replaced = run_qtk("publish", bundle, target, "--yes", "--replace")
    assert "Published: 2 files" in replaced.stdout
    assert contents(share) == contents(bundle)


def test_a_directory_that_cannot_be_written_or_is_the_bundle(bundle: Path, run_qtk, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        answer = run_qtk("publish", bundle, f"file://{place}", "--yes")
        assert answer.returncode == 2, answer.stderr
    assert run_qtk("publish", bundle, f"file://{bundle}/copy", "--yes").returncode == 2
    assert run_qtk("publish", bundle, f"file://{tmp_path}/x", "--private").returncode == 2
    assert read_sums(bundle).keys() | {"SHA256SUMS"} == contents(bundle).keys()


def test_a_directory_in_which_another_process_works_is_left_to_it(bundle: Path, run_qtk, tmp_path: Path) -> None:
    share = tmp_path / "share"
    with held_directory(share):
        answer = run_qtk("publish", bundle, f"file://{share}", "--yes")
    assert answer.returncode == 2
    assert f"Another qtk command is writing {share} right now" in answer.stderr
    assert not share.exists()


def test_what_was_sent_meanwhile_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    place = destination(f"file://{share}", Wishes())
    before = place.state(bundle)
    share.mkdir()
    (share / "README.md").write_text("of another")
    with pytest.raises(InputError, match="changed while this command ran"):
        place.send(bundle, [], before)
