"""A place in which an Ollama backend runs: a store, a launcher, and what the backend is told and tells."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from gpud.backends.call import Answer, Unreachable, request
from gpud.backends.ollama import Ollama
from gpud.backends.ollama_processes import read_runner
from gpud.backends.options import EngineOptions
from gpud.core.facts import Endpoint, EngineSettings, Model, StopTimes
from gpud.core.ports import LoadOrder, Progress, RunnerRecord, Stream
from gpud.processes.launcher import ProcessLauncher

FAKE = Path(__file__).with_name("fake_ollama.py")

QUICK = StopTimes(drain_s=0.2, term_s=0.1, second_term_s=0.1)
PATIENT = StopTimes(drain_s=300.0, term_s=0.2, second_term_s=0.1)

LOOK_S = 0.01
"""Between looks at something that announces itself to nobody, such as another program's process."""


class NoFdStore:
    """Descriptors that outlive nothing, as outside systemd. A test of adoption keeps the children by other means."""

    lasting = False

    def put(self, name: str, fd: int) -> None: ...

    def drop(self, name: str) -> None: ...

    def take(self, name: str) -> int | None:
        return None


class Lines:
    """An OutputSink that keeps everything."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def line(self, *, model: str, engine: str, stream: Stream, pid: int, text: str) -> None:
        self.texts.append(text)


class Place:
    """``switches`` are those of fake_ollama.py, without their prefix and in lower case."""

    def __init__(self, folder: Path, binary: Path = FAKE) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir(exist_ok=True)
        self.binary = binary
        self.requests_file = folder / "requests"
        self.records: list[RunnerRecord] = []
        self.stages: list[str] = []
        self.units = 0
        self.lines = Lines()
        self.backends: list[Ollama] = []

    def launcher(self) -> ProcessLauncher:
        runtime = self.folder / "run"
        runtime.mkdir(exist_ok=True)
        return ProcessLauncher(runtime_dir=runtime, fd_store=NoFdStore(), sink=self.lines, cgroup=None)

    def options(self, environment: Mapping[str, str] | None = None, **switches: object) -> EngineOptions:
        fake = {f"FAKE_OLLAMA_{name.upper()}": str(value) for name, value in switches.items()}
        fake["FAKE_OLLAMA_RECORD"] = str(self.requests_file)
        return EngineOptions(
            binary=str(self.binary),
            models_dir=str(self.store),
            environment=tuple((fake | dict(environment or {})).items()),
        )

    def backend(
        self,
        options: EngineOptions | None = None,
        *,
        linger_s: float = 0.0,
        reload_grace_s: float = 0.3,
        unseen_look_s: float = 30.0,
    ) -> Ollama:
        made = Ollama(
            options or self.options(),
            self.launcher(),
            linger_s=linger_s,
            reload_grace_s=reload_grace_s,
            unseen_look_s=unseen_look_s,
        )
        self.backends.append(made)
        return made

    def order(self, model: Model, *, devices: tuple[str, ...] = (), vendor: str = "") -> LoadOrder:
        self.units += 1
        return LoadOrder(model, f"{model.name}-{self.units}", devices, vendor, self._report, self.records.append)

    def _report(self, progress: Progress) -> None:
        self.stages.append(progress.stage)

    async def close(self) -> None:
        for backend in self.backends:
            await backend.close()

    # What the server was asked ---------------------------------------------------------------------------------------

    def requests(self) -> list[dict[str, object]]:
        if not self.requests_file.exists():
            return []
        return [json.loads(line) for line in self.requests_file.read_text().splitlines()]

    def posts(self, path: str) -> list[dict[str, object]]:
        return [entry["body"] for entry in self.requests() if entry["path"] == path and entry["body"] is not None]


def model(name: str, *, ollama_name: str = "", load_timeout_s: float = 60.0, **settings: object) -> Model:
    return Model(
        name,
        "ollama",
        EngineSettings(ollama_name=ollama_name, **settings),
        load_timeout_s=load_timeout_s,
    )


async def until(holds: Callable[[], object], what: str, bound_s: float = 50.0) -> None:
    """Wait for something that announces itself to nobody."""
    try:
        async with asyncio.timeout(bound_s):
            while not holds():
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {bound_s:g} s") from None


def alive(pid: int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def runner_port(pid: int) -> int:
    runner = read_runner(pid)
    assert runner is not None
    return runner.port


async def generate(endpoint: Endpoint, name: str, **more: object) -> Answer:
    """A client's request that works until it is released."""
    body = {"model": name, "prompt": "x", "stream": False, **more}
    return await request(endpoint, "POST", "/api/generate", body=body, timeout_s=60)


async def release(pid: int) -> None:
    """Let everything end that the fake runner works on; it may be killed for that before it has answered."""
    with suppress(Unreachable):
        await request(Endpoint(host="127.0.0.1", port=runner_port(pid)), "POST", "/release", timeout_s=5)
