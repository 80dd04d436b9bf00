"""Control groups of both versions, on a folder tree in place of the kernel's."""

from __future__ import annotations

from pathlib import Path

from node_agent.execution.cgroups import GroupLimits, find_groups

_LIMITS = GroupLimits(memory_bytes=1 << 30, pids=20, cpus=1.5)


def test_groups_of_version_1_stand_below_the_workers_own_in_each_hierarchy(tmp_path: Path) -> None:
    for folder in ("memory/outer/inner", "pids", "cpu"):
        (tmp_path / folder).mkdir(parents=True)
    groups = find_groups("4:memory:/outer/inner\n8:pids:/\n1:cpu,cpuacct:/\n0::/\n", tmp_path)
    assert groups is not None
    group = groups.group("node", "run-1")
    group.create(_LIMITS)
    memory = tmp_path / "memory/outer/inner/hansa/node/run-1"
    assert (memory / "memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(1 << 30)
    assert (tmp_path / "pids/hansa/node/run-1/pids.max").read_text() == "20"
    assert (tmp_path / "cpu/hansa/node/run-1/cpu.cfs_quota_us").read_text() == "150000"
    group.attach(77)
    assert group.processes() == [77]
    assert [found.folders for found in groups.left_over("node", "run-")] == [group.folders]
    assert groups.left_over("node", "other-") == []


def test_groups_of_version_2_get_their_controllers_handed_down(tmp_path: Path) -> None:
    own = tmp_path / "system.slice" / "hansa.service"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (own / "cgroup.procs").write_text("12\n")
    groups = find_groups("0::/system.slice/hansa.service\n", tmp_path)
    assert groups is not None
    groups.open_for("node")
    assert (own / "hansa-worker" / "cgroup.procs").read_text() == "12"
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = groups.group("node", "run-1")
    group.create(_LIMITS)
    folder = own / "hansa" / "node" / "run-1"
    assert (folder / "memory.max").read_text() == str(1 << 30)
    assert (folder / "pids.max").read_text() == "20"
    assert (folder / "cpu.max").read_text() == "150000 100000"


def test_a_worker_that_moved_into_its_leaf_finds_the_same_groups(tmp_path: Path) -> None:
    own = tmp_path / "hansa.service" / "hansa-worker"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    groups = find_groups("0::/hansa.service/hansa-worker\n", tmp_path)
    assert groups is not None
    assert groups.folders["memory"] == own.parent


def test_only_old_empty_groups_are_swept_away(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / controller).mkdir()
    groups = find_groups("4:memory:/\n8:pids:/\n1:cpu:/\n", tmp_path)
    assert groups is not None
    groups.open_for("node")
    left = groups.group("node", "run-1")
    for folder in left.folders.values():
        folder.mkdir()
    born = left.folders["pids"].stat().st_mtime
    groups.sweep("node", born - 1)
    assert len(groups.left_over("node", "")) == 1
    groups.sweep("node", born + 1)
    assert not list(tmp_path.glob("*/hansa/node"))


def test_without_the_controllers_there_are_no_groups(tmp_path: Path) -> None:
    assert find_groups("0::/\n", tmp_path) is None
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    assert find_groups("0::/\n", tmp_path) is None


def test_processes_killed_for_memory_are_counted_in_both_versions(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / controller).mkdir()
    groups = find_groups("4:memory:/\n8:pids:/\n1:cpu:/\n", tmp_path)
    assert groups is not None
    group = groups.group("node", "run-1")
    assert group.memory_kills() == 0
    group.create(_LIMITS)
    control = group.folders["memory"] / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert group.memory_kills() == 3


def test_who_was_put_into_one_hierarchy_only_is_in_the_group(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / controller).mkdir()
    groups = find_groups("4:memory:/\n8:pids:/\n1:cpu:/\n", tmp_path)
    assert groups is not None
    group = groups.group("node", "run-1")
    group.create(_LIMITS)
    (group.folders["memory"] / "cgroup.procs").write_text("41\n")
    (group.folders["pids"] / "cgroup.procs").write_text("42\n")
    assert group.processes() == [41, 42]
