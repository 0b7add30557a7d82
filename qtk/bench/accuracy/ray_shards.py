"""The shards of a run as tasks of a Ray cluster: one task for each shard."""

from __future__ import annotations

import functools

from qtk.bench.accuracy.shards import EndedShard, Shard, Sharding, do_shard
from qtk.bench.accuracy.source_place import SourcePlace
from qtk.cluster.ray_tasks import ClusterTask, RayTasks


class RayShards:
    """A cluster that does shards, as a `ShardRunner`. Errors as of `RayTasks`."""

    def __init__(self, address: str) -> None:
        self._tasks = RayTasks[dict[str, str]](address, "shard")
        self._shards: dict[str, Shard] = {}
        self.slots = self._tasks.slots

    def start(self, shard: Shard) -> None:
        self._shards[shard.name] = shard
        self._tasks.start(ClusterTask(shard.name, functools.partial(do_shard, shard), on_gpu=True))

    def wait(self) -> EndedShard:
        ended = self._tasks.wait()
        shard = self._shards.pop(ended.task.name)
        if ended.error is not None:
            return EndedShard(shard, error=ended.error)
        return EndedShard(shard, ended.value or {}, where=ended.where)

    def close(self) -> None:
        self._tasks.close()


def on_ray(source: SourcePlace, address: str | None) -> Sharding | None:
    """Shards on the cluster at an address; None without one."""
    return None if address is None else Sharding(source, functools.partial(RayShards, address))
