"""Idleness on the whole daemon: what nobody uses goes, what answers stays, what belongs to others is left alone."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_ollama import write_model

from .harness import BOUND_S, ENGINE, PYTHON, TOP, Daemon, Place, embedded, engine, gone, llama_server, settle, tiny

FAKE_OLLAMA = TOP / "tests" / "backends" / "fake_ollama.py"


def _stream_for(place: Place, daemon: Daemon, record: dict[str, object], seconds: float) -> None:
    """A long answer of llama.cpp's server that is read slowly; nothing may cut it, and its model stays loaded."""
    body = {"prompt": "once", "n_predict": 30000, "stream": True, "cache_prompt": False}
    deadline = time.monotonic() + seconds
    with place.stream(record, "POST", "/completion", body) as stream:
        assert b"200" in stream.read()
        while time.monotonic() < deadline:
            assert stream.read(), f"the answer was cut\n{daemon.log()}"
            assert daemon.state("model") in ("ready", "busy")
            time.sleep(0.02)  # As slowly as a person reads: the engine waits for its client.


def _unloads_when_idle_but_never_while_it_answers(place: Place, model: dict[str, object]) -> None:
    place.configure({"model": {**model, "idle_timeout": "1s"}, "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    _stream_for(place, daemon, record, 2.5)
    daemon.wait_state("model", "unloaded")
    assert gone(record["child"]["pid"])
    assert "idle" in {s.body[2] for s in daemon.client.signals if s.member == "ModelStateChanged"}
    daemon.wait_log('"model" has been idle for')
    daemon.aftermath()


def test_the_embedded_engine_is_unloaded_when_idle_and_never_while_it_answers(place: Place) -> None:
    """A stream of more than twice the idle time, straight to the engine: gpud sees it only by asking the engine."""
    model = embedded(tiny(place.root / "tiny.gguf"), context=32768, size="200MiB")
    _unloads_when_idle_but_never_while_it_answers(place, model)


@pytest.mark.engines
def test_the_real_llama_server_is_unloaded_when_idle_and_never_while_it_answers(place: Place) -> None:
    """The same with llama.cpp's own program."""
    model = embedded(tiny(place.root / "tiny.gguf"), context=32768, size="200MiB")
    place.sections = {"engines": llama_server()}
    _unloads_when_idle_but_never_while_it_answers(place, {**model, "engine": "llama_server"})


def test_a_killed_embedded_engine_is_started_again(place: Place) -> None:
    """kill -9 of the real engine in the middle of an answer."""
    place.configure(
        {"model": embedded(tiny(place.root / "tiny.gguf"), context=32768, size="200MiB"), "spare": engine()}
    )
    daemon = place.start()
    record = daemon.loaded("model")
    body = {"prompt": "once", "n_predict": 30000, "stream": True}
    with place.stream(record, "POST", "/completion", body) as stream:
        assert b"200" in stream.read()
        place.kill(record["child"]["pid"])
        stream.rest()
    daemon.wait_log('"model": the engine was ended by signal 9')
    daemon.wait_state("model", "ready")
    daemon.aftermath()


def test_an_idle_time_that_was_set_at_run_time_holds(place: Place) -> None:
    """For what is loaded already, until the next reload; pinned models stay."""
    place.configure({"model": engine(), "pinned": engine(pinned=True), "spare": engine()})
    daemon = place.start()
    daemon.wait_state("pinned", "ready")
    daemon.loaded("model")
    daemon.call("SetIdleTimeout", "t", 300_000)
    daemon.wait_state("model", "unloaded")
    assert daemon.state("pinned") == "ready"
    daemon.reload()
    assert daemon.load("model").result == "done"
    assert daemon.model("model")["UnloadAtUSec"] > (time.time() + 250) * 1e6
    daemon.aftermath()


def test_an_idle_time_of_a_reload_holds(place: Place) -> None:
    """A shorter one is for what is loaded already, too: its engine stays as it is until it was idle for so long."""
    place.configure({"model": engine(), "spare": engine()}, idle={"timeout": "1h"})
    daemon = place.start()
    pid = daemon.loaded("model")["child"]["pid"]
    assert daemon.model("model")["UnloadAtUSec"] > (time.time() + 3000) * 1e6
    place.configure({"model": engine(), "spare": engine()}, idle={"timeout": "5m"})
    daemon.reload()
    assert time.time() * 1e6 < daemon.model("model")["UnloadAtUSec"] < (time.time() + 310) * 1e6
    assert daemon.loaded("model")["child"]["pid"] == pid
    place.configure({"model": engine(), "spare": engine()}, idle={"timeout": "200ms"})
    daemon.reload()
    daemon.wait_state("model", "unloaded")
    assert re.search(r'"model" .*idle', daemon.log()), daemon.log()
    daemon.aftermath()


def test_a_held_model_is_not_idle(place: Place) -> None:
    """Twice its idle time under a hold; a moment after the release its time begins anew."""
    place.configure({"model": engine(idle_timeout="500ms"), "spare": engine()})
    daemon = place.start()
    daemon.wait_job(daemon.ask_load("model", hold=("b", True)))
    time.sleep(1.2)  # Nothing happens, and that is what is looked at.
    assert daemon.state("model") == "ready"
    holder, daemon_client = daemon.client, place.client()
    cookie = holder.call("Status")["Holds"][1][0]["Cookie"][1]
    holder.call("Release", "u", cookie)
    daemon.wait_state("model", "unloaded")
    assert daemon_client.call("ListModels")
    daemon.aftermath()


def test_a_busy_engine_is_not_idle_by_its_own_word(place: Place) -> None:
    """A custom engine is asked by the configured field; it goes after it has said that it is done."""
    busy = engine("--busy", "1", idle_timeout="300ms", busy={"get": "/prompt", "any": ["exec_info.queue_remaining"]})
    place.configure({"model": busy, "spare": engine()})
    daemon = place.start()
    record = daemon.loaded("model")
    time.sleep(1.2)  # Four times its idle time.
    assert daemon.state("model") == "ready"
    with place.stream(record, "POST", "/set", {"busy": 0}) as stream:
        assert b"200" in stream.rest()
    daemon.wait_state("model", "unloaded")
    daemon.aftermath()


def test_an_engine_that_does_not_answer_whether_it_is_busy_does_not_stay_for_ever(place: Place) -> None:
    """Frozen: the question is given up, and the ladder ends it."""
    frozen = engine(
        idle_timeout="300ms",
        busy={"get": "/queue", "any": ["queue_running"]},
        stop={"drain": 1, "term": "300ms", "second_term": "300ms"},
    )
    place.configure({"model": frozen, "spare": engine()})
    daemon = place.start()
    with daemon.held("model") as record:
        pid = record["child"]["pid"]
        os.kill(pid, 19)  # SIGSTOP
    daemon.wait_state("model", "unloaded")
    assert gone(pid)
    daemon.aftermath()


# What belongs to others --------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """An engine that somebody else runs: its process, its port, and what it was asked."""
    requests = tmp_path / "requests"
    process = subprocess.Popen(
        [PYTHON, str(ENGINE), "--requests", str(requests)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        yield process, port, requests
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_an_attached_engine_is_used_and_never_stopped(
    place: Place, elsewhere: tuple[subprocess.Popen[str], int, Path]
) -> None:
    """Loaded, asked to give its memory back, loaded again, crashed with the daemon, shut down with it: it lives on."""
    process, port, requests = elsewhere
    attached = {
        "engine": "custom",
        "url": f"http://127.0.0.1:{port}",
        "health": "/health",
        "size": "10MiB",
        "idle_timeout": "500ms",
        "unload": {"post": "/free", "body": {"unload_models": True}},
    }
    place.configure({"elsewhere": attached, "spare": engine()})
    daemon = place.start()
    assert daemon.load("elsewhere").result == "done"
    daemon.wait_state("elsewhere", "unloaded")
    assert 'POST /free {"unload_models": true}' in requests.read_text()
    assert daemon.load("elsewhere").result == "done"
    daemon.kill9()
    assert process.poll() is None
    place.configure({"elsewhere": {**attached, "idle_timeout": "5m"}, "spare": engine()})
    again = place.start()
    assert again.state("elsewhere") in ("ready", "unloaded")
    assert again.load("elsewhere").result == "done"
    assert again.unload("elsewhere", force=True).result == "done"
    again.aftermath()
    assert process.poll() is None
    with socket.create_connection(("127.0.0.1", port), BOUND_S):
        pass


def test_an_attached_engine_that_is_not_there_is_refused(place: Place) -> None:
    """With its address; no attempt is counted."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        attached = {"engine": "custom", "url": f"http://127.0.0.1:{port}", "health": "/health", "size": "10MiB"}
        place.configure({"elsewhere": attached, "spare": engine()})
        daemon = place.start()
        for _ in range(7):
            ended = daemon.load("elsewhere")
            assert ended.result == "failed" and str(port) in ended.message, ended
    assert daemon.model("elsewhere")["Attempts"] == 0
    daemon.aftermath()


# Ollama ------------------------------------------------------------------------------------------------------------


def _asked(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _with_ollama(place: Place, **model: object) -> Path:
    """Two models in a stand-in of ``ollama serve``; returns where its requests are written down."""
    store = place.root / "store"
    store.mkdir()
    requests = place.root / "requests"
    for name in ("one", "two"):
        write_model(store, name)
    ollama = {
        "binary": str(FAKE_OLLAMA),
        "models_dir": str(store),
        "environment": {"FAKE_OLLAMA_RECORD": str(requests)},
    }
    place.sections = {"engines": {"ollama": ollama}}
    models = {name: {"engine": "ollama", "model": name, "size": "50MiB", **model} for name in ("one", "two")}
    place.configure({**models, "spare": engine()})
    return requests


def test_idle_ollama_models_are_unloaded_by_name(place: Place) -> None:
    """Each gets its own keep_alive of 0, never an empty name; the journal says for how long it had been idle."""
    requests = _with_ollama(place, idle_timeout="700ms")
    daemon = place.start()
    for name in ("one", "two"):
        assert daemon.load(name).result == "done", daemon.log()
    for name in ("one", "two"):
        daemon.wait_state(name, "unloaded")
        daemon.wait_log(f'"{name}" has been idle for')
        daemon.wait_log(f'"{name}" is unloaded, .* given back: it was idle')
    bodies = [r["body"] for r in _asked(requests) if isinstance(r.get("body"), dict)]
    unloads = [body for body in bodies if body.get("keep_alive") == 0]  # type: ignore[union-attr]
    assert {str(body["model"]).partition(":")[0] for body in unloads} >= {"one", "two"}  # type: ignore[index]
    assert all(body.get("model") for body in bodies if "keep_alive" in body)  # type: ignore[union-attr,operator]
    daemon.aftermath()


def test_a_killed_ollama_takes_its_models_with_it_and_comes_back(place: Place) -> None:
    """kill -9 of ``ollama serve``: its orphaned runners are ended, its models are loaded again."""
    _with_ollama(place)
    daemon = place.start()
    for name in ("one", "two"):
        assert daemon.load(name).result == "done", daemon.log()
    before = set(place.children())
    server = next(pid for pid, command in place.children().items() if " serve" in command)
    place.kill(server)
    for name in ("one", "two"):
        daemon.wait_log(f'"{name}": the engine')
        daemon.wait_state(name, "ready")
    settle(lambda: all(gone(pid) for pid in before), "nothing of the first server is left")
    daemon.aftermath()


def test_a_killed_daemon_leaves_no_ollama(place: Place) -> None:
    """In the foreground the server ends with the daemon, and its runners at the latest with the next one's start."""
    _with_ollama(place)
    daemon = place.start()
    assert daemon.load("one").result == "done", daemon.log()
    before = set(place.children())
    daemon.kill9()
    again = place.start()
    settle(lambda: all(gone(pid) for pid in before), f"nothing is left of {before}")
    assert again.load("one").result == "done"
    again.aftermath()


def test_a_reload_ends_an_ollama_server_that_nobody_is_configured_for(place: Place) -> None:
    """Its options have changed, and it was to be kept running: the old server goes with its last model, the new one is
    started when it is needed."""
    _with_ollama(place)
    engines = place.sections["engines"]
    assert isinstance(engines, dict)
    engines["ollama"]["keep_running"] = True
    models = {name: {"engine": "ollama", "model": name, "size": "50MiB"} for name in ("one", "two")}
    place.configure({**models, "spare": engine()})
    daemon = place.start()
    assert daemon.load("one").result == "done"
    before = set(place.children())
    engines["ollama"]["environment"]["OLLAMA_FLASH_ATTENTION"] = "1"
    place.configure({**models, "spare": engine()})
    daemon.reload()
    daemon.wait_state("one", "unloaded")
    settle(lambda: all(gone(pid) for pid in before), "the old server is gone")
    assert daemon.load("one").result == "done", daemon.log()
    assert daemon.unload().result == "done"
    assert daemon.stop() == 0
    place.check_empty()
