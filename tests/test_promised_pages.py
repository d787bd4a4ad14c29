"""What the documents promised to say is said there, and is true: places, parts, requirements, how to take part."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from daemon.harness import TOP

from gpud.config.files import default_path
from gpud.core.engines import BY_NAME, Family
from gpud.directories import Directories
from gpud.log import MESSAGE_IDS

README = (TOP / "README.md").read_text()
OPERATIONS = (TOP / "docs" / "operations.md").read_text()
MIGRATION = (TOP / "docs" / "migration.md").read_text()


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next of its rank or above."""
    rank = title.split(" ")[0]
    found = re.search(rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(rank)}}} |\Z)", text, re.M | re.S)
    assert found is not None, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not re.match(r"\| -+", line)]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_the_readme_names_all_three_parts_and_says_which_are_here() -> None:
    """Memory, models, and access with a lock; each is here, here by other means, or said not to be part of gpud."""
    parts = dict(row for row in rows(section(README, "## What it has, and what it has not")) if row[1] != "state")
    for wanted in ("VRAM management", "model orchestration", "secure LLM access"):
        (state,) = [state for part, state in parts.items() if part.startswith(wanted)]
        assert re.fullmatch(r"(core|optional), here( by other means)?", state)
    others = {
        part for part, state in parts.items() if not re.fullmatch(r"(core|optional), here( by other means)?", state)
    }
    assert {parts[part] for part in others} == {"not part of gpud"}


def test_nothing_is_promised_that_nobody_works_on() -> None:
    """What is not part of gpud is called so, wherever it is named."""
    for page in (README, MIGRATION):
        assert not re.search(r"\b(is|are) to come\b|[,|] to come\b|\bwill have\b", page)
    for wanted in ("MCP server", "Neovim"):
        lines = [line for page in (README, MIGRATION) for line in page.splitlines() if wanted in line]
        assert lines and all("not part of gpud" in line for line in lines)


@pytest.mark.parametrize("page", [README, MIGRATION])
def test_what_is_here_by_other_means_is_described(page: str) -> None:
    """The pages that are named have the sections that are named."""
    for name, anchor in (("access.md", "with-certificates-of-ones-own"), ("http.md", "editors-and-agents")):
        assert f"{name}#{anchor}" in page
        titles = re.findall(r"^##+ (.+)$", (TOP / "docs" / name).read_text(), re.M)
        assert anchor in {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def listed() -> list[str]:
    """The destinations in the list of tools/install, as it is written there."""
    return re.findall(r'say "\S+ (/\S+) \d{3}"', (TOP / "tools" / "install").read_text())


@pytest.mark.parametrize(
    "place",
    [
        "/usr/lib/systemd/system",
        "/usr/lib/systemd/user",
        "/usr/share/dbus-1/system.d",
        "/usr/share/dbus-1/system-services",
        "/usr/share/dbus-1/interfaces",
        "/usr/share/polkit-1/actions",
        "/usr/lib/sysusers.d",
        "/usr/lib/tmpfiles.d",
        "/usr/lib/systemd/catalog",
        "/usr/share/doc/gpud",
    ],
)
def test_the_places_of_files_are_those_of_the_installation(listed: list[str], place: str) -> None:
    """The table of places has each folder into which the installation puts something of the service's."""
    assert f"`{place}" in section(OPERATIONS, "## Install")
    assert any(path.startswith(f"{place}/") for path in listed)


def test_the_places_of_the_configuration_and_of_state_are_those_that_gpud_uses() -> None:
    """For the machine, and for a user's own."""
    table = section(OPERATIONS, "## Install")
    system = Directories.find({}, user=False)
    for path in (default_path(False), system.state, system.runtime):
        assert f"`{path}`" in table
    own = Directories.find({"HOME": "/home/anna", "XDG_RUNTIME_DIR": "/run/user/1"}, user=True)
    assert (own.state, own.runtime) == (Path("/home/anna/.local/state/gpud"), Path("/run/user/1/gpud"))
    for path in ("~/.config/gpud/gpud.yaml", "~/.local/state/gpud", "$XDG_RUNTIME_DIR/gpud"):
        assert f"`{path}`" in table


def test_the_python_that_is_asked_for_is_the_one_that_is_said() -> None:
    """In the requirements of the installation and for whoever wants to change something."""
    oldest = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for text in (section(OPERATIONS, "## Install"), (TOP / "CONTRIBUTING.md").read_text()):
        assert re.search(rf"Python {re.escape(oldest)}\b", text)


@pytest.mark.parametrize(
    ("title", "first"),
    [
        ("layer", ["infrastructure", "services", "orchestration", "applications", "integrations"]),
        ("file", ["`server.py`", "`model_manager.py`", "`tasks.py`", "`config.json`", "`requirements.txt`"]),
    ],
)
def test_old_parts_are_mapped_to_rooms_that_are_there(title: str, first: list[str]) -> None:
    """The five layers, and the files of the small server; every room that is named exists."""
    tables = section(MIGRATION, "## Where the parts are").split("\n\n")
    (table,) = [table for table in tables if table.startswith(f"| {title} |")]
    names = [row[0] for row in rows(table)][1:]
    assert [name.partition(":")[0] for name in names[: len(first)]] == first
    paths = re.findall(r"`((?:gpud|units)/[\w/.]+)`", table)
    assert len(paths) >= 5
    for path in paths:
        assert (TOP / path).exists(), path
    rooms = {"gateway.py": "gpud/http", "admin.py": "gpud/http"}
    for name in re.findall(r"`(\w+\.py)`", table):
        assert name in ("server.py", "model_manager.py", "tasks.py") or (TOP / rooms[name] / name).is_file(), name


def test_who_wants_to_change_something_is_told_how() -> None:
    """The goals that are named are there, and so is what has to be read."""
    text = (TOP / "CONTRIBUTING.md").read_text()
    goals = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z]+)\b(?! install)", text))
    assert {"setup", "check", "test", "run"} <= named <= goals
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (TOP / target).exists(), target
    assert "(CONTRIBUTING.md)" in README
    assert "(docs/ARCHITECTURE.md)" in README


def test_gpud_runs_from_its_folder_as_a_module() -> None:
    """``.venv/bin/python -m gpud`` with the shipped configuration; one that cannot be used is refused by its name."""
    assert ".venv/bin/python -m gpud --user --config config/gpud.yaml" in (TOP / "CONTRIBUTING.md").read_text()
    checked = [sys.executable, "-m", "gpud.cli", "config", "check", "config/gpud.yaml"]
    assert subprocess.run(checked, cwd=TOP, capture_output=True, check=False).returncode == 0
    refused = [sys.executable, "-m", "gpud", "--user", "--config", "README.md"]
    done = subprocess.run(refused, cwd=TOP, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 78
    assert "README.md" in done.stderr


def test_who_finds_it_slow_is_told_where_to_look() -> None:
    """Each cause with what shows it: the load, the processor, too few layers, the context, the quantization."""
    text = section(OPERATIONS, "## When it is slow")
    for wanted in (
        "X-Gpud-Load-Seconds",
        "GPUD_KIND=on-processor",
        "gpudctl doctor",
        "layers: all",
        "context",
        "quantization",
    ):
        assert wanted in text
    assert "on-processor" in {str(kind) for kind in MESSAGE_IDS}
    kind = BY_NAME["llama_cpp"]
    assert kind.family is Family.LLAMA_CPP
    assert "engines.llama_cpp.python" in text
    assert "GGML_CUDA=on" in text
    assert "llama-cpp-python[server]" in text
