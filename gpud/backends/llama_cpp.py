"""llama-cpp-python's server as an engine: ``python -m llama_cpp.server`` in a child, one model a process.

It answers one request at a time behind one lock and has no health route, no gauges and no Unix socket: its runner is
``serial``, and whether it works is told by how fast it answers. The package is never imported here.
"""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from gpud.backends import asking, call, devices, failures, files, runner
from gpud.backends.llama_flags import DEFAULT_CONTEXT
from gpud.backends.llama_output import Listener
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import HOST, Endpoint, Model
from gpud.core.plan import ALL_LAYERS, Plan
from gpud.core.ports import Child, Command, Launcher, LoadOrder, Runner, RunnerRecord
from gpud.core.quote import Estimate
from gpud.core.record import replace

PROBE_S = 1.0
"""An idle server answers within milliseconds; one that works does not answer before it is done."""

IMPORT_S = 60.0
"""The package's import takes half a second from a warm disk, and has been seen to take many on a cold one."""

ADOPT_S = 2.0

DEFAULT_BATCH = 2048
"""The package's own default of 512 makes long prompts several times slower."""

MOST_SEQUENCES = 256
"""llama.cpp's own limit."""

PACKAGE = "llama-cpp-python[server]"

GGML_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
"""llama.cpp's numbers for what a KV cache may be made of: the server takes numbers only."""


class LlamaCpp:
    """The backend."""

    name = "llama_cpp"

    def __init__(self, options: EngineOptions, launcher: Launcher) -> None:
        self._options = options
        self._launcher = launcher
        self._python = options.python or sys.executable
        self._builds: dict[str, str] = {}
        self._importable = False

    def check(self, model: Model) -> None:
        self._follow(model)
        if self._options.python:
            if not Path(self._options.python).is_file():
                raise self._missing(model, f"there is no interpreter {self._options.python}")
        elif not any(name == "PYTHONPATH" for name, _ in self._options.environment) and find_spec("llama_cpp") is None:
            raise self._missing(model, f"the Python package llama_cpp is not installed for {self._python}")
        files.check(self._located(model))

    def file_bytes(self, model: Model) -> int | None:
        return files.bytes_of(self._located(model))

    def fingerprint(self, model: Model) -> str:
        return files.fingerprint(self.name, self._options, self._located(model))

    def plan(self, model: Model, gpus: int) -> Plan | None:
        model = self._located(model)
        flags = self.flags(model, 0, on_gpu=gpus > 0)
        words = [word for flag in flags for word in (flag.split("=", 1) if flag.startswith("--") else [flag])]
        given = dict(pairwise(words))
        try:
            return _plan(model, given, gpus)
        except ValueError as problem:
            raise BackendFailed(
                f'cannot load "{model.name}": extra_flags has a value that cannot be read: {problem}',
                hint=f'correct extra_flags of "{model.name}"',
                kind="bad-flag",
                preflight=True,
            ) from None

    def build(self) -> str:
        mark = self._package_mark()
        known = self._builds.get(mark)
        if known is not None:
            return known
        ask = "import importlib.metadata as m; print('version', m.version('llama-cpp-python'))"
        try:
            said = asking.ask_program_now((self._python, "-P", "-c", ask), dict(self._options.environment), IMPORT_S)
        except (OSError, TimeoutError):
            return ""
        version = next((line for line in said.text.splitlines() if line.startswith("version ")), "")
        if said.code != 0 or not version:
            return ""
        self._builds = {mark: f"{self.name} {version} {mark}"}
        return self._builds[mark]

    def _package_mark(self) -> str:
        """Changes when the package is installed anew, as far as it lies where the interpreter's packages lie."""
        paths = [
            entry for name, value in self._options.environment if name == "PYTHONPATH" for entry in value.split(":")
        ]
        places = [Path(path) for path in paths]
        places += Path(self._python).parent.parent.glob("lib*/python3*/site-packages")
        for place in places:
            with suppress(OSError):
                return str((place / "llama_cpp" / "__init__.py").stat().st_mtime_ns)
        return ""

    async def probe(
        self,
        model: Model,  # noqa: ARG002 - it has no dry run
        devices: tuple[str, ...],  # noqa: ARG002
        vendor: str,  # noqa: ARG002
        split: tuple[float, ...],  # noqa: ARG002
    ) -> Estimate | None:
        return None

    async def load(self, order: LoadOrder) -> Runner:
        await self._see_that_it_imports(order.model)
        model, fingerprint = await asyncio.to_thread(files.prepared, self.name, self._options, order.model)
        placed = replace(order, model=model)
        return await runner.on_another_port(lambda: self._start(placed, fingerprint))

    async def _start(self, order: LoadOrder, fingerprint: str) -> Runner:
        model = order.model
        endpoint = Endpoint(host="127.0.0.1", port=runner.free_port(), key=runner.new_key())
        gpus = tuple(device for device in order.devices if device != HOST)
        command = Command(
            unit=order.unit,
            model=model.name,
            engine=self.name,
            argv=(self._python, "-P", "-m", "llama_cpp.server", *self.flags(model, endpoint.port, on_gpu=bool(gpus))),
            environment={
                **dict(self._options.environment),
                **dict(model.settings.environment),
                **devices.visible(gpus, order.vendor),
                # These two win over the flags, and generic names are set in many environments.
                "HOST": endpoint.host,
                "PORT": str(endpoint.port),
                "API_KEY": endpoint.key,
                "GGML_NO_BACKTRACE": "1",
            },
        )
        listener = Listener()
        child = await runner.spawn(self._launcher, command, listener.line)
        async with runner.ended_unless_ready(child, endpoint, model.stop):
            order.record(
                RunnerRecord(
                    unit=order.unit,
                    model=model.name,
                    engine=self.name,
                    fingerprint=fingerprint,
                    endpoint=endpoint,
                    devices=order.devices,
                    child=child.record,
                )
            )
            await runner.until_ready(
                child,
                model,
                "llama_cpp.server",
                lambda: runner.answers_to_its_key(model, endpoint, "/v1/models", PROBE_S),
            )
        return _runner(child, endpoint)

    async def adopt(self, record: RunnerRecord, model: Model) -> Runner | None:  # noqa: ARG002 - the record says it all
        if record.child is None:
            return None
        child = self._launcher.adopt(record.child, Listener().line)
        if child is None:
            return None
        try:
            # A route that does not exist is answered without the lock, also while the server works.
            await call.request(record.endpoint, "GET", "/health", timeout_s=ADOPT_S)
        except call.Unreachable:
            return None
        return _runner(child, record.endpoint)

    async def close(self) -> None:
        """Nothing is shared between models."""

    def flags(self, model: Model, port: int, *, on_gpu: bool) -> tuple[str, ...]:
        """The server's command line; its key comes by environment. Raises BackendFailed for what it cannot do."""
        self._follow(model)
        settings = model.settings
        layers = settings.layers or "auto"
        values: dict[str, object] = {
            "model": settings.file,
            "model_alias": model.name,
            "host": "127.0.0.1",
            "port": port,
            "n_ctx": settings.context or DEFAULT_CONTEXT,
            "n_gpu_layers": 0 if not on_gpu else -1 if layers in ("auto", "all") else layers,
            "n_batch": settings.batch or DEFAULT_BATCH,
            "n_ubatch": settings.micro_batch,
            "n_threads": settings.threads,
            "type_k": GGML_TYPES[settings.cache_type_k] if settings.cache_type_k else None,
            "type_v": GGML_TYPES[settings.cache_type_v] if settings.cache_type_v else None,
            "flash_attn": {"on": "true", "off": "false"}.get(settings.flash_attention or ""),
            "clip_model_path": settings.mmproj,
            "chat_format": settings.chat_template,
            "embedding": "true" if settings.embeddings else None,
            # The default keeps the logits of every token of a prompt: slow, and gigabytes for nothing.
            "logits_all": "false",
            # The default lets a second request cut the answer of the first.
            "interrupt_requests": "false",
        }
        given = [(name, str(value)) for name, value in values.items() if value not in (None, "")]
        return (*(part for name, value in given for part in (f"--{name}", value)), *settings.extra_flags)

    def _follow(self, model: Model) -> None:
        """Raises BackendFailed(preflight) for settings that this server has no means to follow."""
        settings = model.settings
        impossible = {
            "n_cpu_moe": settings.cpu_moe is not None,
            "override_tensor": bool(settings.override_tensor),
            "parallel": (settings.parallel or 1) > 1,
            "draft_file": bool(settings.draft_file),
            "reranking": settings.reranking,
            f'cache_type_k "{settings.cache_type_k}"': (settings.cache_type_k or "f16") not in GGML_TYPES,
            f'cache_type_v "{settings.cache_type_v}"': (settings.cache_type_v or "f16") not in GGML_TYPES,
        }
        asked = [name for name, is_asked in impossible.items() if is_asked]
        owned = [flag for flag in settings.extra_flags if flag.partition("=")[0] in _OWNED]
        if asked:
            raise BackendFailed(
                f'cannot load "{model.name}": llama-cpp-python\'s server cannot do {", ".join(asked)}',
                hint='use engine "llama_server" or "embedded", or take it out of the configuration',
                kind="bad-flag",
                preflight=True,
            )
        if owned:
            raise BackendFailed(
                f'cannot load "{model.name}": extra_flags sets {owned[0]}, which gpud sets itself',
                hint="take it out of extra_flags",
                kind="bad-flag",
                preflight=True,
            )

    async def _see_that_it_imports(self, model: Model) -> None:
        """Once: a missing package is told as what it is, and before a start is counted as a failure."""
        if self._importable:
            return
        environment = dict(self._options.environment)
        try:
            said = await asking.ask_program(
                (self._python, "-P", "-c", "import llama_cpp.server.app"), environment, IMPORT_S
            )
        except TimeoutError:
            raise self._missing(model, f"{self._python} did not import llama_cpp within {IMPORT_S:g} s") from None
        except OSError as problem:
            raise self._missing(model, f"{self._python} cannot be started: {problem.strerror}") from None
        if said.code != 0:
            why = failures.last_line(said.text.splitlines()) or f"status {said.code}"
            raise self._missing(model, f"{self._python} cannot import llama_cpp.server: {why}")
        self._importable = True

    def _missing(self, model: Model, what: str) -> BackendFailed:
        return BackendFailed(
            f'cannot load "{model.name}": {what}',
            hint=f'{self._python} -m pip install "{PACKAGE}", or set the python of engine "llama_cpp"',
            kind="package-missing",
            preflight=True,
        )

    def _located(self, model: Model) -> Model:
        return files.located(model, self._options.models_dir)


def _plan(model: Model, given: Mapping[str, str], gpus: int) -> Plan:
    """What its flags mean; a flag that is not given has the package's own default. Raises ValueError."""

    def number(name: str, default: int) -> int:
        return int(given.get(name, default))

    def is_on(name: str, *, default: bool) -> bool:
        return given.get(name, str(default)).lower() in ("true", "1", "yes", "on", "t", "y")

    kinds = {str(value): name for name, value in GGML_TYPES.items()}
    batch = number("--n_batch", 512)
    embeds = is_on("--embedding", default=False)
    layers = number("--n_gpu_layers", 0)
    kind_k, kind_v = given.get("--type_k", "1"), given.get("--type_v", "1")
    if kind_k not in kinds or kind_v not in kinds:
        raise ValueError(f"--type_k {kind_k} --type_v {kind_v} are not among {', '.join(kinds)}")
    return Plan(
        context=number("--n_ctx", 2048),
        # Embeddings are made of as many texts at once as a batch has room for.
        parallel=min(batch, MOST_SEQUENCES) if embeds else 1,
        unified=embeds,
        batch=batch,
        micro_batch=min(number("--n_ubatch", 512), batch),
        type_k=kinds[kind_k],
        type_v=kinds[kind_v],
        flash_attention="on" if is_on("--flash_attn", default=False) else "off",
        layers=ALL_LAYERS if layers < 0 else min(layers, ALL_LAYERS),
        kv_on_gpu=is_on("--offload_kqv", default=True),
        main_gpu=number("--main_gpu", 0),
        gpus=gpus,
        embeddings=embeds,
        file=model.settings.file,
        mmproj=given.get("--clip_model_path", ""),
        adapters=tuple(path for path in (given.get("--lora_path", ""),) if path),
    )


_OWNED = frozenset(
    {"--model", "--model_alias", "--host", "--port", "--api_key", "--config_file", "--interrupt_requests"}
)


def _runner(child: Child, endpoint: Endpoint) -> ProcessRunner:
    return ProcessRunner(
        child=child,
        endpoint=endpoint,
        ask_busy=lambda: _busy(endpoint),
        serial=True,
    )


async def _busy(endpoint: Endpoint) -> bool | None:
    """The list of models stands behind the same lock as an answer: it comes at once, or the engine works."""
    try:
        answer = await call.request(endpoint, "GET", "/v1/models", timeout_s=PROBE_S)
    except call.Unreachable as problem:
        return True if problem.trouble is call.Trouble.TIMED_OUT else None
    return False if answer.status == 200 else None
