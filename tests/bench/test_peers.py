"""The comparison with other managers: that it runs, that it says what it saw, and that it writes only where it may."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.peers import client
from bench.peers.measures import Figure
from bench.peers.table import BEGIN, END, NoPlace, note, table, write

TOP = Path(__file__).resolve().parents[2]
BOUND_S = 300


def bench(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run it, with a mark by which every process of it is found."""
    command = [sys.executable, "-m", "bench.peers", *map(str, words)]
    mark = {**os.environ, **environment}
    return subprocess.run(command, cwd=TOP, env=mark, capture_output=True, text=True, timeout=BOUND_S, check=False)


@pytest.mark.engines
def test_gpud_beside_the_engine_alone(tmp_path: Path) -> None:
    """Every figure is there, of the real gpud and the real llama-server; afterwards no process and no file is left."""
    document = tmp_path / "page.md"
    document.write_text(f"# before\n{BEGIN}\nold\n{END}\nafter\n")
    short = Path(f"/tmp/gpud-p-{os.getpid()}")  # A socket's path has room for 107 bytes.
    short.mkdir()
    try:
        done = bench("--quick", "--without-router", "--json", "--write", document, TMPDIR=str(short))
        assert done.returncode == 0, done.stderr[-5000:]
        assert not list(short.iterdir())
    finally:
        short.rmdir()
    told = json.loads(done.stdout)
    assert told["arms"] == ["llama-server alone", "gpud"]
    figures = {figure["key"]: figure for figure in told["figures"]}
    measured = {"rate_per_s", "cold_ms", "swap_ms", "resident_mib", "switches_per_s", "added_p50_ms", "added_p99_ms"}
    assert measured <= figures.keys() and all(figures[key]["values"]["gpud"] for key in measured)
    assert figures["rate_per_s"]["values"]["gpud"][0] > 0
    assert figures["crossing"]["words"]["gpud"] == "answered; the other one answered"
    assert figures["engine_after_kill"]["words"]["gpud"] == "taken over"
    assert figures["request_after_kill"]["words"]["gpud"].startswith("answered, ")
    page = document.read_text()
    assert page.startswith("# before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| taken over |" in page and "llama-swap" not in page
    assert "no --ollama was given" in done.stderr and "no --llama-swap was given" in done.stderr
    assert not [each.pid for each in psutil.process_iter() if str(short) in " ".join(arguments(each))]


def arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("option", ["--llama-swap", "--ollama", "--llama-server"])
def test_a_program_that_is_not_there_is_named(option: str) -> None:
    """Before anything is started."""
    done = bench(option, "/there/is/none")
    assert done.returncode == 2
    assert "there is no /there/is/none" in done.stderr


def test_a_document_without_a_place_is_said_before_the_run(tmp_path: Path) -> None:
    """Two minutes of measuring are not thrown away."""
    document = tmp_path / "page.md"
    document.write_text("nothing\n")
    done = bench("--write", document)
    assert done.returncode == 2
    assert BEGIN in done.stderr
    with pytest.raises(NoPlace, match=r"page\.md"):
        write(document, "a table")
    assert document.read_text() == "nothing\n"


def test_a_table_has_medians_and_spreads() -> None:
    """What could not be measured of somebody is a dash; what adds to nothing is the whole."""
    figure = Figure("cold_ms", "first byte, added", "ms", 1, {"alone": [3.0, 1.0, 2.0], "gpud": [1.5]})
    fate = Figure("fate", "the engine", words={"gpud": "taken over"})
    assert table([figure, fate], ["alone", "gpud"]).splitlines()[2:] == [
        "| first byte, added | 2.0 ms (1.0 to 3.0) in all | 1.5 ms |",
        "| the engine | – | taken over |",
    ]


@pytest.mark.parametrize(("load", "is_said"), [((2.9, 6.0), False), ((3.1, 1.0), True)])
def test_a_busy_machine_is_told(load: tuple[float, float], is_said: bool) -> None:
    """Figures that others had a hand in are marked as such."""
    text = note({"gpud": "abc"}, "today", "2 processors", load)
    assert ("Others used the machine" in text) is is_said


def test_a_server_that_does_not_answer_is_no_figure() -> None:
    """It is told as what it is, and not measured."""
    with pytest.raises(client.Broken, match="does not answer"):
        client.until_answered(1, "/health", bound_s=0.05)
