"""The models of the system under test, what they hold of its GPU, and what each of their answers has to be."""

import subprocess
from pathlib import Path
from typing import Any

from daemon.doors import talker
from daemon.harness import Place, embedded, engine, script, tiny
from fake_nvml.gpu import GIB, MIB, FakeGpus

from bench.faults import TOP

TALKERS = ("ada", "bob", "cyd", "dot")
"""Engines that say exactly what they are asked to. They do not all fit at the same time: they take turns."""

TALKER_GIB = {"ada": 1.5, "bob": 2.0, "cyd": 2.5, "dot": 1.0}
REAL = ("llama", "embedded")
"""A real llama-server and the engine that gpud brings, with a model whose answers are always the same."""

TOKENS = 6
TOTAL_BYTES = 6 * GIB


def _held(
    place: Place, gpus: FakeGpus, name: str, size_gib: float, *switches: str, **settings: Any
) -> dict[str, object]:
    """A talking engine that holds so much of the GPU while it lives, and is known to."""
    mark = f"{place.root.name}-{name}."
    gpus.rule(mark, int(size_gib * GIB))
    size = settings.pop("size", f"{int(size_gib * 1024)}MiB")
    return talker(place, *switches, "--serves", mark, size=size, **settings)


def sick(place: Place, gpus: FakeGpus) -> dict[str, object]:
    """Models with which something is wrong, each in its own way; only faults ask for them."""
    brief = {"drain": 2, "term": "150ms", "second_term": "150ms"}
    gpus.rule(f"{place.root.name}-greedy.", int(2.5 * GIB))
    return {
        "slow": _held(place, gpus, "slow", 0.25, "--ready-after", "0.6"),
        "gated": _held(place, gpus, "gated", 0.25, "--ready-when", str(place.root / "gate")),
        "stuck": engine("--never-healthy", load_timeout="1s", stop=brief),
        "deaf": engine("--ignore-term", stop=brief),
        "broke": script('echo "CUDA error: out of memory" >&2; echo "ggml_cuda: 9999 MiB" >&2; exit 1'),
        "greedy": engine("--say", f"{place.root.name}-greedy.", "--ready-after", "20", size="512MiB"),
        "loud": engine("--print-mb", "1", "--print-binary-mb", "1", stop=brief),
        "parent": engine("--fork-holder", stop=brief),
        "huge": talker(place, size="40GiB"),
    }


def llama_server() -> Path:
    """The real one, as the tests make it."""
    made = subprocess.run([TOP / "tests" / "provision", "llama-server"], capture_output=True, text=True, check=True)
    return Path(made.stdout.strip()) / "site" / "bin" / "llama-server"


def configured(place: Place, gpus: FakeGpus, *, real: bool) -> dict[str, object]:
    """Everything that stands below ``models:``. Call it once: it makes files and says what they hold."""
    models: dict[str, object] = {name: _held(place, gpus, name, size) for name, size in TALKER_GIB.items()}
    models |= sick(place, gpus)
    if real:
        file = tiny(place.root / "real.gguf")
        gpus.rule(str(file), 300 * MIB)
        # A slot of its own for each request, without the last one's cache: the same words every time.
        models["llama"] = {"engine": "llama_server", "file": str(file), "context": 1024, "threads": 1, "size": "300MiB"}
        models["embedded"] = embedded(file, gpu="host", size="200MiB")
    return models
