"""The linters are tests: what they complain about fails like everything else."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parent.parent

WORST_EXPOSURE = 25
"""Ten times systemd's exposure level that gpud.service may have at most. What is left is what a GPU needs."""


def said(*command: str | Path) -> str:
    """What a linter complains about; empty when it is content."""
    done = subprocess.run([str(word) for word in command], cwd=TOP, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{done.stdout}\n{done.stderr}".strip() or f"status {done.returncode}"


def needs(program: str) -> None:
    """Skip where the program is missing, but not where everything has to be there."""
    if not shutil.which(program):
        assert not os.environ.get("CI"), f"{program} is missing: tools/packages test installs it"
        pytest.skip(f"{program} is not installed")


def shell_scripts() -> list[Path]:
    """Every file of the tree that a shell of the sh family reads."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, text=True)
    # Where the sources were unpacked rather than cloned, all that lies there is of the tree but what is made in it.
    made = (TOP / ".venv", TOP / "build")
    walked = (path for path in TOP.rglob("*") if not any(path.is_relative_to(folder) for folder in made))
    paths = [TOP / name for name in listed.stdout.splitlines()] if listed.returncode == 0 else walked
    return [path for path in paths if path.is_file() and is_shell(path)]


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix in (".sh", ".bash") or bool(re.match(rb"#!.*\b(ba|da)?sh\b", file.readline()))


def test_ruff_finds_nothing() -> None:
    """The rules of pyproject.toml hold everywhere."""
    assert said(sys.executable, "-m", "ruff", "check", "--no-cache", ".") == ""


def test_everything_is_formatted() -> None:
    """``ruff format`` would change nothing."""
    assert said(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".") == ""


def test_the_types_are_right() -> None:
    """``mypy --strict`` finds nothing in the package."""
    assert said(sys.executable, "-m", "mypy") == ""


def test_the_shell_scripts_are_sound() -> None:
    """shellcheck finds nothing in any of them."""
    needs("shellcheck")
    scripts = shell_scripts()
    assert TOP / "tools" / "install" in scripts
    assert said("shellcheck", "--external-sources", *scripts) == ""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with programs that exist in place of those that only an installation has."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in (TOP / "units").rglob("*.service"):
        target = tmp_path / unit.relative_to(TOP / "units")
        target.parent.mkdir(exist_ok=True)
        target.write_text(re.sub(r"/opt/gpud/bin/[\w-]+", str(program), unit.read_text()))
    return tmp_path


def test_systemd_understands_the_units(units: Path) -> None:
    """``systemd-analyze verify`` has nothing to say about the system's units and the user's."""
    needs("systemd-analyze")
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", units / "gpud.service", units / "gpud-reap.service"],
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")
    (units / "runtime").mkdir(mode=0o700)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *sorted((units / "user").iterdir())],
        env={**os.environ, "XDG_RUNTIME_DIR": str(units / "runtime")},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_the_service_is_in_a_sandbox() -> None:
    """systemd's own score is as good as a service that drives a GPU can have."""
    needs("systemd-analyze")
    for unit in ("gpud.service", "gpud-reap.service"):
        command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={WORST_EXPOSURE}"]
        assert said(*command, TOP / "units" / unit) == ""


def settings(unit: str) -> dict[str, str]:
    lines = (TOP / "units" / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_keeps_its_promises() -> None:
    """What the design relies on is set: engines outlive a crash, exit statuses that end it, time enough to stop."""
    unit = settings("gpud.service")
    assert unit["Type"] == "notify"
    assert unit["KillMode"] == "process"
    assert unit["Delegate"] == "yes"
    assert unit["OOMPolicy"] == "continue"
    assert unit["RuntimeDirectoryPreserve"] == "yes"
    assert unit["FileDescriptorStoreMax"] == unit["Environment"].removeprefix("GPUD_FDSTORE=")
    assert unit["RestartPreventExitStatus"].split() == ["75", "78"]
    assert unit["OnFailure"] == "gpud-reap.service"
    for folder in ("", "user/"):
        # Started at each failure by newer systemds, and needed at the last of them, which comes after the one before.
        assert settings(f"{folder}gpud-reap.service")["StartLimitIntervalSec"] == "0"
        assert "gpud-reap.service" in settings(f"{folder}gpud.service")["After"].split()
    assert int(unit["TimeoutStopSec"]) >= 20 + 4 + 10
    assert "MemoryDenyWriteExecute" not in unit
    assert "# MemoryDenyWriteExecute is off:" in (TOP / "units" / "gpud.service").read_text()


def test_the_user_and_the_directories_can_be_made(tmp_path: Path) -> None:
    """``systemd-sysusers`` and ``systemd-tmpfiles`` make them in an empty tree, with the modes of the documentation."""
    needs("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    for name, kind in (("gpud.sysusers", "sysusers"), ("gpud.tmpfiles", "tmpfiles")):
        folder = tmp_path / "usr/lib" / f"{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(TOP / "units" / name, folder / "gpud.conf")
    assert said("systemd-sysusers", f"--root={tmp_path}", "gpud.conf") == ""
    users = (tmp_path / "etc/passwd").read_text()
    assert "gpud:" in users
    groups = dict(line.split(":", 1) for line in (tmp_path / "etc/group").read_text().splitlines())
    assert groups["video"].endswith(":gpud")
    assert groups["render"].endswith(":gpud")
    if os.geteuid() != 0:
        pytest.skip("only root may give directories to another user")
    assert said("systemd-tmpfiles", f"--root={tmp_path}", "--create", "gpud.conf") == ""
    models = tmp_path / "var/lib/ml-models"
    assert {path.name for path in models.iterdir()} >= {"llamacpp", "ollama", "huggingface", "gguf", "vllm", "custom"}
    assert (models / "llamacpp/models").stat().st_mode & 0o7777 == 0o775
    assert f":{(models / 'llamacpp/models').stat().st_uid}:" in users
    assert models.stat().st_mode & 0o7777 == 0o755


def manual() -> list[Path]:
    return sorted((TOP / "docs" / "man").glob("*.md"))


def test_there_is_a_manual() -> None:
    """Each program and the configuration has its page: the units and the errors point there."""
    assert {path.stem for path in manual()} >= {"gpud.8", "gpudctl.1", "gpud.yaml.5"}


@pytest.mark.parametrize("source", manual(), ids=lambda path: path.stem)
def test_the_manual_can_be_read(tmp_path: Path, source: Path) -> None:
    """Every page becomes a manual page that groff prints without a warning, on terminals with and without Unicode, with
    its sections and no Markdown left.
    """
    needs("groff")
    page = tmp_path / source.stem
    assert said(sys.executable, TOP / "tools" / "man.py", source, page) == ""
    for terminal in ("-Tascii", "-Tutf8"):
        shown = subprocess.run(
            ["groff", "-ww", "-man", terminal, "-P-cbou", page], capture_output=True, text=True, check=True
        )
        assert shown.stderr == ""
    assert re.search(r"^NAME$", shown.stdout, re.MULTILINE)
    outside_code = re.sub(r"^ {11,}.*$", "", shown.stdout, flags=re.MULTILINE)
    assert "**" not in outside_code
    assert "```" not in outside_code


def man_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man", TOP / "tools" / "man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVERYTHING = """\
% X(1) gpud | Commands

# NAME

x - does *a\\*b* things

# OPTIONS

**--all** *NAME*
:   Takes `it's`.

- one
- two **bold**
    - inner

```
.code 'x' \\n
```

## Sub

| key | meaning |
| --- | --- |
| a | b |
"""


def test_markdown_becomes_a_manual_page(tmp_path: Path) -> None:
    """Fonts, lists, definitions, code and tables come out as a reader of the manual expects them."""
    needs("groff")
    source = tmp_path / "x.1.md"
    source.write_text(EVERYTHING)
    assert said(sys.executable, TOP / "tools" / "man.py", source, tmp_path / "x.1") == ""
    shown = subprocess.run(
        ["groff", "-ww", "-man", "-Tascii", "-P-cbou", tmp_path / "x.1"], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    lines = [line.strip() for line in shown.stdout.splitlines() if line.strip()]
    assert "x - does a*b things" in lines
    assert lines[lines.index("--all NAME") + 1] == "Takes it's."
    assert [line for line in lines if line.endswith(("one", "two bold", "inner"))] == ["o one", "o two bold", "o inner"]
    assert ".code 'x' \\n" in lines
    assert "Sub" in lines


def test_broken_markdown_is_refused() -> None:
    """What the converter does not understand is an error with its line, not a page that is wrong."""
    page = man_module().Page
    for text, message in (
        ("no title\n", 'x:1: the first line must be "# name(section)"'),
        ("# x(1)\n```\nnever closed\n", "a ``` that is never closed"),
        ("# x(1)\n\n: no term\n", "x:3: a definition without its term"),
    ):
        with pytest.raises(SystemExit, match=re.escape(message)):
            page(text, "x").convert()
