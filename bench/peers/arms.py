"""What is compared: the engine by itself, gpud, and the managers that people use in its place.

Each has the same two models under the same names, of which it may load one at a time, with the same context and as
many answers at a time. Each is started as its own documentation says, for one person, on loopback.
"""

import contextlib
import ctypes
import json
import os
import queue
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.manager import BOUND_S, Bus, Managed
from bench.peers.client import Broken, post, until_answered
from bench.relay import free_port

NAMES = ("one", "two")
CONTEXT, PARALLEL, THREADS = 16384, 4, 1
FLAGS = (
    "-c",
    str(CONTEXT),
    "-np",
    str(PARALLEL),
    "-t",
    str(THREADS),
    "--fit",
    "off",
    "--device",
    "none",
    "--no-ui",
    "--offline",
)
"""The same engine for everybody, on the processor alone; gpud and Ollama have their own way to say so."""

GONE_S = 20.0
"""How long what is unloaded or ended may take to be gone."""

PR_SET_CHILD_SUBREAPER = 36


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until_gone(processes: Sequence[psutil.Process], bound_s: float = GONE_S) -> bool:
    deadline = time.monotonic() + bound_s
    while any(map(is_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def adopt_orphans() -> None:
    """Whoever loses its parent becomes a child of this process, which can then see to it that nothing is left."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(processes: Sequence[psutil.Process]) -> None:
    """Those of them that were orphaned to this process."""
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)


def serves_a_model(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        command = process.cmdline()
        return "llama-server" in Path((command or [""])[0]).name and any(word in ("-m", "--model") for word in command)
    return False


class Arm:
    """One manager. ``name`` is what the table calls it."""

    name = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.strays: list[psutil.Process] = []

    def start(self) -> None:
        raise NotImplementedError

    def unload(self, model: str) -> None:
        raise NotImplementedError

    def crash(self) -> None:
        """kill -9 of the manager, and of nothing else."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def engines(self) -> list[psutil.Process]:
        """The processes that serve a model now."""
        return [child for child in psutil.Process(self.pid).children(recursive=True) if serves_a_model(child)]

    def unloaded(self, model: str) -> None:
        """Unload it, and wait until its process is gone."""
        there = self.engines()
        if not there:
            return
        self.unload(model)
        if not until_gone(there):
            raise Broken(f'{self.name} has not ended the engine of "{model}" {GONE_S:g} s after it was told to')

    def close(self) -> None:
        left = list(self.strays)
        if self.process is not None and self.process.poll() is None:
            left += psutil.Process(self.pid).children(recursive=True)
            self.process.terminate()
            try:
                self.process.wait(GONE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        until_gone(left, 2.0)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        reap(left)

    def _started(self, command: Sequence[object], path: str, log: Path, **environment: str) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env={"PATH": os.environ["PATH"], "HOME": str(log.parent), "LANG": "C.UTF-8", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
            )
        until_answered(self.port, path)


class Direct(Arm):
    """The engine by itself, started and ended by the one who asks. The zero of all that is added."""

    name = "llama-server alone"

    def __init__(self, server: Path, root: Path) -> None:
        super().__init__()
        self._server, self._root = server, root
        self._model = ""

    def start(self) -> None:
        self.load(NAMES[0])

    def load(self, model: str) -> None:
        if self.process is not None and self.process.poll() is None:
            if model == self._model:
                return
            self.unload(self._model)
        self._model = model
        file = self._root / "models" / f"{model}.gguf"
        command = [self._server, "-m", file, "-a", model, "--host", "127.0.0.1", "--port", self.port, *FLAGS]
        log = self._root / "direct.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until_answered(self.port, "/health", every_s=0.001)

    def engines(self) -> list[psutil.Process]:
        return [psutil.Process(self.pid)] if self.process is not None and self.process.poll() is None else []

    def unload(self, model: str) -> None:
        assert self.process is not None and model == self._model
        self.process.terminate()
        self.process.wait(GONE_S)


class Gpud(Arm):
    """The daemon with its bus and its front door, started as a service manager starts it."""

    name = "gpud"

    def __init__(self, bus: Bus, server: Path, root: Path) -> None:
        super().__init__()
        folder = root / "gpud"
        folder.mkdir()
        engine = {"engine": "llama_server", "context": CONTEXT, "parallel": PARALLEL, "threads": THREADS}
        files = {name: str(root / "models" / f"{name}.gguf") for name in NAMES}
        config = {
            # Whichever devices there are, only one of them fits at a time.
            "models": {name: {**engine, "file": file, "gpu": "host", "size": "300MiB"} for name, file in files.items()},
            "engines": {"llama_server": {"binary": str(server)}},
            "gpu": {"host_budget": "500MiB", "host_reserve": "0MiB"},
            "http": {"front": {"port": self.port}, "management": {"enable": False}, "ollama": {"enable": False}},
        }
        self._managed = Managed(bus, folder, json.dumps(config))

    def start(self) -> None:
        try:
            self._managed.start()
        except queue.Empty:
            said = (self._managed.root / "log").read_text()[-500:]
            raise Broken(f"gpud was not ready {BOUND_S:g} s after its start; the last it said: {said}") from None
        finally:
            self.process = self._managed.process

    def unload(self, model: str) -> None:
        status, said = post(self.port, "/models/unload", {"model": model})
        if status != 200:
            raise Broken(f"gpud unloads nothing: status {status}: {said[:300]!r}")

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self._managed.stop()
        super().close()


class LlamaSwap(Arm):
    """llama-swap without its captures and statistics, which cost it more."""

    name = "llama-swap"

    def __init__(self, program: Path, server: Path, root: Path) -> None:
        super().__init__()
        self._program, self._folder = program, root / "llama-swap"
        self._folder.mkdir()
        models = {}
        for name in NAMES:
            command = [server, "-m", root / "models" / f"{name}.gguf", "-a", name, "--host", "127.0.0.1", *FLAGS]
            models[name] = {
                "cmd": " ".join([*map(str, command), "--port ${PORT}"]),
                "proxy": "http://127.0.0.1:${PORT}",
                "ttl": 0,
                "concurrencyLimit": 1000,
            }
        quiet = {"logLevel": "warn", "captureBuffer": 0, "performance": {"disabled": True}}
        config = {"healthCheckTimeout": 60, "startPort": free_port(), **quiet, "models": models}
        (self._folder / "config.yaml").write_text(json.dumps(config))

    def start(self) -> None:
        command = [self._program, "-config", self._folder / "config.yaml", "-listen", f"127.0.0.1:{self.port}"]
        self._started(command, "/v1/models", self._folder / "log")

    def unload(self, model: str) -> None:
        status, said = post(self.port, f"/api/models/unload/{model}", {})
        if status != 200:
            raise Broken(f"llama-swap unloads nothing: status {status}: {said[:300]!r}")


class Ollama(Arm):
    """The real Ollama, with a store of its own into which both models were put."""

    name = "Ollama"

    def __init__(self, program: Path, root: Path) -> None:
        super().__init__()
        self._program, self._root, self._folder = program, root, root / "ollama"
        (self._folder / "models").mkdir(parents=True)
        self._environment = {
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self._folder / "models"),
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_NUM_PARALLEL": str(PARALLEL),
            "OLLAMA_CONTEXT_LENGTH": str(CONTEXT // PARALLEL),
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_NO_CLOUD": "1",
        }

    def start(self) -> None:
        self._started([self._program, "serve"], "/api/version", self._folder / "log", **self._environment)
        if not (self._folder / "Modelfile").exists():
            for name in NAMES:
                self._create(name)

    def _create(self, name: str) -> None:
        recipe = self._folder / "Modelfile"
        recipe.write_text(
            f"FROM {self._root / 'models' / f'{name}.gguf'}\nPARAMETER num_thread {THREADS}\nPARAMETER num_gpu 0\n"
        )
        done = subprocess.run(
            [self._program, "create", name, "-f", recipe],
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), **self._environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GONE_S * 3,
            check=False,
        )
        if done.returncode:
            raise Broken(f'Ollama does not take the model "{name}": {done.stderr[-300:]}')

    def unload(self, model: str) -> None:
        status, said = post(self.port, "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        if status != 200:
            raise Broken(f"Ollama unloads nothing: status {status}: {said[:300]!r}")


class Router(Arm):
    """llama-server without a model: its own router, which starts one llama-server for each."""

    name = "llama-server's router"

    def __init__(self, server: Path, root: Path) -> None:
        super().__init__()
        self._server, self._root, self._folder = server, root, root / "router"
        self._folder.mkdir()

    @staticmethod
    def is_in(server: Path) -> bool:
        """Whether this build has it."""
        done = subprocess.run([server, "--help"], capture_output=True, text=True, timeout=GONE_S, check=False)
        return "--models-dir" in done.stdout and "--models-max" in done.stdout

    def start(self) -> None:
        where = ["--host", "127.0.0.1", "--port", self.port]
        what = ["--models-dir", self._root / "models", "--models-max", 1]
        self._started([self._server, *where, *what, *FLAGS], "/health", self._folder / "log")

    def unload(self, model: str) -> None:
        status, said = post(self.port, "/models/unload", {"model": model})
        if status != 200:
            raise Broken(f"the router unloads nothing: status {status}: {said[:300]!r}")


def version(program: Path) -> str:
    """What a program says of itself, without words that are the same in all versions."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=GONE_S, check=False)
    for line in (done.stdout + done.stderr).splitlines():
        found = re.search(r"version:? (?:is )?(.*?)(?:, built .*)?$", line)
        if found:
            return found[1]
    return "unknown"
