"""The machine's own memory: the budget of a machine without a GPU and of models kept off it. Never touches a GPU."""

import os
from functools import cached_property
from pathlib import Path

from gpud.core.facts import HOST, GpuProcess, GpuSample
from gpud.core.record import Record
from gpud.gpus.sysfs import process_name, read_int, read_text


class Memory(Record):
    """``free_bytes`` is what a new process could take, caches included."""

    total_bytes: int | None
    free_bytes: int | None


def _table(path: Path) -> dict[str, int]:
    """``Name: 12 kB`` or ``name 12`` lines as a mapping; kB become bytes."""
    figures: dict[str, int] = {}
    for line in (read_text(path) or "").splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isascii() and words[1].isdigit():
            figures[words[0]] = int(words[1]) * (1024 if words[2:] == ["kB"] else 1)
    return figures


def machine_memory(root: Path) -> Memory:
    """What /proc/meminfo says, no matter what this process may use of it."""
    figures = _table(root / "proc/meminfo")
    return Memory(figures.get("MemTotal"), figures.get("MemAvailable"))


def _least(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


class HostProbe:
    """Memory of the host within the limits of our own cgroup (v2), and what the processes that we answer for hold."""

    source = "the kernel's account of host memory"
    problems: tuple[str, ...] = ()

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def look(self, own: frozenset[int], wake: bool) -> tuple[GpuSample, ...]:  # noqa: ARG002 — memory never sleeps
        held = [(pid, self._held_bytes(pid)) for pid in sorted(own)]
        processes = (GpuProcess(pid, process_name(self._root, pid), size) for pid, size in held if size is not None)
        return (self._sample(tuple(processes), ""),)

    def recall(self, health: str) -> tuple[GpuSample, ...]:
        """Without the processes: those are what can make a look at the host hang; the totals never do."""
        return (self._sample((), health),)

    def holding(self) -> bool:
        return False

    def release(self) -> None:
        """Nothing is held between two looks."""

    def memory(self) -> Memory:
        memory = machine_memory(self._root)
        for directory in self._cgroups():
            limit_bytes, current_bytes = read_int(directory / "memory.max"), read_int(directory / "memory.current")
            if limit_bytes is None or current_bytes is None:
                continue
            # Page cache and slabs that the kernel can drop count as available, as they do in MemAvailable.
            figures = _table(directory / "memory.stat")
            droppable = sum(figures.get(key, 0) for key in ("inactive_file", "active_file", "slab_reclaimable"))
            free_bytes = min(limit_bytes, max(0, limit_bytes - current_bytes + droppable))
            memory = Memory(_least(memory.total_bytes, limit_bytes), _least(memory.free_bytes, free_bytes))
        return memory

    def _sample(self, processes: tuple[GpuProcess, ...], health: str) -> GpuSample:
        memory = self.memory()
        total_bytes, free_bytes = memory.total_bytes, memory.free_bytes
        used_bytes = None
        if total_bytes is not None and free_bytes is not None:
            free_bytes = min(free_bytes, total_bytes)
            used_bytes = total_bytes - free_bytes
        elif not health:
            health = "the kernel does not tell the machine's memory; is /proc mounted and readable for gpud?"
        return GpuSample(
            uuid=HOST,
            name=self._name,
            index=0,
            vendor=HOST,
            total_bytes=total_bytes,
            used_bytes=used_bytes,
            free_bytes=free_bytes,
            processes=processes,
            health=health,
        )

    @cached_property
    def _name(self) -> str:
        for line in (read_text(self._root / "proc/cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return f"{' '.join(value.split())} host memory"
        return "host memory"

    def _held_bytes(self, pid: int) -> int | None:
        """The process's proportional share of memory; its resident size where the share may not be read.

        The share counts a page that several processes map once in all: the weights of a model that two engines map.
        """
        directory = self._root / "proc" / str(pid)
        share_bytes = _table(directory / "smaps_rollup").get("Pss")
        if share_bytes is not None:
            return share_bytes
        fields = (read_text(directory / "statm") or "").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None

    def _cgroups(self) -> list[Path]:
        """Our own cgroup and all above it: the narrowest limit holds. Empty without a unified hierarchy."""
        for line in (read_text(self._root / "proc/self/cgroup") or "").splitlines():
            if line.startswith("0::/"):
                relative = Path(line.removeprefix("0::/"))
                top = self._root / "sys/fs/cgroup"
                return [top / part for part in (relative, *relative.parents)]
        return []
