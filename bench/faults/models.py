"""The models of the system under test, what they hold of its GPU, and what each of their answers has to be."""

import os
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
REAL = ("llama", "embedded", "ollama")
"""A real llama-server, the engine that gpud brings, and a real Ollama, with a model whose answers are always the same.
"""

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


def _provisioned(what: str) -> Path:
    made = subprocess.run([TOP / "tests" / "provision", what], capture_output=True, text=True, check=True)
    return Path(made.stdout.strip())


def llama_server() -> Path:
    """The real one, as the tests make it."""
    return _provisioned("llama-server") / "site" / "bin" / "llama-server"


def real_engines(place: Place) -> dict[str, object]:
    """The section ``engines``. Call it after :func:`configured`: the model file goes into a store of Ollama's."""
    ollama = _provisioned("ollama") / "bin" / "ollama"
    store = place.root / "ollama-store"
    _create(ollama, store, place.root / "real.gguf")
    return {
        "llama_server": {"binary": str(llama_server())},
        "ollama": {"binary": str(ollama), "models_dir": str(store), "environment": {"OLLAMA_NO_CLOUD": "1"}},
    }


def _create(ollama: Path, store: Path, file: Path) -> None:
    """Ollama makes the entry itself, by a server that ends with that."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(store.parent),
        "OLLAMA_MODELS": str(store),
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_NO_CLOUD": "1",
    }
    recipe = store.parent / "Modelfile"
    recipe.write_text(f"FROM {file}\nPARAMETER num_thread 1\n")
    command = [str(ollama), "serve"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "Listening on " in line)
            environment["OLLAMA_HOST"] = line.split("Listening on ")[1].split(" ")[0]
            made = [str(ollama), "create", "tiny", "-f", str(recipe)]
            subprocess.run(
                made, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True
            )
        finally:
            server.terminate()
            server.communicate()


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
        ollama = {"engine": "ollama", "model": "tiny", "context": 1024, "threads": 1, "gpu": "host", "size": "200MiB"}
        models["ollama"] = ollama
    return models
