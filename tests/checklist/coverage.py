"""The page that says of every promise what shows that it is kept: docs/coverage.md, from the table and from the tests.

``make coverage`` writes it anew.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from .rows import ROWS

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "coverage.md"

GROUPS: Mapping[str, str] = {
    "S0": "llama-server and Ollama as services: units, options, VRAM that is given back",
    "S1": "the machine-learning layers of a NixOS configuration: storage, monitoring, registry, API, shell commands",
    "S2": "the orchestrator: backends, choice among them, reservations, the management API",
    "S3": "a container with llama.cpp and a large mixture of experts",
    "S4": "a small server in a user's home that loads models when they are asked for",
    "DC": "the design card: what gpud is",
    "RX": "extras: what the programs behind the documents could do, and the documents did not say",
}

NAMES: Mapping[str, str] = {
    "anthropics": "Anthropic's",
    "api": "API",
    "cpu": "CPU",
    "curl": "curl",
    "gguf": "GGUF",
    "gpu": "GPU",
    "gpud": "gpud",
    "gpudctls": "gpudctl's",
    "gpuds": "gpud's",
    "gpus": "GPUs",
    "http": "HTTP",
    "json": "JSON",
    "librarys": "library's",
    "llamas": "llama's",
    "ollama": "Ollama",
    "ollamas": "Ollama's",
    "openais": "OpenAI's",
    "openapi": "OpenAPI",
    "prometheus": "Prometheus",
    "ps": "ps",
    "systemd": "systemd",
    "systemds": "systemd's",
    "tls": "TLS",
    "url": "URL",
    "vllm": "vLLM",
    "vram": "VRAM",
    "websocket": "WebSocket",
    "yaml": "YAML",
}
"""Words of the tests' names that are written otherwise in a sentence."""

INTRODUCTION = """\
# What was promised, and what shows it

<!-- Written by `make coverage` from tests/checklist/rows.py and from what the tests say of themselves. -->

gpud was asked for with documents: READMEs of set-ups that people had, each with dozens of promises, and a design card.
Every promise has a number: the group of its document, and its place there. Here is each with what shows that it is
kept: the name of a test (as words), what it says of itself, and its file below `tests/`. A promise that made no sense
literally (a flake, a Rust crate, a container) is kept by what takes its place here. What needs a GPU is shown with a
driver that is not real; what a real one says belongs to the figures.

| group | what its promises are about | promises |
|---|---|---|
"""

CHANGING = """
`make test ARGS="tests/checklist"` runs what was written for promises alone, and looks whether every test that is named
here exists. Tests in `tests/booted` and `tests/desktop` boot a Debian tree, which takes root.
"""


def page() -> str:
    """The whole page."""
    counted = "".join(
        f"| {group} | {about} | {sum(1 for row in ROWS if row.startswith(group))} |\n"
        for group, about in GROUPS.items()
    )
    sections = "".join(f"\n## {group}\n\n{about_group(group)}" for group in GROUPS)
    return INTRODUCTION + counted + CHANGING + sections


def about_group(group: str) -> str:
    """One line a promise, by number."""
    lines = ["| promise | what is shown | where |", "|---|---|---|"]
    for row in sorted(row for row in ROWS if row.startswith(group)):
        shown, places = [], []
        for name in ROWS[row]:
            for words, place in shown_by(name):
                shown.append(words)
                places.append(place)
        lines.append(f"| {row} | {'<br>'.join(dict.fromkeys(shown))} | {'<br>'.join(dict.fromkeys(places))} |")
    return "\n".join(lines) + "\n"


def shown_by(name: str) -> Iterator[tuple[str, str]]:
    """What the tests whose names begin like this say that they show, and the file of each."""
    file, _, wanted = name.partition("::")
    test, bracket, case = wanted.partition("[")
    found = [(each, words) for each, words in tests_of(file).items() if each == test]
    found = found or [(each, words) for each, words in tests_of(file).items() if each.startswith(test)]
    if not found:
        raise LookupError(f"there is no test {name}")
    for each, words in found:
        title = sentence(each)
        of_case = f" ({case.rstrip(']')})" if bracket else ""
        text = f"**{title}{of_case}** {words}".replace("|", "\\|").replace("<", "&lt;")
        yield text.strip(), f"[{file.removeprefix('tests/')}](../{file})"


def sentence(name: str) -> str:
    """``test_what_it_does`` as words."""
    first, *others = name.removeprefix("test_").removeprefix("Test").split("_")
    start = NAMES.get(first, first.capitalize())
    return " ".join((start, *(NAMES.get(word, word) for word in others))) + "."


@cache
def tests_of(file: str) -> Mapping[str, str]:
    """The tests and classes of tests of a file, with the first paragraph of what they say."""
    tree = ast.parse((TOP / file).read_text())
    said, found = {}, {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            said[node.name] = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if node.name.startswith(("test_", "Test")):
                found[node.name] = said[node.name]
        elif isinstance(node, ast.Assign):
            # A machine of hypothesis is a test by the name that it is given.
            names = (target.id for target in node.targets if isinstance(target, ast.Name))
            found |= {name: said.get(name[4:], "") for name in names if name.startswith("Test")}
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
