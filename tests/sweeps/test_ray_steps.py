"""A sweep on a Ray cluster of two nodes, one of which is killed, makes what a sweep in one process makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qtk.recipes.finished_run import verify_path
from qtk.recipes.reading import RecipeFile
from qtk.sweeps.grid import read_grid
from qtk.sweeps.step_runner import FinishedJob, StepJob
from qtk.sweeps.sweep import run_sweep

RECIPE = {
    "name": "tiny",
    "model": "model",
    "quantize": {"method": "rtn", "group_size": 32, "samples": 2, "seq_len": 64, "threads": 1},
    "bench": {"divergence": {"rows": 2, "seq_len": 32, "threads": 1}},
}
GRID = ["quantize.method=rtn,gptq", "quantize.group_size=32,64"]


class _LosesANode:
    """A cluster whose second node is killed when the third step has been given out."""

    def __init__(self, cluster) -> None:
        from qtk.sweeps.ray_steps import RaySteps

        self._cluster, self._ray = cluster, RaySteps(cluster.address)
        self.slots, self._started = self._ray.slots, 0
        self.where: set[str] = set()

    def start(self, job: StepJob) -> None:
        self._ray.start(job)
        self._started += 1
        if self._started == 3:
            self._cluster.remove_node(self._cluster.worker_nodes.copy().pop(), allow_graceful=False)

    def wait(self) -> FinishedJob:
        finished = self._ray.wait()
        self.where.add(finished.where)
        return finished

    def close(self) -> None:
        self._ray.close()


@pytest.mark.slow
def test_a_node_that_dies_changes_nothing(tmp_path: Path, make_tiny, write_byte_tokenizer, monkeypatch) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float32")
    make_tiny(tmp_path / "model", "llama")
    write_byte_tokenizer(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    file, axes = RecipeFile(tmp_path / "recipe.yaml", tmp_path), read_grid(GRID)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        runner = _LosesANode(cluster)
        assert runner.slots == 2
        found = run_sweep(file, axes, tmp_path / "cluster", runner=lambda: runner)
    finally:
        cluster.shutdown()
    assert [it.error for it in found] == [None] * 4
    run_sweep(file, axes, tmp_path / "here")
    assert not [finding for finding in verify_path(tmp_path / "cluster") if finding.bad]
    for it in found:
        for name in ("quantized/model.safetensors", "quantized/config.json", "divergence/result.json"):
            theirs, ours = (tmp_path / place / it.variant.name / name for place in ("cluster", "here"))
            assert _comparable(theirs) == _comparable(ours)


def _comparable(path: Path) -> object:
    """A file without what differs from run to run: seconds, the machine's state, and where the model lies."""
    if path.suffix != ".json":
        return path.read_bytes()
    return {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("seconds", "machine", "model")
    }
