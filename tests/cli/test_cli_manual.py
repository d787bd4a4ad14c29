"""The manual pages say what the programs do: every command, option, status and key is in them, and nothing else."""

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpud.__main__ import parser as daemon_parser
from gpud.cli import exits
from gpud.cli.arguments import GLOBAL_OPTIONS
from gpud.cli.commands import COMMANDS, parser_for

MANUAL = Path(__file__).resolve().parent.parent.parent / "docs" / "man"
COMPLETIONS = MANUAL.parent.parent / "shell" / "completions"
SHOWN = [name for name, command in COMMANDS.items() if not command.hidden]

PAGE = (MANUAL / "gpudctl.1.md").read_text()
DAEMON_PAGE = (MANUAL / "gpud.8.md").read_text()


def section(title: str) -> str:
    """The text of a top-level section."""
    return PAGE.split(f"\n# {title}\n", 1)[1].split("\n# ", 1)[0]


def parts_of(command: str) -> str:
    """All subsections about a command."""
    parts = re.split(r"^## ", section("COMMANDS"), flags=re.M)[1:]
    mine = [part for part in parts if part.split()[0] == command]
    assert mine, f"gpudctl(1) says nothing of {command}"
    return "\n".join(mine)


def own_options(command: str) -> set[str]:
    """The options of a command that are not those of every command."""
    everywhere = {*GLOBAL_OPTIONS, "-h", "--help"}
    return {word for action in parser_for(command)._actions for word in action.option_strings} - everywhere


@pytest.mark.parametrize("command", SHOWN)
def test_every_option_is_in_the_manual(command: str) -> None:
    """Each option has an entry of its own below its command, and no entry is of an option that is not there."""
    written = set(re.findall(r"^(?:\*\*.+?, )?\*\*(-[-a-z0-9]+)\*\*", parts_of(command), re.M))
    both = re.findall(r"^\*\*(-[a-z])\*\*(?: \*\w+\*)?, \*\*(--[-a-z0-9]+)\*\*", parts_of(command), re.M)
    written |= {word for pair in both for word in pair}
    assert written == own_options(command)


@pytest.mark.parametrize("command", SHOWN)
def test_every_argument_is_in_the_manual(command: str) -> None:
    """The heading of a command has its arguments and options."""
    text = parts_of(command)
    for action in parser_for(command)._actions:
        if action.option_strings:
            if action.dest not in ("bus", "json", "no_color", "help"):
                assert any(f"**{word}**" in text for word in action.option_strings)
        elif action.choices:
            assert all(f"**{choice}**" in text for choice in action.choices)
        else:
            assert all(f"*{word}*" in text for word in str(action.metavar).split("|"))


def test_the_manual_has_no_other_commands() -> None:
    """What is gone from the program is gone from its page; the order is that of the help."""
    headings = list(dict.fromkeys(re.findall(r"^## ([\w-]+)", section("COMMANDS"), re.M)))
    assert sorted(headings) == sorted(SHOWN)


def test_the_options_of_all_commands_and_the_statuses_are_in_the_manual() -> None:
    """Both are complete."""
    assert set(re.findall(r"\*\*(--[a-z-]+)\*\*\n:", section("OPTIONS"))) == {*GLOBAL_OPTIONS, "--help", "--version"}
    statuses = set(map(int, re.findall(r"^\*\*(\d+)\*\*$", section("EXIT STATUS"), re.M)))
    known = (exits.DONE, exits.FAILED, exits.USAGE, exits.NOT_RUNNING, exits.REFUSED, exits.INTERRUPTED)
    assert statuses == set(known)


def test_the_json_of_every_command_is_in_the_manual() -> None:
    """A program's author finds the keys of each object there."""
    text = section("JSON")
    named = {word for line in re.findall(r"^([a-z, -]+)\n:", text, re.M) for word in re.split(r", | ", line)}
    # run has no output of its own.
    assert named >= set(SHOWN) - {"run"}


def test_the_daemons_options_are_in_its_manual() -> None:
    """gpud(8) has each option and each status that gpud --help promises."""
    made = daemon_parser()
    for action in made._actions:
        assert any(f"**{word}**" in DAEMON_PAGE for word in action.option_strings)
    for status in re.findall(r"\b(\d+) ", (made.epilog or "").partition("Configuration")[0]):
        assert re.search(rf"^\*\*{status}\*\*$", DAEMON_PAGE, re.M)


@pytest.mark.parametrize("name", ["gpudctl.1", "gpud.8"])
@pytest.mark.skipif(shutil.which("pandoc") is None, reason="pandoc is not installed")
def test_pandoc_makes_a_page_of_it(name: str) -> None:
    """The title block and the sections arrive in the roff that man shows."""
    command = ["pandoc", "--standalone", "--to=man", str(MANUAL / f"{name}.md")]
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    title, number = name.upper().split(".")
    assert re.search(rf'^\.TH "?{title}"? "?{number}"? ', page, re.M)
    assert page.count(".SH ") >= 6


@pytest.mark.parametrize("name", ["gpudctl.bash", "_gpudctl", "gpudctl.fish"])
def test_completions_know_every_word(name: str) -> None:
    """Each command, and each long option, is in the completion of each shell."""
    text = (COMPLETIONS / name).read_text()
    for command in SHOWN:
        assert re.search(rf"\b{command}\b", text), f"{name} does not know {command}"
        for word in own_options(command):
            if word.startswith("--"):
                wanted = rf"-l {word[2:]}\b" if name.endswith("fish") else rf"{word}\b"
                assert re.search(wanted, text), f"{name} does not know {word} of {command}"


def test_the_words_of_the_overview_are_those_of_the_completions() -> None:
    """zsh shows the same summaries as the help does."""
    text = (COMPLETIONS / "_gpudctl").read_text()
    for name in SHOWN:
        assert f"'{name}:{COMMANDS[name].summary}'" in text


def test_a_parser_has_no_abbreviations() -> None:
    """An option that is added later cannot change what a script means."""
    assert all(not parser_for(name).allow_abbrev for name in SHOWN)
    assert isinstance(parser_for("load"), argparse.ArgumentParser)
