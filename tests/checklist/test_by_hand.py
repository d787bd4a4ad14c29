"""What people type: the bus by hand with nothing of gpud's own tools, and what they then see in the log."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_model
from daemon.harness import NAME, PATH, Daemon, Place, engine, gone, settle

WHERE = (NAME, PATH, NAME)
BOUND_S = 60


@pytest.fixture
def daemon(place: Place) -> Iterator[Daemon]:
    """With a model of llama.cpp that goes by two names, and one of somebody else's."""
    file = str(tiny_model.write(place.root / "tiny.gguf"))
    place.configure(
        {"tiny": {"engine": "embedded", "file": file, "aliases": ["small"]}, "other": engine(), "spare": engine()}
    )
    yield place.start()


def ask(program: str, place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words],
        env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": place.address},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def busctl(place: Place, *words: str) -> str:
    done = ask("busctl", place, "--user", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(place: Place) -> dict[str, Any]:
    answer = json.loads(busctl(place, "--json=short", "call", *WHERE, "Status"))
    assert answer["type"] == "a{sv}"
    (shown,) = answer["data"]
    return {key: value["data"] for key, value in shown.items()}


def state(place: Place, model: str) -> str:
    return str(next(m["State"]["data"] for m in status(place)["Models"] if m["Id"]["data"] == model))


def test_load_status_and_unload_with_busctl(place: Place, daemon: Daemon) -> None:
    """The first load is job 1. The status is one record with the state, the models and the memory."""
    assert busctl(place, "call", *WHERE, "Load", "s", "tiny") == "u 1"
    assert daemon.wait_job(1).result == "done"
    shown = status(place)
    assert (shown["State"], shown["LoadedModels"], shown["ActiveModel"]) == ("active", ["tiny"], "tiny")
    assert {"Version", "Models", "Gpus", "Jobs", "Holds", "VramTotal", "VramBudget", "VramUsed"} <= set(shown)
    assert shown["VramTotal"] >= shown["VramBudget"] > 0 and shown["VramUsed"] > 0
    assert busctl(place, "get-property", *WHERE, "LoadedModels") == 'as 1 "tiny"'
    assert busctl(place, "call", *WHERE, "Load", "s", "small") == "u 2", "an alias"
    assert busctl(place, "call", *WHERE, "Unload", "s", "tiny") == "u 3"
    assert daemon.wait_job(3).result == "done"
    assert state(place, "tiny") == "unloaded"
    daemon.aftermath()


def test_all_models_go_by_one_word(place: Place, daemon: Daemon) -> None:
    """``all`` and the empty name are one job, whose message says how many went and what that gave back."""
    for word in ("all", ""):
        for model in ("tiny", "other"):
            daemon.load(model)
        kind, job = busctl(place, "call", *WHERE, "Unload", "s", word).split()
        assert kind == "u"
        assert daemon.wait_job(int(job)).message.startswith("unloaded 2 models, freed ")
        assert status(place)["LoadedModels"] == []
    daemon.aftermath()


def test_a_refusal_has_a_name_and_says_what_to_do(place: Place, daemon: Daemon) -> None:
    """An unknown model is refused with the nearest name; what is not loaded cannot be unloaded."""
    where = ("call", "--session", "-d", NAME, "-o", PATH, "-m")
    refused = ask("gdbus", place, *where, f"{NAME}.Load", "tinny")
    assert f"{NAME}.Error.NoSuchModel" in refused.stderr and 'did you mean "tiny"?' in refused.stderr
    refused = ask("gdbus", place, *where, f"{NAME}.Unload", "tiny")
    assert f"{NAME}.Error.NotLoaded" in refused.stderr
    daemon.aftermath()


@contextmanager
def watching(place: Place) -> Iterator["subprocess.Popen[str]"]:
    """gdbus, which prints each signal on a line."""
    command = ["gdbus", "monitor", "--session", "-d", NAME, "-o", PATH]
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": place.address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            while "is owned by" not in process.stdout.readline():
                pass
            yield process
        finally:
            process.kill()


def until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    """What was signalled up to the line with these words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"{words!r} did not come: {lines}")


def test_a_desktop_is_told_without_asking(place: Place, daemon: Daemon) -> None:
    """What a widget shows comes as PropertiesChanged with the new values; so is the end of the job."""
    with watching(place) as monitor:
        job = daemon.ask_load("tiny")
        seen = "".join(until(monitor, "'LoadedModels': <['tiny']>"))
        assert "PropertiesChanged ('org.kernelcore.GpuD', {'State': <'loading'>" in seen
        assert "ModelStateChanged ('tiny', 'loading', " in seen
        assert f"JobRemoved (uint32 {job}, 'tiny', 'done', " in seen
        daemon.unload("tiny")
        assert "@as [])" in until(monitor, "'LoadedModels': <@as []>")[-1], "nothing is only invalidated"
    daemon.aftermath()


def test_an_idle_model_goes_and_a_working_one_stays(place: Place) -> None:
    """After its time without a request a model is unloaded, and the log has the reason and what it gave back; one that
    still answers after that time is not; with a time of 0 a model stays."""
    working = engine("--stream-every", "0.01", busy={"get": "/queue", "any": ["queue_running"]}, idle_timeout="1s")
    place.configure(
        {"idle": engine(idle_timeout="1s"), "working": working, "kept": engine(idle_timeout=0), "spare": engine()}
    )
    daemon = place.start()
    with daemon.held("working") as record, daemon.held("idle") as idle:
        assert daemon.load("kept").result == "done"
        stream = place.stream(record, "GET", "/stream")
        assert stream.read()
    with stream:
        daemon.wait_state("idle", "unloaded")
        assert gone(idle["child"]["pid"])
        daemon.wait_log(r'"idle" has been idle for \d+ s')
        daemon.wait_log('"idle" is unloaded, .* given back')
        assert daemon.state("working") in ("ready", "busy")
        assert daemon.model("kept")["UnloadAtUSec"] == 0
        assert stream.read()
    daemon.wait_state("working", "unloaded")
    assert daemon.state("kept") == "ready"
    daemon.aftermath()


def test_each_cause_of_a_failed_load_has_words_of_its_own(place: Place) -> None:
    """A file that is not there, one that is no model, one that is cut short, a missing program, and no room."""
    whole = tiny_model.write(place.root / "tiny.gguf")
    (place.root / "notes.gguf").write_text("these are my notes")
    cut = tiny_model.write_broken(place.root / "cut.gguf", "truncated-tensors")

    def embedded(path: object, **settings: object) -> dict[str, object]:
        return {"engine": "embedded", "file": str(path), **settings}

    place.configure(
        {
            "gone": embedded(place.root / "gone.gguf"),
            "notes": embedded(place.root / "notes.gguf"),
            "cut": embedded(cut),
            "wide": embedded(whole, size="3000GiB"),
            "lost": {"engine": "llama_server", "file": str(whole)},
            "spare": engine(),
        },
        engines={"llama_server": {"binary": "/no/such/llama-server"}},
    )
    daemon = place.start()
    words = {
        "gone": f"{place.root}/gone.gguf",
        "notes": "not a GGUF",
        "cut": "cut.gguf",
        "wide": "needs 3000.0 GiB",
        "lost": "/no/such/llama-server",
    }
    said = {}
    for name, word in words.items():
        ended = daemon.load(name)
        assert ended.result == "failed" and word in ended.message, ended
        said[name] = ended.message
        assert daemon.model(name)["Error"], name
    assert len({message.replace(name, "") for name, message in said.items()}) == len(words)
    settle(lambda: not place.children(), "no engine is left")
    daemon.aftermath()
