"""The gateways that are compared: gpud as a whole, and another one, each in a process of its own with equal models."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from bench.gateway.ends import until_answered
from bench.manager import Bus, Managed, workplace
from bench.relay import free_port

STOP_S = 0.1
"""How long the engines that take time take to stop."""


@dataclass(frozen=True)
class Attached:
    """A model whose engine runs already."""

    port: int


@dataclass(frozen=True)
class Started:
    """A model whose engine is started for it: only one of them fits at a time."""

    program: Path
    log: Path
    load_s: float

    def command(self, port: str) -> list[str]:
        return [str(self.program), port, str(self.log), str(self.load_s), str(STOP_S)]


Models = dict[str, Attached | Started]


class Arm(Protocol):
    name: str
    port: int

    pid: int

    def close(self) -> None: ...


@dataclass(frozen=True)
class Used:
    """What a process has used so far, and holds. ``peak_mib`` since :func:`forget_peak`."""

    cpu_s: float
    resident_mib: float
    peak_mib: float


def used(pid: int) -> Used:
    """Time on a processor to the nanosecond, of all threads."""
    cpu_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        cpu_ns += int((task / "schedstat").read_text().split()[0])
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, peak = (int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return Used(cpu_ns / 1e9, resident, peak)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Gpud:
    """The daemon with its bus, its front door and its scheduler."""

    name = "gpud"

    def __init__(self, bus: Bus, models: Models) -> None:
        self.port = free_port()
        configured = {name: self._model(model) for name, model in models.items()}
        config = {
            "models": configured,
            "gpu": {"budget": "100MiB", "host_budget": "100MiB"},
            "http": {"front": {"port": self.port}, "management": {"enable": False}, "ollama": {"enable": False}},
        }
        self._managed = Managed(bus, workplace(), json.dumps(config))
        self._managed.start()
        self.pid = self._managed.pid

    @staticmethod
    def _model(model: Attached | Started) -> dict[str, object]:
        if isinstance(model, Attached):
            return {"engine": "custom", "url": f"http://127.0.0.1:{model.port}", "health": "/health", "size": 0}
        return {"engine": "custom", "command": model.command("${port}"), "health": "/health", "size": "60MiB"}

    def close(self) -> None:
        self._managed.__exit__()


class Peer:
    """llama-swap, set to the least that it can cost: no captures, no statistics, no limit of parallel requests."""

    name = "llama-swap"

    def __init__(self, program: Path, models: Models) -> None:
        self.port = free_port()
        self._root = workplace()
        config = {
            "healthCheckTimeout": 60,
            "logLevel": "warn",
            "captureBuffer": 0,
            "performance": {"disabled": True},
            "models": {name: self._model(model) for name, model in models.items()},
        }
        path = self._root / "config.yaml"
        path.write_text(json.dumps(config))
        self._process = subprocess.Popen(
            [program, "-config", str(path), "-listen", f"127.0.0.1:{self.port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._root,
        )
        self.pid = self._process.pid
        until_answered(self.port, "/v1/models", self._process)

    @staticmethod
    def _model(model: Attached | Started) -> dict[str, object]:
        common = {"ttl": 0, "concurrencyLimit": 1000, "checkEndpoint": "/health"}
        if isinstance(model, Attached):
            # It insists on a process of its own for each model.
            return {**common, "cmd": "sleep 1000000", "proxy": f"http://127.0.0.1:{model.port}"}
        return {**common, "cmd": " ".join(model.command("${PORT}")), "proxy": "http://127.0.0.1:${PORT}"}

    def close(self) -> None:
        children = psutil.Process(self.pid).children(recursive=True)
        self._process.terminate()
        self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        subprocess.run(["rm", "-r", str(self._root)], check=True)
