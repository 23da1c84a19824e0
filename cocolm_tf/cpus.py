"""The number of CPUs available to this process, which may be fewer than the machine has."""

import math
import os
from pathlib import Path  # noqa: TID251 The kernel's files, no user's.

_CGROUPS = "/sys/fs/cgroup"
_OWN_CGROUPS = "/proc/self/cgroup"


def available_cpus() -> int:
    """Counts the CPUs that affinity and container quota allow, at least 1; 1.5 count as 2."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [_quota(folder) for folder in _cgroups()]
    return max(1, min([cpus, *(math.ceil(quota) for quota in quotas if quota)]))


def _cgroups() -> list[Path]:
    """The folders of the control groups that this process is in, the outer ones included."""
    try:
        lines = Path(_OWN_CGROUPS).read_text().splitlines()
    except OSError:  # No Linux, which has no such quotas.
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # Version 2, where one hierarchy has all controllers.
            root = Path(_CGROUPS)
        elif "cpu" in controllers.split(","):
            root = Path(_CGROUPS, "cpu")
        else:
            continue
        # Inside a container the path may be the host's, and its own group is at the root.
        group = root / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return folders


def _quota(folder: Path) -> float:
    """The CPUs that a control group may use at most; 0 for no limit."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
    except OSError:
        return 0
    return 0 if limit == "max" or int(limit) < 0 else int(limit) / int(period)
