"""The page of all figures names every bench, keeps what hands wrote, and has nothing private in it."""

import argparse
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import all as every
from bench.all import BENCHES, BY_NAME, Outcome

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "benchmarks.md"
NO_BENCH = {"all", "manager"}
"""Modules that measure nothing themselves."""

KNOWN = {"gpud": "abc", "Python": "3"}


def given(**more: Any) -> argparse.Namespace:
    found = every.arguments().parse_args([])
    for name, value in more.items():
        setattr(found, name, value)
    return found


def modules() -> set[str]:
    files = {path.stem for path in (TOP / "bench").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (TOP / "bench").glob("*/__main__.py")}
    return (files | packages) - NO_BENCH


def test_every_bench_is_run() -> None:
    """Whoever adds one adds it to the page."""
    assert {bench.name for bench in BENCHES} == modules()
    assert len(BY_NAME) == len(BENCHES)


def test_the_page_names_every_bench() -> None:
    """Each with a heading, in the order in which they run, and a link that leads to it."""
    page = PAGE.read_text()
    headings = re.findall(r"^## (\S+)$", page, re.M)
    assert headings == [bench.name for bench in BENCHES]
    assert re.findall(r"\[(\w+)\]\(#(\w+)\)", page) == [(name, name) for name in headings]


def test_the_page_is_as_it_is_written() -> None:
    """Written anew without a run it is the same but for the table of the machine and the date."""
    page = PAGE.read_text()
    machine = re.compile(r"## The machine\n.*?(?=\n## )", re.S)
    gpu = re.compile(r"## On a GPU\n.*?(?=\n<!-- by hand)", re.S)
    anew = every.composed(page, {}, KNOWN)
    assert gpu.sub("", machine.sub("", anew)) == gpu.sub("", machine.sub("", page))


def test_the_page_has_nothing_private() -> None:
    """No folder of a machine, and not its name."""
    page = PAGE.read_text()
    assert not re.search(r"/(home|root|tmp|work|mnt)/", page)
    assert str(TOP) not in page and str(Path.home()) + "/" not in page


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.name)
@pytest.mark.parametrize("quick", [False, True])
def test_each_bench_takes_what_it_is_given(bench: every.Bench, quick: bool) -> None:
    """Its own --help knows every option."""
    words = bench.words(given(quick=quick, minutes=1.0, llama_swap=Path("a"), ollama=Path("b"), readme=Path("c")))
    command = [sys.executable, "-m", f"bench.{bench.name}", *(word for word in words if word == "table"), "--help"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert not word.startswith("--") or re.search(rf"{word}\b", done.stdout), word


def test_what_hands_wrote_and_what_was_not_run_is_kept() -> None:
    """One bench is run again: nothing else of the page changes but the machine."""
    first = every.composed("", {"gguf": "old figures", "core": "of the core"}, KNOWN)
    mark = f"<!-- by hand: {every.BAR_HAND} -->\n"
    first = first.replace(f"{mark}\n", f"{mark}Because.\n\n- It is so.\n")
    assert "Because." in first
    second = every.composed(first, {"gguf": "new figures"}, KNOWN)
    assert second == first.replace("old figures", "new figures")
    assert every.former(second, BY_NAME["shell"]) == every.NOT_YET


def test_nothing_private_gets_in() -> None:
    """Folders, programs' places and the machine's name are taken out of what benches print."""
    text = f"{TOP}/bench/x.py /tmp/gpud-bench-1/a/sock {socket.gethostname()}: /opt/peer/llama-swap /v1/models"
    said = every.public(text, given(llama_swap=Path("/opt/peer/llama-swap")))
    assert said == "bench/x.py sock localhost: llama-swap /v1/models"


def body(bench: str, outcome: Outcome) -> str:
    return every.told(BY_NAME[bench], given(), 0.5, "abc", outcome)


def test_a_bench_that_fails_is_told_as_that() -> None:
    """With what it said last, as text, whatever it prints otherwise."""
    text = body("peers", Outcome("| half a table", "ended with status 1", 2.0))
    assert "**It ended with status 1**" in text and "```text\n| half a table\n```" in text


def test_tables_stand_as_tables_and_the_rest_as_text() -> None:
    """What a bench says beside its figures stands above them."""
    assert body("peers", Outcome("# no router\n| a |\n|---|", "", 2.0)).endswith("no router.\n\n| a |\n|---|")
    assert body("core", Outcome("start  1 ms", "", 2.0)).endswith("```text\nstart  1 ms\n```")


SLEEPER = (
    "import subprocess, sys, time; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); time.sleep({:g})"
)


def test_a_bench_that_does_not_end_is_ended_with_all_that_it_started() -> None:
    """It is told with its bound, and what it had said by then is kept."""
    outcome = every.run([sys.executable, "-c", SLEEPER.format(600)], 5.0)
    assert outcome.trouble == "had not ended after 5 s, and was ended"
    settled(lambda: not psutil.pid_exists(int(outcome.text)) or is_zombie(int(outcome.text)))


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def settled(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("code", "trouble"), [("print(1)", ""), ("raise SystemExit(3)", "ended with status 3")])
def test_the_status_of_a_bench_counts(code: str, trouble: str) -> None:
    """0 is well."""
    assert every.run([sys.executable, "-c", code], 60).trouble == trouble


def test_one_bench_into_a_page_of_its_own(tmp_path: Path) -> None:
    """The command as a whole: the one section is filled, the others wait; a bar that is missed is told by both."""
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "bench.all", "--quick", "--only", "gguf", "faults", "--output", str(page)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=300, check=False)
    text = page.read_text()
    filled = every.former(text, BY_NAME["gguf"])
    assert "`.venv/bin/python -m bench.gguf --repeats 1`" in filled and "header read" in filled
    assert done.returncode == int("**It ended with status 1**" in filled), done.stdout + done.stderr
    assert every.former(text, BY_NAME["faults"]).startswith("Left out: it runs as long as")
    assert every.former(text, BY_NAME["core"]) == every.NOT_YET


def test_an_unknown_bench_is_refused() -> None:
    """With those that there are."""
    done = subprocess.run([sys.executable, "-m", "bench.all", "--only", "cor"], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 2
    assert "core" in done.stderr
