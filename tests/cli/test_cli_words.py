"""The command line itself: help, mistakes, durations, and what must not be imported."""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_place import GPUDCTL, Place, finish

from gpud.cli.arguments import duration, patience, size, whole
from gpud.cli.bench import Result, Sample
from gpud.cli.commands import COMMANDS, load_command, parser_for
from gpud.cli.output import brief, mib, span, table
from gpud.cli.output import size as shown_size
from gpud.cli.status import snake

SHOWN = [name for name, command in COMMANDS.items() if not command.hidden]


@pytest.fixture
def alone(tmp_path: Path) -> Place:
    """No bus at all."""
    return Place(tmp_path)


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_explains_itself(name: str) -> None:
    """Each has a description, examples, and words for each argument; each example is a right command line."""
    module = load_command(name)
    parser = parser_for(name, module)
    assert module.DESCRIPTION.strip().endswith(".")
    for action in parser._actions:
        assert action.help, f"{name}: {action.option_strings or action.dest} has no help"
    assert module.EXAMPLES
    mine = 0
    for example in module.EXAMPLES:
        for words in commands_in(example):
            command = next(word for word in words if word in COMMANDS)
            words.remove(command)
            parsed = parser_for(command).parse(words)
            assert isinstance(parsed, argparse.Namespace)
            mine += command == name
    assert mine, f"{name}: no example shows the command itself"


def commands_in(example: str) -> list[list[str]]:
    """The command lines of gpudctl in an example, each without its first word."""
    found: list[list[str]] = []
    current: list[str] | None = None
    lexer = shlex.shlex(example, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in lexer:
        if word in ("&&", "|", ";", ")", "&", "$("):
            current = None
        elif word == "gpudctl":
            current = []
            found.append(current)
        elif current is not None:
            current.append(word)
    return found


def test_the_overview_names_every_command(alone: Place) -> None:
    """gpudctl --help and gpudctl help list the commands, the options of all, and the statuses."""
    text = alone.gpudctl("--help").stdout
    assert alone.gpudctl("help").stdout == text == alone.gpudctl("-h").stdout
    for name in SHOWN:
        assert f"\n  {name} " in text
    assert "_complete" not in text
    for word in ("--user", "--system", "--json", "--no-color", "GPUD_BUS", "NO_COLOR", "Exit status"):
        assert word in text


def test_help_of_a_command_in_three_ways(alone: Place) -> None:
    """help COMMAND, COMMAND --help and --json COMMAND -h say the same and need no daemon."""
    texts = {alone.gpudctl(*words).stdout for words in (("help", "load"), ("load", "--help"), ("--json", "load", "-h"))}
    (text,) = texts
    assert text.startswith("usage: gpudctl load")
    assert "Examples:\n  gpudctl load " in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("lod",), 'there is no command "lod"; did you mean "gpudctl load"?'),
        (("load",), 'load: the following arguments are required: MODEL; see "gpudctl load --help"'),
        (("load", "--contxt", "5", "x"), "load: unrecognized arguments: --contxt"),
        (("load", "--context", "many", "x"), 'load: argument --context: "many" is not a whole number from 1 to'),
        (("load", "--idle-timeout", "soon", "x"), 'load: argument --idle-timeout: "soon" is not a duration; write 90,'),
        (
            ("unload", "--all", "x"),
            "unload: --all takes no names of models; leave out either --all or the names",
        ),
        (("wait", "--state", "asleep", "x"), "wait: argument --state: invalid choice"),
        (("run", "--hold", "x"), "run: there is no command to run; write it after --"),
        (("run", "--", "ls"), "run: there is nothing to hold or claim; give --hold MODEL or --vram SIZE"),
        (("run", "--hold", "x", "--vram", "1G", "--", "ls"), "run: --hold and --vram cannot be combined; --hold keeps"),
        (("run", "--hold", "x", "--wait", "5", "--", "ls"), "run: --wait needs --vram"),
        (("run", "--vram", "1G"), "run: there is no command to run; write it after --"),
        (("run", "--vram", "much", "--", "ls"), 'run: argument --vram: "much" is not a size; write 8GiB, 1.5G'),
        (("run", "--vram", "1G", "--wait", "never", "--", "ls"), 'run: argument --wait: "never" is not a time to wait'),
        (("run", "--vram", "1G", "--priority", "urgent", "--", "ls"), "run: argument --priority: invalid choice"),
        (("explain", "-n", "0"), 'explain: argument -n/--lines: "0" is not a whole number from 1 to 500'),
        (("--user", "--system", "status"), "status: argument --system: not allowed with argument --user"),
        (("--frobnicate", "status"), '"--frobnicate" needs a command before it'),
        (("config", "mend"), "config: argument action: invalid choice: 'mend'"),
        (("unload", ""), "unload: the model's name is empty; name a model, or write --all"),
        (("reset", ""), "reset: the model's name is empty; name a model"),
    ],
)
def test_a_wrong_command_line(alone: Place, words: tuple[str, ...], told: str) -> None:
    """Status 2, one line that says what is wrong, and where to read on."""
    done = alone.gpudctl(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gpudctl: {told}")
    assert len(done.stderr.splitlines()) == 1


def test_output_that_cannot_be_written_is_an_error(alone: Place) -> None:
    """A full disk, also where the error itself was to be written there: one line, and nothing of Python's."""
    told = "gpudctl: cannot write to standard output: No space left on device; "
    with open("/dev/full", "w") as full:
        for words in (("--help",), ("--json", "status"), ("version",), ("shell-hook", "bash")):
            status, _, said = finish(alone.start(*words, stdout=full))
            *before, last = said.splitlines()
            assert (status, last.startswith(told)) == (1, True), said
            assert len(before) <= 1 and "Traceback" not in said


def test_an_error_that_cannot_be_told_is_a_status(alone: Place) -> None:
    """The disk is full that standard error goes to."""
    with open("/dev/full", "w") as full:
        assert finish(alone.start("frobnicate", stderr=full)) == (2, "", None)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_whoever_closes_a_stream_hears_nothing_there(alone: Place, closed: str) -> None:
    """What was asked for is done, and no file that is opened meanwhile is taken for the stream."""
    shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *GPUDCTL]
    for words, status in ((("version",), 0), (("frobnicate",), 2)):
        done = subprocess.run([*shell, *words], env=alone.environment, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert bool(done.stdout) == (status == 0 and " >" not in f" {closed}")
        assert bool(done.stderr) == (status == 2 and "2>" not in closed)
        assert "Traceback" not in done.stderr


def test_options_may_stand_on_either_side(alone: Place) -> None:
    """Global options before the command and behind it mean the same."""
    assert alone.gpudctl("--json", "version").stdout == alone.gpudctl("version", "--json").stdout


def test_a_json_of_the_command_that_is_run_is_not_ours(alone: Place) -> None:
    """What stands behind -- belongs to the other command, --json and --help included."""
    parsed = parser_for("run").parse(["--hold", "x", "--", "tool", "--json", "--help"])
    assert isinstance(parsed, argparse.Namespace)
    assert (parsed.json, parsed.command[-3:]) == (False, ["tool", "--json", "--help"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("100ms", 0.1),
        ("2d", 172800),
        ("never", 0),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    """Plain seconds and units, alone or together."""
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "10x", "-5", "5m3", "1.2.3", "10 m x", "inf"])
def test_durations_that_are_none(text: str) -> None:
    """Anything else is refused rather than guessed at."""
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        duration(text)


def test_a_time_to_wait_may_be_none_at_all() -> None:
    """0 is now or never; never is no time to wait, and is not taken for 0."""
    assert (patience("0"), patience("10m")) == (0, 600)
    with pytest.raises(argparse.ArgumentTypeError, match="write 0 for no wait"):
        patience("never")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8 gib", 8 << 30),
        ("1.5G", 3 << 29),
        ("500MB", 500_000_000),
        ("1TB", 10**12),
        ("64k", 64 << 10),
        ("12B", 12),
    ],
)
def test_sizes_as_the_configuration_writes_them(text: str, size_bytes: int) -> None:
    """Binary units, with or without the iB; decimal ones with B."""
    assert size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "G", "1.5", "8GG", "8iG", "nan", "5000000000G", "1 2"])
def test_sizes_that_are_none(text: str) -> None:
    """Nothing, and more than there can be, are mistakes too."""
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        size(text)


def test_whole_numbers_within_bounds() -> None:
    """The bounds are part of what is allowed."""
    read = whole(1, 10)
    assert (read("1"), read("10")) == (1, 10)
    for text in ("0", "11", "1.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 10"):
            read(text)


def test_spans_have_two_units_at_most() -> None:
    """Short enough for a table."""
    assert [span(s) for s in (0, 59, 60, 3725, 90061, -3)] == ["0s", "59s", "1m", "1h 2m", "1d 1h", "0s"]


def test_sizes_have_the_unit_that_shows_them() -> None:
    """A small file is not shown as nothing."""
    sizes = (0, 1, 700 << 10, 1 << 20, 1536 << 20)
    assert [shown_size(one) for one in sizes] == ["0 MiB", "1 KiB", "700 KiB", "1 MiB", "1.5 GiB"]
    assert mib(700 << 10) == "700 KiB"


def test_empty_columns_are_left_out() -> None:
    """A table has no column in which nobody has anything."""
    from gpud.cli.output import Output

    lines = table(Output(), ("A", "B", "C"), [[("1", ""), ("", ""), ("long", "")], [("22", ""), ("", ""), ("", "")]])
    assert lines == ["A   C", "1   long", "22"]


def test_keys_of_the_bus_in_snake_case() -> None:
    """As gpudctl(1) documents them."""
    words = ("VramBytes", "LastUsedUSec", "IdleTimeoutUSec", "Id", "PowerMilliWatt", "UsedBytes")
    assert [snake(word) for word in words] == [
        "vram_bytes",
        "last_used_usec",
        "idle_timeout_usec",
        "id",
        "power_milli_watt",
        "used_bytes",
    ]


def imported(*words: str) -> set[str]:
    """The modules that a command line has imported at its end."""
    code = "import sys; from gpud.cli import main; main(sys.argv[1:]); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=30, check=True)
    return set(done.stdout.split())


def test_a_quick_command_imports_little() -> None:
    """version and help need neither a bus nor asyncio nor the daemon's records; status needs no rich in a pipe."""
    for words in (("version",), ("--help",), ("load", "--help")):
        assert not imported(*words) & {"asyncio", "dbus_next", "rich", "yaml", "gpud.core.facts", "dataclasses"}
    assert not imported("--user", "status") & {"rich", "yaml", "gpud.config", "gpud.core.facts", "psutil"}


def test_a_measurement_of_one_token_is_said_of_one() -> None:
    """And of a prompt of which the engine does not tell how long it is."""
    one = Sample(0.1, 0.1, 0, 1, counted=True)
    first = Result("tiny", "http://127.0.0.1:8080", 1, 1, 0.1, 0.2, 1, [one]).lines()[0]
    assert first.endswith("1 request, 1 at a time, prompts of unknown length, answers of 1 token")
    one = Sample(0.1, 0.1, 1, 2, counted=True)
    first = Result("tiny", "http://127.0.0.1:8080", 1, 2, 0.1, 0.2, 1, [one]).lines()[0]
    assert first.endswith("prompts of 1 token, answers of 2 tokens")


@pytest.mark.parametrize("late", ["argparse", "gpud.core.counts", "dbus_next.signature"])
def test_ctrl_c_while_it_is_still_being_read_ends_it_as_later(alone: Place, late: str) -> None:
    """Status 130 and not a word, whichever of its modules it was about to import."""
    # Where Python looks first: whoever wants this module is held up until somebody says go, who never comes.
    (alone.directory / "sitecustomize.py").write_text(f"""
import os, sys, time
class Held:
    def find_spec(self, name, path, target=None):
        if name == {late!r}:
            os.write(1, b"held\\n")
            while True:
                time.sleep(60)
sys.meta_path.insert(0, Held())
""")
    where = {"PYTHONPATH": f"{alone.directory}:{alone.environment['PYTHONPATH']}"}
    process = Place(alone.directory, alone.environment | where).start("unload", "tiny")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "")


@pytest.mark.parametrize(
    "line",
    [
        ("models", "set-priority", "tiny", "{}"),
        ("run", "--vram", "{}", "--", "true"),
        ("run", "--vram", "1MiB", "--", "{}"),
        ("estimate", "{}"),
        ("yield", "{}"),
        ("load", "--priority", "{}", "tiny"),
        ("{}",),
        ("--{}",),
    ],
)
@pytest.mark.parametrize("made_of", ["x", "a whole file\n"])
def test_what_is_longer_than_any_name_is_not_said_back(alone: Place, line: tuple[str, ...], made_of: str) -> None:
    """100 kB in the place of a word: its beginning is said, and what is wrong with it, for people and for programs."""
    words = [word.format((made_of * 100_000)[:100_000]) for word in line]
    done = alone.gpudctl("--json", *words)
    assert done.returncode in (1, 2, 127)
    assert len(done.stderr.splitlines()) == 1
    assert made_of.strip() in done.stderr
    assert len(done.stderr) < 2500 and len(done.stdout) < 2500


def test_what_may_be_read_is_said_whole() -> None:
    """A long list of problems, and the longest path there is."""
    path = "/" + "d/" * 500
    sentence = "\n".join(f'models.m{number}: "{path}" is no file' for number in range(50))
    assert brief(sentence) == sentence


def test_a_machine_that_cannot_be_called_so_is_nobody_who_answers(alone: Place) -> None:
    """Status 3 and one line, as for every other machine that is not there."""
    done = alone.gpudctl("chat", "tiny", "hello", "--url", f"http://{'x' * 100}.example")
    assert done.returncode == 3
    assert "no machine can have such a name" in done.stderr and len(done.stderr.splitlines()) == 1
