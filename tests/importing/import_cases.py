"""The golden files: what each input becomes. Run as a program, it writes them anew and shows what changed."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpud.importing import containers, llama_cpp_server, llama_swap, nixos, ollama
from gpud.importing.ollama import Stored
from gpud.importing.reading import read_variables
from gpud.importing.report import Draft, Fate, Given, Report
from gpud.importing.settling import settle

GOLDEN = Path(__file__).resolve().parent / "golden"
VARIABLES = {"MODELS": "/mnt/models", "API_KEY_1": "sk-of-the-environment-nobody"}

SECRETS = ("nobody", "hunter")
"""Every secret in the inputs has one of these words in it."""

DIGESTS = [f"{number:064x}" for number in range(8)]
STORED = (
    Stored("llama3.2:latest", "/store/llama3.2", {"model": [DIGESTS[0]], "template": [DIGESTS[1]]}),
    Stored(
        "qwen3:4b",
        "/store/qwen3",
        {"model": [DIGESTS[2]], "params": [DIGESTS[3]], "system": [DIGESTS[4]], "adapter": [DIGESTS[5]]},
        '{"num_ctx": 8192, "num_gpu": 999, "num_thread": 6, "temperature": 0.6, "top_k": 20, "stop": ["<|im_end|>"]}',
    ),
    Stored(
        "llava:7b", "/store/llava", {"model": [DIGESTS[6]], "projector": [DIGESTS[7]]}, '{"num_gpu": -1, "seed": 1}'
    ),
    Stored("gpt-oss:120b-cloud", "/store/cloud", {}),
    Stored("broken:latest", "/store/broken", problem="its manifest cannot be read: it is no manifest"),
    Stored("odd:1b", "/store/odd", {"model": [DIGESTS[0]]}, "no JSON"),
)


def given(file: str) -> Given:
    return Given(file, "/srv/old", "/home/ada", VARIABLES)


def _of_ollama(engine: str) -> Callable[[str, Given], Draft]:
    def draft(text: str, known: Given) -> Draft:
        variables, aside = read_variables(text, known.file)
        return ollama.draft(variables, aside, STORED, known, store="/srv/ollama/models", engine=engine)

    return draft


@dataclass(frozen=True)
class Case:
    """One input, and how it is read."""

    name: str
    file: str
    draft: Callable[[str, Given], Draft]

    def report(self) -> Report:
        return settle(self.draft((GOLDEN / self.file).read_text(), given(self.file)))

    @property
    def expected(self) -> Path:
        return GOLDEN / f"{self.name}.expected.yaml"

    @property
    def notes(self) -> Path:
        return GOLDEN / f"{self.name}.notes.txt"


CASES = (
    Case("llama-swap-whole", "llama-swap-whole.yaml", llama_swap.draft),
    Case("llama-swap-routing", "llama-swap-routing.yaml", llama_swap.draft),
    Case("llama-cpp-server", "llama-cpp-server.json", llama_cpp_server.draft),
    Case("llama-cpp-server-models", "llama-cpp-server-models.json", llama_cpp_server.draft),
    Case("nixos", "nixos.json", nixos.draft),
    Case("docker-env", "docker-env.env", containers.draft),
    Case("docker-compose", "docker-compose.yaml", containers.draft),
    Case("ollama", "ollama.conf", _of_ollama("ollama")),
    Case("ollama-by-llama-server", "ollama.conf", _of_ollama("llama_server")),
)


def notes(report: Report) -> str:
    """Every note on a line of its own, those that matter most first."""
    lines = []
    for fate in (Fate.DROPPED, Fate.CHANGED, Fate.CARRIED, Fate.NEEDLESS):
        for note in report.of(fate):
            parts = [f"{fate} {note.place} {note.setting}", note.key and f"→ {note.key}", note.why, note.instead]
            lines.append(" | ".join(part for part in parts if part))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for case in CASES:
        made = case.report()
        for path, text in ((case.expected, made.text), (case.notes, notes(made))):
            old = path.read_text().splitlines() if path.exists() else []
            for line in difflib.unified_diff(old, text.splitlines(), path.name, path.name, lineterm="", n=1):
                print(line)
            path.write_text(text)
