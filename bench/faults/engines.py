"""Engines that are killed, hang, refuse, speak nonsense, or take more than they said."""

import contextlib
import os
import signal
import time

from daemon.harness import CallFailed, Client, Signal, gone, wait_gone

from bench.faults.clients import GONE
from bench.faults.fault import Cuts, Over, Scene, fault, message
from bench.faults.models import REAL


@fault(Cuts.MODEL)
def engine_killed_idle(scene: Scene) -> Over:
    """kill -9 of an engine that is ready."""
    scene.system.place.kill(scene.engine_of(scene.model))
    return scene.answers


def _in_stream(scene: Scene, number: int) -> Over:
    """The signal reaches the engine in the middle of an answer of its own; that answer is cut, with a word."""
    body = {"model": scene.model, "messages": [], "stream": True, "do": "stream", "events": 100, "every": 0.02}
    with scene.system.doors.front.open("/v1/chat/completions", body) as stream:
        lines = (line for line in iter(stream.line, b"") if not line.startswith(b":"))
        if next(lines, b"") == b'data: {"number": 0}' and (pid := scene.system.pid_of(scene.model)):
            os.kill(pid, number)
            rest = list(lines)
            if number == signal.SIGKILL and not any(b'"error"' in line for line in rest):
                raise AssertionError(f"the stream of a killed engine ended without a word: {rest[-2:]}")
    return scene.answers


@fault(Cuts.MODEL)
def engine_killed_in_stream(scene: Scene) -> Over:
    """kill -9 of an engine in the middle of a stream."""
    return _in_stream(scene, signal.SIGKILL)


@fault(Cuts.MODEL)
def engine_terminated_in_stream(scene: Scene) -> Over:
    """Somebody ends an engine with TERM in the middle of a stream."""
    return _in_stream(scene, signal.SIGTERM)


@fault(Cuts.MODEL, also=("slow",))
def engine_killed_loading(scene: Scene) -> Over:
    """kill -9 of an engine that loads: who waits is told by which signal it ended."""
    scene.forgive("slow")
    with scene.client() as client:
        number = int(client.call("Load", "s", "slow"))
        scene.until(
            lambda: bool(scene.system.pid_of("slow")) or any(s.body[0] == number for s in _removed(client)), "it loads"
        )
        if (pid := scene.system.pid_of("slow")) and not gone(pid):
            os.kill(pid, signal.SIGKILL)
        client.wait_signal(lambda s: s.member == "JobRemoved" and s.body[0] == number)
    return lambda: scene.answers("slow")


def _removed(client: Client) -> list[Signal]:
    return [s for s in client.signals if s.member == "JobRemoved"]


@fault(Cuts.MODEL)
def engine_stopped(scene: Scene) -> Over:
    """An engine is stopped (SIGSTOP) for a second and goes on: its answers come late."""
    pid = scene.engine_of(scene.model)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(pid, signal.SIGCONT)
    return scene.answers


@fault(Cuts.MODEL, also=REAL, needs_real=True)
def real_engine_killed(scene: Scene) -> Over:
    """kill -9 of a real llama-server, of the child that has the embedded engine, or of Ollama's server or runner."""
    model = scene.chance.choice(REAL)
    if model == "ollama":
        scene.answers(model)
        pids = [pid for pid, what in scene.system.place.children().items() if "ollama" in what]
        pid = scene.chance.choice(sorted(pids)) if pids else scene.engine_of(model)
    else:
        pid = scene.engine_of(model)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return lambda: scene.answers(model)


@fault(also=("stuck",))
def engine_hangs_at_start(scene: Scene) -> Over:
    """An engine never becomes healthy: the load fails after its time, the engine is ended."""
    _fails(scene, "stuck", "1 s")
    return scene.answers


@fault(also=("stuck",))
def load_called_off(scene: Scene) -> Over:
    """A load that hangs is called off by an unload."""
    with scene.client() as client, contextlib.suppress(CallFailed):
        number = int(client.call("Load", "s", "stuck"))
        client.call("Unload", "s", "stuck")
        client.wait_signal(lambda s: s.member == "JobRemoved" and s.body[0] == number)
    return scene.answers


@fault(also=("deaf",))
def engine_ignores_term(scene: Scene) -> Over:
    """An engine ignores TERM, twice: it is killed, and the unload is done."""
    ended = scene.load_job("deaf")
    if ended.result == "done":
        pid = scene.system.pid_of("deaf")
        ended = scene.unload_job("deaf")
        if ended.result != "done":
            raise AssertionError(f"the unload of an engine that ignores TERM: {ended}")
        if pid:
            wait_gone(pid)
    return scene.answers


@fault(also=("broke",))
def engine_out_of_memory(scene: Scene) -> Over:
    """An engine ends as it starts, with the words of a GPU that has no memory left: they are told."""
    _fails(scene, "broke", "the GPU's memory was exhausted")
    return scene.answers


def _fails(scene: Scene, model: str, words: str) -> None:
    """Its load fails and says so; how often is not counted against the next time."""
    scene.forgive(model)
    ended = scene.load_job(model)
    if ended.result != "failed" or (words not in ended.message and "memory already" not in ended.message):
        raise AssertionError(f"a load of {model} ended as {ended}, not with {words!r}")
    scene.forgive(model)


@fault(also=("parent",))
def engine_leaves_a_child(scene: Scene) -> Over:
    """An engine is killed that has started another process, in a session of its own, deaf to TERM: it goes too."""
    if scene.load_job("parent").result == "done" and (pid := scene.system.pid_of("parent")):
        scene.system.place.kill(pid)
        wait_gone(pid)
    scene.forgive("parent")
    return scene.answers


@fault(also=("greedy",))
def engine_outgrows_its_estimate(scene: Scene) -> Over:
    """An engine takes five times what it was said to need while it loads: it is ended before others are hurt."""
    with scene.client() as client:
        number = int(client.call("Load", "s", "greedy"))
        with contextlib.suppress(AssertionError):
            client.wait_signal(lambda s: s.member == "JobRemoved" and s.body[0] == number, timeout_s=2.5)
    scene.forgive("greedy")
    return scene.answers


@fault(Cuts.MODEL)
def engine_answers_500(scene: Scene) -> Over:
    """An engine refuses with 500: its own words go to the client."""
    told = scene.ask(scene.model, do="status", status=500)
    if told.status == 500 and b"as asked" not in told.body and b"signal" not in told.body:
        raise AssertionError(f"the engine's own refusal became {told.body[:300]!r}")
    return scene.answers


@fault(Cuts.MODEL)
def engine_speaks_no_http(scene: Scene) -> Over:
    """An engine answers with something that is not HTTP: 502, and nothing of it reaches the next answer."""
    told = scene.ask(scene.model, do="garbage")
    if told.status == 200:
        raise AssertionError(f"garbage was an answer: {told.body[:300]!r}")
    return scene.answers


@fault(Cuts.MODEL)
def engine_breaks_off(scene: Scene) -> Over:
    """An engine promises more than it sends, or ends in the middle of its answer with an error of the GPU's."""
    do = scene.chance.choice(("too-short", "die-mid-json", "die-first"))
    with contextlib.suppress(*GONE):
        told = scene.ask(scene.model, do=do)
        if told.status == 200:
            raise AssertionError(f"half an answer ({do}) passed as a whole one: {told.body[:300]!r}")
    return scene.answers


@fault(Cuts.MODEL)
def engine_dies_in_stream(scene: Scene) -> Over:
    """An engine ends by itself in the middle of a stream, with an error of the GPU's: the client is told."""
    body = {"model": scene.model, "messages": [], "stream": True, "do": "die-mid"}
    with contextlib.suppress(*GONE), scene.system.doors.front.open("/v1/chat/completions", body) as stream:
        said = stream.rest()
        if stream.status == 200 and b'"error"' not in said:
            raise AssertionError(f"a stream was cut without a word: {said[-300:]!r}")
        if b"hf_abcdef" in said:
            raise AssertionError("a secret of the engine's output reached a client")
    return scene.answers


@fault(Cuts.MODEL)
def engine_stalls_in_stream(scene: Scene) -> Over:
    """An engine says nothing more in the middle of a stream, and its client gives up."""
    with scene.system.doors.front.raw() as client:
        client.sendall(message(scene.model, stream=True, do="stall"))
        client.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while client.recv(65536):
                pass
    return scene.answers


@fault(also=("loud",))
def engine_prints_without_end(scene: Scene) -> Over:
    """An engine prints two megabytes, text and bytes of any kind, before it is ready."""
    ended = scene.load_job("loud")
    if ended.result == "failed" and "memory" not in ended.message:
        raise AssertionError(f"a loud engine was not loaded: {ended}")
    scene.forgive("loud")
    return scene.answers
