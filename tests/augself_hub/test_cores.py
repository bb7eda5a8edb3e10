"""How many cores a container leaves to this process."""

from __future__ import annotations

from augself_hub.cores import usable_cores


def test_cores_are_the_least_of_affinity_and_quotas(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    inner = tmp_path / "cgroup/outer/inner"
    inner.mkdir(parents=True)
    unlimited = usable_cores(tmp_path / "cgroup", own)
    assert unlimited >= 1
    (inner / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == unlimited
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == 1
    (inner.parent / "cpu.max").write_text("20000 100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == 1


def test_cores_in_a_container_of_the_first_version(tmp_path):
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/box\n1:memory:/box\n")
    box = tmp_path / "cgroup/cpu/box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_quota_us").write_text("-1\n")
    (box / "cpu.cfs_period_us").write_text("100000\n")
    unlimited = usable_cores(tmp_path / "cgroup", own)
    (box / "cpu.cfs_quota_us").write_text("100000\n")
    assert usable_cores(tmp_path / "cgroup", own) == 1 <= unlimited
