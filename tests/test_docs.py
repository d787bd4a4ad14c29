"""The commands that the documents show work as they are shown: each is run here, or is run by the test that is named.

A block is read as a shell reads it, with and without ``$`` before its commands. What a document shows below a command
with a ``$`` is what that command prints, but for the numbers.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_model
import yaml
from daemon.harness import TOP, Daemon, Place, engine, place_at, settle
from dbus.private_bus import PrivateBus, session_bus

from gpud.config import load
from gpud.core.engines import BUILT_IN
from gpud.core.errors import ConfigInvalid

PAGES = (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))
SHELL = ("", "sh", "console")
PROGRAMS = frozenset(
    ("busctl", "gdbus", "gpud", "gpudctl", "journalctl", "make", "man", "sudo", "sudoedit", "systemctl")
)
BOUND_S = 30

SERVICE = "tests/booted/test_service.py::"
CRASHES = "tests/booted/test_crashes.py::"
SERVICES = "tests/checklist/test_services.py::"
LOG = "tests/log/test_log.py::"
PULL = "tests/pulling/test_pull.py::"
TRAY = "tests/booted/test_session_tray.py::"
STORED = "tests/cli/test_cli_storage.py::"
ELSEWHERE = {
    "make run": "tests/test_run.py::test_it_prints_what_works",
    "make test": "it is what runs this",
    "curl -N http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d "
    """'{"model": "tiny", "stream": true, "max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]}'""": (
        "tests/test_run.py::test_it_prints_what_works"
    ),
    "gpudctl chat qwen3-8b": "tests/cli/test_cli_http.py::test_a_conversation_at_a_terminal",
    "sudo cp qwen3-8b.gguf /var/lib/ml-models/gguf/": (SERVICE + "test_a_file_in_the_store_is_a_model"),
    "sudo make install": SERVICE + "test_installing_again_keeps_the_configuration_and_the_running_gpud",
    "sudoedit /etc/gpud/gpud.yaml": "an editor, for a person",
    "sudo systemctl enable --now gpud": SERVICE + "test_the_service_runs_and_owns_its_name",
    "sudo systemctl reload gpud": SERVICE + "test_a_reload_leaves_loaded_models_alone",
    "systemctl status gpud": SERVICE + "test_the_service_runs_and_owns_its_name",
    "journalctl -u gpud -f": "it does not end; " + CRASHES + "test_the_journal_explains_what_happened reads the same",
    "journalctl -u gpud GPUD_MODEL=qwen -x": CRASHES + "test_the_journal_explains_what_happened",
    "journalctl -u gpud GPUD_MODEL=qwen3-8b -x": CRASHES + "test_the_journal_explains_what_happened",
    "journalctl -t gpud-llama-server": LOG + "test_a_line_of_an_engine_is_found_by_engine_and_by_model",
    "journalctl -u gpud GPUD_KIND=evicted": LOG + "test_a_notice_becomes_a_message_with_fields",
    "journalctl -u gpud -p warning": LOG + "test_a_notice_becomes_a_message_with_fields",
    "sudo gpudctl import llama-swap config.yaml --output /etc/gpud/gpud.d/50-old.yaml": (
        "tests/importing/test_importing_real.py::test_what_llama_swap_had_is_served"
    ),
    "gpudctl pull hf:Qwen/Qwen3-8B-GGUF": PULL + "test_a_person_is_asked",
    "gpudctl pull hf:Qwen/Qwen3-8B-GGUF:Q4_K_M": PULL + "test_a_model_comes_into_the_folder_at_which_gpud_looks",
    "gpudctl pull hf:Qwen/Qwen3-8B": PULL + "test_a_repository_in_safetensors_goes_into_the_librarys_cache",
    "gpudctl pull ollama:llama3.2:3b": PULL + "test_ollama_downloads",
    "gpudctl fetch https://example.org/tiny-q8_0.gguf --sha256 "
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08": PULL + "test_a_file_from_a_url",
    "gpudctl log pictures": "tests/cli/test_cli_offline.py::test_log_becomes_journalctl",
    "busctl monitor org.kernelcore.GpuD": "it does not end",
    "gdbus monitor --system -d org.kernelcore.GpuD": (
        "it does not end; tests/checklist/test_by_hand.py::test_a_desktop_is_told_without_asking has it"
    ),
    "sudo install -m 644 /usr/share/doc/gpud/50-gpud.rules /etc/polkit-1/rules.d/": (
        SERVICE + "test_members_of_the_group_may_by_the_shipped_rule"
    ),
    "sudo usermod --append --groups gpud NAME": SERVICE + "test_members_of_the_group_may_by_the_shipped_rule",
    "sudo gpudctl storage init": STORED + "test_the_folders_are_made_once",
    "gpudctl storage init --root /tmp/image": STORED + "test_the_folders_are_made_once",
    "gpudctl storage ls": STORED + "test_what_is_there_is_shown_two_folders_deep",
    "gpudctl storage du": STORED + "test_sizes_are_those_of_du",
    "gpudctl storage du --duplicates": STORED + "test_copies_are_found_by_their_content_and_made_one_file",
    "gpudctl storage clean-cache --dry-run": STORED + "test_only_the_cache_is_cleaned",
    "gpudctl storage clean-cache": STORED + "test_only_the_cache_is_cleaned",
    "gpudctl storage check": STORED + "test_little_room_is_warned_of",
    "systemctl status ml-storage-monitor": STORED + "test_little_room_is_warned_of",
    "gpudctl models rm qwen3-8b": "tests/cli/test_cli_models_stub.py::test_a_person_is_asked",
    "systemctl --user enable --now gpud-tray": TRAY + "test_with_a_tray_it_stays_and_comes_back",
    "sudo /opt/gpud/bin/python -m pip install acme-engine": SERVICES + "test_a_package_brings_an_engine",
}
"""Commands that need root, systemd or a person, or that do not end: the test that does the same, or why none does."""


@dataclass(frozen=True)
class Step:
    """One line of a block, and what the page shows below it."""

    command: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One block of commands."""

    page: str
    line: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        steps = tuple(steps_of(found[2])) if found[1] in SHELL else ()
        if steps:
            yield Block(page.name, text[: found.start()].count("\n") + 1, steps)


def steps_of(block: str) -> Iterator[Step]:
    lines = block.splitlines()
    if any(line.startswith("$ ") for line in lines):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *shown = part.rstrip().splitlines()
            yield Step(bare(command), tuple(line for line in shown if line))
        return
    for line in lines:
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if Path(word).name in PROGRAMS or re.fullmatch(r'\w+=".*"', line):
            yield Step(bare(line), ())


def bare(line: str) -> str:
    """The line without the comment behind it."""
    return re.sub(r"\s{2,}#.*$", "", line).strip()


BLOCKS = [block for page in PAGES for block in read(page)]


@pytest.fixture(scope="module")
def bus() -> Iterator[PrivateBus]:
    """Both the session's and the system's, as far as the commands can tell."""
    with session_bus() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(bus: PrivateBus) -> Iterator[Daemon]:
    """With every model that the documents name, the tiny one a real one, where gpudctl finds its configuration."""
    with place_at(bus.address) as place:
        file = str(tiny_model.write(place.root / "tiny.gguf"))
        models = {name: engine(size="20MiB") for name in ("qwen3-8b", "qwen", "pictures")}
        place.configure({"tiny": {"engine": "embedded", "file": file}, **models})
        configuration = place.root / "config" / "gpud" / "gpud.yaml"
        configuration.parent.mkdir(parents=True)
        configuration.symlink_to(place.config)
        programs = place.root / "bin"
        programs.mkdir()
        for name in ("gpud", "gpudctl"):
            (programs / name).symlink_to(TOP / ".venv" / "bin" / name)
        # Who runs the tests may do here what the documents ask root for.
        (programs / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (programs / "sudo").chmod(0o755)
        (place.root / ".venv").symlink_to(TOP / ".venv")
        tiny_model.write(place.root / "model.gguf")
        (place.root / "config.yaml").write_text("models: {old: {cmd: 'llama-server --port ${PORT} -m old.gguf'}}\n")
        (place.root / "train.py").write_text("print('an epoch')\n")
        job = place.root / "long-job.sh"
        job.write_text("#!/bin/sh\ngpudctl models --loaded\n")
        job.chmod(0o755)
        yield place.start()


def shell(place: Place, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place.root,
        env={
            "PATH": f"{place.root}/bin:{os.environ['PATH']}",
            "HOME": str(place.root),
            "LANG": "C.UTF-8",
            "XDG_CONFIG_HOME": str(place.root / "config"),
            "XDG_RUNTIME_DIR": str(place.runtime),
            "XDG_STATE_HOME": str(place.state),
            "DBUS_SESSION_BUS_ADDRESS": place.address,
            "DBUS_SYSTEM_BUS_ADDRESS": place.address,
            "GPUD_BUS": "user",
        },
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def looks_like(shown: str) -> str:
    """A pattern for a line that differs in its numbers and its blanks only."""
    parts = re.split(r"(\d+(?:\.\d+)?|\s+)", shown.strip())
    return "".join(r"\d+(?:\.\d+)?" if p[:1].isdigit() else r"\s+" if p.isspace() else re.escape(p) for p in parts)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_commands_of_a_block_work(daemon: Daemon, block: Block) -> None:
    """One after the other, as in one shell; each ends with status 0 and prints what the page shows."""
    try:
        run_block(daemon, block)
    finally:
        assert daemon.unload(force=True).result == "done"
        settle(lambda: not daemon.place.children(), "nothing is loaded any more")


def run_block(daemon: Daemon, block: Block) -> None:
    before = ""
    for step in block.steps:
        for command in step.command.split(" && "):
            if command in ELSEWHERE:
                continue
            if re.fullmatch(r'\w+=".*"', command):
                before += command + "\n"
                continue
            done = shell(daemon.place, before + command)
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{block}: {command}\n{said}\n{daemon.log()}"
            for line in step.shown:
                assert re.search(rf"^\s*{looks_like(line)}\s*$", said, re.M), f"{block}: {line!r} is not in\n{said}"


def test_every_page_with_commands_is_read() -> None:
    """The blocks are found at all, and the table of those that are run elsewhere has no line too many."""
    assert {"README.md", "dbus.md", "operations.md", "adding-a-service.md", "configuration.md"} <= {
        b.page for b in BLOCKS
    }
    commands = {command for block in BLOCKS for step in block.steps for command in step.command.split(" && ")}
    assert not ELSEWHERE.keys() - commands


@pytest.mark.parametrize("reason", sorted(set(ELSEWHERE.values())))
def test_what_is_run_elsewhere_is_there(reason: str) -> None:
    """A test that is named exists."""
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w*)", reason):
        assert f"def {name}" in (TOP / file).read_text(), reason


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every file that a page points to is in the repository."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", (*PAGES, TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md"), ids=lambda page: page.name)
def test_a_module_is_run_by_a_python_that_has_it(page: Path) -> None:
    """It can be typed as it stands there: in the folder of the source or in its tests/, or where gpud is installed."""
    for python, module in re.findall(r"([\w./]*python3?) -m ((?:gpud|bench|core)\b[\w.]*\w)", page.read_text()):
        top = TOP / "tests" if python.startswith("../") else TOP
        assert python in (".venv/bin/python", "../.venv/bin/python", "/opt/gpud/bin/python"), f"{python} -m {module}"
        path = top / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{python} -m {module}"


@pytest.mark.parametrize("page", (*PAGES, TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md"), ids=lambda page: page.name)
def test_rows_belong_to_a_table(page: Path) -> None:
    """Rows stand below a heading and have its columns: an empty line between them would make text of those after it."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^ *\|.*\n)+", text, flags=re.MULTILINE):
        heading, *rows = [re.sub(r"\\\|", "", line).strip().count("|") for line in table.splitlines()]
        assert re.search(r"\n *\|(?: *:?-+:? *\|)+ *\n", table), (
            f"{page.name}: no heading above {table.splitlines()[0]}"
        )
        assert set(rows) == {heading}, f"{page.name}: {table}"


def test_the_map_of_the_architecture_is_true() -> None:
    """Whoever wants to change something is sent to a file that is there."""
    text = (TOP / "docs" / "ARCHITECTURE.md").read_text()
    table = text[text.index("## To change this") : text.index("## States")]
    paths = re.findall(r"`((?:\w+/)+(?:[\w.]+)?)`", table)
    assert len(paths) > 15
    for path in paths:
        assert (TOP / "gpud" / path).exists() or (TOP / path).exists(), path


def told(page: str) -> Iterator[tuple[str, str]]:
    """Every setting in the right-hand column of a page's tables, and what stands to its left."""
    for line in (TOP / "docs" / page).read_text().splitlines():
        found = re.fullmatch(r"\| (.+) \| `([^`]+: [^`]+)` \|", line)
        if found is not None:
            yield found[1], found[2]


@pytest.mark.parametrize(("old", "new"), list(told("migration.md")), ids=lambda text: text.split(",")[0])
def test_every_setting_to_come_to_is_one(tmp_path: Path, old: str, new: str) -> None:
    """What is said to take the place of an old setting is a valid configuration as it is written."""
    said = new if new.startswith("{") else f"{{{new}}}"
    if "top level" in old:
        text = said
    else:
        given = yaml.safe_load(said)
        needs_no_file = given.get("engine") in ("ollama", "vllm", "custom")
        whole = {"engine": "llama_server", **({} if needs_no_file else {"file": "m.gguf"}), **given}
        text = yaml.safe_dump({"models": {"m": whole}})
    path = tmp_path / "gpud.yaml"
    path.write_text(text)
    load(path, known_engines=BUILT_IN)


@pytest.mark.parametrize(
    "name", ["n_ctx", "n_gpu_layers", "n_threads", "n_parallel", "n_batch", "extraFlags", "model_path"]
)
def test_an_old_name_is_answered_with_ours(tmp_path: Path, name: str) -> None:
    """As the page promises."""
    path = tmp_path / "gpud.yaml"
    path.write_text(f"models: {{m: {{engine: llama_server, {name}: 1}}}}\n")
    with pytest.raises(ConfigInvalid, match="did you mean"):
        load(path, known_engines=BUILT_IN)


def test_the_configuration_in_the_readme_is_valid(daemon: Daemon) -> None:
    """As it stands; that its files are not here is a warning."""
    for text in re.findall(r"^```yaml\n(.*?)^```$", (TOP / "README.md").read_text(), re.M | re.S):
        path = daemon.place.root / "readme.yaml"
        path.write_text(text)
        done = shell(daemon.place, f"gpudctl config check {path}")
        assert done.returncode == 0, done.stderr
        assert f"OK: {len(yaml.safe_load(text)['models'])} models" in done.stdout
