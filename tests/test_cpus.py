import os
from pathlib import Path

import pytest

from cocolm_tf import cpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 16 CPUs and its control groups; returns their folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(cpus, "_CGROUPS", str(tmp_path))
    monkeypatch.setattr(cpus, "_OWN_CGROUPS", str(tmp_path / "cgroup"))
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cgroup": "0::/\n", "cpu.max": "400000 100000\n"}, 4),
        ({"cgroup": "0::/\n", "cpu.max": "max 100000\n"}, 16),
        ({"cgroup": "0::/a/b\n", "a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 1\n"}, 2),
        ({"cgroup": "0::/of/the/host\n", "cpu.max": "5000 100000\n"}, 1),
        (
            {
                "cgroup": "9:name=systemd:/\n4:cpu,cpuacct:/a\n0::/\n",
                "cpu/a/cpu.cfs_quota_us": "300000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"cgroup": "0::/\n", "cpu.max": "9900000 100000\n"}, 16),
    ],
)
def test_the_containers_quota_counts(machine: Path, files: dict[str, str], expected: int):
    write(machine, files)
    assert cpus.available_cpus() == expected


def test_where_there_is_no_affinity_the_machine_counts(machine: Path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cpus.available_cpus() == 3
