"""Completion in the real shells: what a person gets who presses the tabulator key."""

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cli_place import PATIENCE_S, TOP, Place, RealDaemon

COMPLETIONS = TOP / "shell" / "completions"


def with_program(place: Place) -> dict[str, str]:
    """The environment with a gpudctl in PATH."""
    folder = place.directory / "path"
    folder.mkdir(exist_ok=True)
    program = folder / "gpudctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpud.cli "$@"\n')
    program.chmod(0o755)
    return place.environment | {"PATH": f"{folder}:{place.environment['PATH']}", "TERM": "dumb", "PS1": "$ "}


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


# Words, one after the other ------------------------------------------------------------------------------------------


def bash_words(place: Place, line: str) -> list[str]:
    """What bash's completion function leaves in COMPREPLY; the words are cut at colons, as readline does it."""
    script = f"""
source {COMPLETIONS / "gpudctl.bash"}
COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}
read -r -a COMP_WORDS <<<"${{COMP_LINE//:/ : }}"
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_gpudctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(
        command, env=with_program(place), capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def fish_words(place: Place, line: str) -> list[str]:
    """What fish itself offers."""
    script = f"source {COMPLETIONS / 'gpudctl.fish'}; complete -C {line!r}"
    command = ["fish", "--no-config", "-c", script]
    done = subprocess.run(
        command, env=with_program(place), capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stderr == ""
    return [row.split("\t")[0] for row in done.stdout.splitlines()]


SHELLS = [
    pytest.param(bash_words, marks=needs("bash"), id="bash"),
    pytest.param(fish_words, marks=needs("fish"), id="fish"),
]


@pytest.mark.parametrize("words", SHELLS)
def test_models_come_from_the_daemon(gpud: RealDaemon, words: object) -> None:
    """Names and aliases of all models for load, of loaded ones for unload."""
    assert callable(words)
    assert set(words(gpud.place, "gpudctl load ")) == {"tiny", "small", "other:3b", "slow", "big", "broken"}
    assert set(words(gpud.place, "gpudctl --user load s")) >= {"small", "slow"}
    gpud.place.gpudctl("load", "tiny")
    assert set(words(gpud.place, "gpudctl unload ")) == {"tiny", "small"}
    assert {"tiny", "small", "slow", "custom"} <= set(words(gpud.place, "gpudctl restart "))
    assert "tiny" in words(gpud.place, "gpudctl run --hold t")


@pytest.mark.parametrize("words", SHELLS)
def test_what_can_be_done_with_models(gpud: RealDaemon, words: object) -> None:
    """Actions, then names, then what the action takes."""
    assert callable(words)
    actions = {"list", "info", "scan", "set-priority", "tag", "untag", "alias", "unalias", "note", "rm", "forget"}
    assert set(words(gpud.place, "gpudctl models ")) == actions
    assert set(words(gpud.place, "gpudctl models set")) == {"set-priority"}
    assert set(words(gpud.place, "gpudctl models info t")) == {"tiny"}
    assert words(gpud.place, "gpudctl models scan ") == []
    assert words(gpud.place, "gpudctl models note tiny ") == []
    assert set(words(gpud.place, "gpudctl models list tiny b")) == {"big", "broken"}
    assert set(words(gpud.place, "gpudctl models set-priority tiny ")) == {
        "low",
        "normal",
        "high",
        "critical",
        "default",
    }
    assert "--yes" in words(gpud.place, "gpudctl models rm --")
    assert set(words(gpud.place, "gpudctl switch --keep t")) == {"tiny"}
    assert set(words(gpud.place, "gpudctl switch sl")) == {"slow"}


@pytest.mark.parametrize("words", SHELLS)
def test_commands_options_and_values(tmp_path: Path, words: object) -> None:
    """What does not come from the daemon is there without it, and nothing is said when it is not there."""
    assert callable(words)
    place = Place(tmp_path)
    assert set(words(place, "gpudctl lo")) == {"load", "log"}
    assert words(place, "gpudctl load ") == []
    assert words(place, "gpudctl load --no-e") == ["--no-evict"]
    assert words(place, "gpudctl load --engine llama_s") == ["llama_server"]
    assert set(words(place, "gpudctl wait --state ")) == {"ready", "unloaded"}
    assert set(words(place, "gpudctl config ")) == {"check", "show"}
    assert "idle.timeout" in words(place, "gpudctl config show idle.")
    assert "--json" in words(place, "gpudctl doctor --")


# The key itself ------------------------------------------------------------------------------------------------------


@contextmanager
def terminal(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    """An interactive shell; yields the terminal's other end."""
    child, fd = pty.fork()
    if child == 0:
        os.execvpe(command[0], command, environment)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)
        os.waitpid(child, 0)


def seen_until(fd: int, text: str) -> str:
    seen = ""
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ready, f"{text!r} did not come, but {seen!r}"
        seen += os.read(fd, 65536).decode(errors="replace")
    return seen


@needs("bash")
def test_the_tabulator_in_bash(gpud: RealDaemon) -> None:
    """readline itself completes a name with a colon in it."""
    with terminal(["bash", "--norc", "-i"], with_program(gpud.place)) as fd:
        os.write(fd, f"source {COMPLETIONS / 'gpudctl.bash'}; echo rea''dy\n".encode())
        seen_until(fd, "ready\r\n")
        os.write(fd, b"gpudctl load oth\t")
        seen_until(fd, "other:3b")
        os.write(fd, b"\x15gpudctl load other:\t")
        seen_until(fd, "other:3b")
        os.write(fd, b"\x15exit\n")


@needs("zsh")
def test_the_tabulator_in_zsh(gpud: RealDaemon) -> None:
    """zsh's own completion system finds the file, and the names."""
    with terminal(["zsh", "-f", "-i"], with_program(gpud.place)) as fd:
        setup = f"fpath=({COMPLETIONS} $fpath); autoload -Uz compinit; compinit -u -D; echo rea''dy\n"
        os.write(fd, setup.encode())
        seen_until(fd, "ready\r\n")
        for typed, completed in (
            (b"gpudctl unl\t", "unload "),
            (b"gpudctl load oth\t", "other:3b"),
            (b"gpudctl load tiny sma\t", "small"),
            (b"gpudctl run --hold ti\t", "tiny"),
            (b"gpudctl wait --state un\t", "unloaded"),
            (b"gpudctl config show storage.b\t", "storage.base_directory"),
            (b"gpudctl load --no-ev\t", "--no-evict"),
            (b"gpudctl models set\t", "set-priority"),
            (b"gpudctl models info ti\t", "tiny"),
            (b"gpudctl models set-priority tiny def\t", "default"),
            (b"gpudctl models list tiny sma\t", "small"),
        ):
            os.write(fd, typed)
            seen_until(fd, completed)
            os.write(fd, b"\x15")
        os.write(fd, b"exit\n")


@needs("fish")
def test_fish_says_what_each_word_is(gpud: RealDaemon) -> None:
    """Descriptions stand beside the words."""
    script = f"source {COMPLETIONS / 'gpudctl.fish'}; complete -C 'gpudctl un'; complete -C 'gpudctl load tin'"
    command = ["fish", "--no-config", "-c", script]
    done = subprocess.run(
        command, env=with_program(gpud.place), capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.splitlines() == ["unload\tUnload models and free their memory", "tiny\tmodel"]
