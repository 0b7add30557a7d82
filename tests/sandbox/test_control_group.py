"""Control groups: their logic on a made-up tree of either version, and the kernel's own cap where a group can be made."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qtk.sandbox.control_group import ControlGroup, make_control_group
from qtk.sandbox.job import MIB, JobLimits

LIMITS = JobLimits(memory_bytes=100 * MIB, disk_bytes=36 * MIB, processes=24)
MEMORY = 200 * MIB  # with the headroom


@pytest.fixture
def tree(tmp_path: Path):
    """tree({path: text}) -> a folder with those files, as the kernel's tree of control groups has them."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "cgroup"

    return make


def made(mount: Path, own: str) -> ControlGroup:
    membership = mount.parent / "membership"
    membership.write_text(f"1:name=systemd:/\n0::{own}\n")
    return make_control_group("qtk-7", LIMITS, str(mount), str(membership))


def test_version_2_bounds_a_group_below_its_own(tree):
    mount = tree({"cgroup.controllers": "cpu memory pids", "a/b/cgroup.subtree_control": "cpu memory pids"})
    group = made(mount, "/a/b")
    assert group == ControlGroup(2, (str(mount / "a/b/qtk-7"),))
    written = {path.name: path.read_text() for path in (mount / "a/b/qtk-7").iterdir() if path.name != "cgroup.procs"}
    assert written == {"memory.max": str(MEMORY), "memory.swap.max": "0", "pids.max": "36"}


def test_version_2_switches_the_controllers_on_below_its_own_group_only(tree):
    mount = tree(
        {"cgroup.controllers": "memory pids", "a/cgroup.subtree_control": "", "a/b/cgroup.subtree_control": ""}
    )
    made(mount, "/a/b")
    assert (mount / "a/b/cgroup.subtree_control").read_text() == "+memory +pids"
    assert (mount / "a/cgroup.subtree_control").read_text() == ""


def test_version_2_goes_beside_a_group_that_cannot_bound_others(tree):
    """As systemd's scopes, which have the processes themselves: there the kernel refuses to switch the controllers on."""
    mount = tree({"cgroup.controllers": "memory pids", "slice/cgroup.subtree_control": "memory pids"})
    (mount / "slice" / "scope").mkdir()
    assert made(mount, "/slice/scope").directories == (str(mount / "slice/qtk-7"),)


@pytest.mark.parametrize(
    ("files", "own"),
    [
        ({"cgroup.controllers": ""}, "/"),
        ({"cgroup.controllers": "memory", "a/cgroup.subtree_control": "memory"}, "/a/b"),
        ({"cgroup.controllers": "memory pids", "cgroup.subtree_control": "memory pids"}, "/../.."),
        ({"cgroup.controllers": "memory pids"}, "/of/the/host"),
    ],
    ids=["no controllers", "one controller", "outside this tree", "a path that is not here"],
)
def test_where_no_group_can_be_made_every_call_does_nothing(tree, files, own):
    group = made(tree(files), own)
    assert group == ControlGroup()
    group.enter()
    group.kill()
    group.remove()
    assert group.killed_for_memory() == 0


def test_version_2_is_entered_counted_and_killed_through_its_files(tree):
    mount = tree({"cgroup.controllers": "memory pids", "a/cgroup.subtree_control": "memory pids"})
    group = made(mount, "/a")
    [directory] = map(Path, group.directories)
    group.enter()
    assert (directory / "cgroup.procs").read_text() == str(os.getpid())
    (directory / "memory.events").write_text("low 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert group.killed_for_memory() == 3
    group.kill()
    assert (directory / "cgroup.kill").read_text() == "1"


def test_version_1_has_a_group_in_each_hierarchy(tree):
    mount = tree({"pids/tasks": "", "memory/tasks": "", "memory/qtk-7/memory.limit_in_bytes": "", "cpu/tasks": ""})
    group = made(mount, "/")
    assert group == ControlGroup(1, (str(mount / "pids/qtk-7"), str(mount / "memory/qtk-7")))
    assert (mount / "memory/qtk-7/memory.limit_in_bytes").read_text() == str(MEMORY)
    assert not (mount / "memory/qtk-7/memory.memsw.limit_in_bytes").exists()  # a kernel that does not count swap
    (mount / "memory/qtk-7/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert group.killed_for_memory() == 2


def grow_in(group: ControlGroup) -> int:
    """How a child of this process ends that takes memory in the group until it is stopped."""
    child = os.fork()
    if child == 0:
        try:
            group.enter()
            kept = [bytearray(b"x" * MIB) for _ in range(4096)]
            os._exit(0 if kept else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_kernel_kills_what_passes_the_groups_memory():
    group = make_control_group(f"qtk-test-{os.getpid()}", LIMITS)
    if not any("memory" in directory or group.version == 2 for directory in group.directories):
        pytest.skip("this user can make no control group with a memory limit here: neither version 1 nor a delegated 2")
    try:
        assert grow_in(group) == -9
        assert group.killed_for_memory() >= 1
    finally:
        group.remove()
    assert not any(os.path.exists(directory) for directory in group.directories)


def test_a_group_of_version_2_dies_in_one_sweep():
    group = make_control_group(f"qtk-test-{os.getpid()}", LIMITS)
    if group.version != 2:
        group.remove()
        pytest.skip("this user has no delegated control group of version 2 here")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        group.enter()
        os.write(write, b"x")
        while True:
            signal.pause()
    os.read(read, 1)
    group.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    group.remove()
    for fd in (read, write):
        os.close(fd)
