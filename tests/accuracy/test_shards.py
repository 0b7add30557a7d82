"""A run whose tasks are done in shards: by one after the other in this process, and on a Ray cluster that loses a node."""

from __future__ import annotations

import functools
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
from qtk.bench.accuracy.jsonl import read_rows
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.ray_shards import RayShards, on_ray
from qtk.bench.accuracy.shard_rows import shard_directory
from qtk.bench.accuracy.shards import EndedShard, Shard, Sharding, do_shard
from qtk.bench.accuracy.source_place import SourcePlace
from qtk.bench.accuracy.unfinished import kept_lines
from qtk.cluster.ray_tasks import told
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.errors import InputError, MachineError
from qtk.release.inspection import inspect_directory

COUNT = 7


class InTurn:
    """Does shards in this process, one after the other. stopped_after: raises once so many are done."""

    def __init__(self, slots: int, stopped_after: int | None = None) -> None:
        self.slots, self.stopped_after = slots, stopped_after
        self.begun: list[Shard] = []
        self.ended: list[Shard] = []

    def start(self, shard: Shard) -> None:
        self.begun.append(shard)

    def wait(self) -> EndedShard:
        if len(self.ended) == self.stopped_after:
            raise KeyboardInterrupt
        shard = self.begun.pop(0)
        self.ended.append(shard)
        try:
            return EndedShard(shard, do_shard(shard))
        except MachineError as error:
            return EndedShard(shard, error=error)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "engine"
    build_engine(tiny(), out, BuildOptions(accuracy_level=0, max_input_len=96, max_output_len=32, max_batch_size=1))
    return out


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> AccuracyOptions:
    """Programs, with canaries and two samples, and likelihoods of the same tasks."""
    folder = tmp_path_factory.mktemp("suites")
    rows = [
        {
            "task_id": f"Own/{n}", "prompt": f"def f{n}(x):\n{'    # more' * (n % 3)}\n", "entry_point": f"f{n}",
            "canonical_solution": "    return x\n", "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        }
        for n in range(COUNT)
    ]  # fmt: skip
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = "summary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval\n"
    body += f"languages:\n  python: {{file: own.jsonl, tasks: {COUNT}}}\n"
    for name, kind in (("own", "programs"), ("own-likelihood", "likelihood")):
        (folder / f"{name}.yaml").write_text(f"name: {name}\nkind: {kind}\n{body}")
    names = tuple(str(folder / f"{name}.yaml") for name in ("own", "own-likelihood"))
    return AccuracyOptions(suite=names, data=folder, canaries=3)


@pytest.fixture(scope="module")
def reading(suites: AccuracyOptions) -> AccuracyOptions:
    """The likelihoods alone, which need no sandbox."""
    return suites.model_copy(update={"suite": suites.suite[1:], "canaries": 0})


@pytest.fixture(scope="module")
def source(engine: Path, suites: AccuracyOptions) -> SourcePlace:
    asked = ModelOptions(max_new_tokens=6, samples=2, temperature=1.0, threads=1)
    return SourcePlace(str(engine), suites.rules, model=asked)


@pytest.fixture(scope="module")
def here(source: SourcePlace, suites: AccuracyOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in this process."""
    out = tmp_path_factory.mktemp("here") / "out"
    run_accuracy(suites, source.open(), Output(out))
    return out


def require_same(out: Path, here: Path) -> None:
    """Every file is the same to the byte, but for the seconds of programs and runs, what failing programs and the sandbox print,
    and what the machine was doing."""
    names = {path.name for path in here.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"qtk-manifest.json"}:
        assert comparable(out / name) == comparable(here / name), name


def comparable(path: Path) -> object:
    if path.name in ("tasks.jsonl", "canaries.jsonl"):
        return [{**row, "seconds": None, "stderr": None} for row in read_rows(path)]
    if path.name == "result.json":
        return {**json.loads(path.read_text()), "seconds": None, "machine": None}
    return path.read_bytes()


def test_shards_make_what_one_run_makes(tmp_path: Path, source, suites, here) -> None:
    runner = InTurn(3)
    run_accuracy(suites, source.open(), Output(tmp_path / "out"), Sharding(source, lambda: runner))
    assert [len(data.task_ids) for shard in runner.ended for data in shard.parts] == [3, 2, 2, 3, 2, 2]
    assert len(read_rows(here / "canaries.jsonl")) == 6
    require_same(tmp_path / "out", here)


@pytest.mark.parametrize("again", [1, 2, None])
def test_a_stopped_run_goes_on_with_other_shards_or_none(tmp_path, again, source, reading) -> None:
    run_accuracy(reading, source.open(), Output(tmp_path / "here"))
    out, stopped = tmp_path / "out", InTurn(3, stopped_after=1)
    with pytest.raises(KeyboardInterrupt):
        run_accuracy(reading, source.open(), Output(out), Sharding(source, lambda: stopped))
    partial = tmp_path / "out.partial"
    assert kept_lines(partial) == {"likelihoods.jsonl": 3}  # every third task
    assert "3 lines done" in inspect_directory(partial).facts["done"]
    with pytest.raises(InputError, match="--resume continues it"):
        run_accuracy(reading, source.open(), Output(out))
    dealt = InTurn(again or 0)
    sharding = None if again is None else Sharding(source, lambda: dealt)
    run_accuracy(reading, source.open(), Output(out, resume=True), sharding)
    require_same(out, tmp_path / "here")


def test_finished_tasks_are_dealt_out_as_finished(tmp_path: Path, source, reading) -> None:
    """A shard gets the lines of its own tasks, and no others."""
    out = Output(tmp_path / "out", resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_accuracy(reading, source.open(), out, Sharding(source, lambda: InTurn(2, stopped_after=1)))
    seen: list[set[str]] = []

    class Looks(InTurn):
        def start(self, shard: Shard) -> None:
            seen.append({row["task_id"] for row in read_rows(shard.directory / "likelihoods.jsonl")})
            super().start(shard)

    run_accuracy(reading, source.open(), out, Sharding(source, functools.partial(Looks, 3)))
    finished = {f"Own/{n}" for n in range(0, COUNT, 2)}
    assert seen == [finished & {f"Own/{n}" for n in range(k, COUNT, 3)} for k in range(3)]


def test_a_machine_without_the_directory_or_with_another_model_says_so(tmp_path: Path, source, reading) -> None:
    class Elsewhere(InTurn):
        def start(self, shard: Shard) -> None:
            super().start(replace(shard, directory=tmp_path / "absent"))

    with pytest.raises(MachineError, match="share at the same path"):
        run_accuracy(reading, source.open(), Output(tmp_path / "a"), Sharding(source, lambda: Elsewhere(1)))

    class Other(InTurn):
        def start(self, shard: Shard) -> None:
            super().start(replace(shard, source_digest="another"))

    with pytest.raises(MachineError, match=r"has something else at .*engine"):
        run_accuracy(reading, source.open(), Output(tmp_path / "b"), Sharding(source, lambda: Other(1)))
    assert list(tmp_path.iterdir()) == []


def test_lines_that_were_changed_in_a_shard_are_refused(tmp_path: Path, source, reading) -> None:
    out = Output(tmp_path / "out", resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_accuracy(reading, source.open(), out, Sharding(source, lambda: InTurn(2, stopped_after=1)))
    file = shard_directory(tmp_path / "out.partial", 0) / "likelihoods.jsonl"
    file.write_text(file.read_text().replace("-", ""))
    with pytest.raises(InputError, match="is not as the stopped run left it"):
        run_accuracy(reading, source.open(), out)


def test_a_run_of_a_qtk_with_other_results_is_not_continued(tmp_path: Path, source, reading) -> None:
    out = Output(tmp_path / "out", resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_accuracy(reading, source.open(), out, Sharding(source, lambda: InTurn(2, stopped_after=1)))
    begun = tmp_path / "out.partial" / "run.json"
    record = json.loads(begun.read_text())
    record["facts"]["version of qtk, with other results"] = "of another"
    begun.write_text(json.dumps(record))
    with pytest.raises(InputError, match="begun with another version of qtk, with other results"):
        run_accuracy(reading, source.open(), out)


def test_what_a_cluster_says_becomes_a_sentence() -> None:
    class Failed(Exception):
        cause: Any = None

    lacking = Failed("long text")
    lacking.cause = ModuleNotFoundError("No module named 'onnxruntime'")
    assert "A worker lacks a package: No module named 'onnxruntime'." in str(told(lacking, "shard 1 of 2"))
    without = Failed("The remote function failed to import on the worker.\nModuleNotFoundError: No module named 'qtk'")
    assert "A worker cannot load qtk: ModuleNotFoundError" in str(told(without, "shard 1 of 2"))
    wrong = Failed("")
    wrong.cause = InputError("These prompts are too long.")
    assert isinstance(told(wrong, "shard 1 of 2"), InputError)
    assert "shard 1 of 2 was lost 4 times: gone" in str(told(Failed("died\ngone"), "shard 1 of 2"))


def test_a_cluster_that_does_not_answer_leaves_nothing(tmp_path: Path, engine, suites, run_qtk) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    words = ("--suite", suites.suite[0], "--data", suites.data, "--ray", "127.0.0.1:1")
    done = run_qtk("bench", "accuracy", engine, *words, "-o", "out", cwd=tmp_path)
    assert (done.returncode, "There is no Ray cluster at '127.0.0.1:1'" in done.stderr) == (4, True), done.stderr
    assert list(tmp_path.iterdir()) == []


class LosesANode(RayShards):
    """A cluster whose second node is killed when its shard has finished some lines."""

    def __init__(self, cluster: Any) -> None:
        super().__init__(cluster.address)
        self.cluster, self.directories = cluster, list[Path]()
        self.where: set[str] = set()
        self.killer = threading.Thread(target=self.kill)

    def start(self, shard: Shard) -> None:
        super().start(shard)
        self.directories.append(shard.directory)
        if len(self.directories) == self.slots:
            self.killer.start()

    def kill(self) -> None:
        again = threading.Event()
        while not all((directory / "generations.jsonl").exists() for directory in self.directories):
            again.wait(0.01)
        self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)

    def close(self) -> None:
        self.killer.join()
        super().close()


@pytest.mark.slow
def test_a_node_that_dies_changes_nothing(tmp_path: Path, source, suites, here) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        runner = LosesANode(cluster)
        assert runner.slots == 2
        run_accuracy(suites, source.open(), Output(tmp_path / "out"), Sharding(source, lambda: runner))
        require_same(tmp_path / "out", here)
        sharding = on_ray(source, cluster.address)
        run_accuracy(suites, source.open(), Output(tmp_path / "again"), sharding)
        require_same(tmp_path / "again", here)
    finally:
        cluster.shutdown()
