"""The doors of a whole daemon when something breaks: engines, clients, the daemon itself, the machine's memory."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from fake_nvml.gpu import GIB, FakeGpus

from .doors import HELLO, Doors, Opened, Together, listening, noted, open_doors, talker, to_the_end, wait_noted
from .harness import Daemon, Place, engine, settle

CHAT = "/v1/chat/completions"
STREAMS = 20
MB = 1_000_000
SELDOM_S = 3600
"""Between heartbeats, where a test is about what is noticed without them."""


def stream_of(doors: Doors, model: str = "tiny", **asked: object) -> Opened:
    body = {"model": model, "messages": HELLO, "stream": True, "do": "stream", **asked}
    return doors.front.open(CHAT, body)


def waiting(doors: Doors) -> int:
    """How many wait for memory."""
    return int(doors.management.ask("/queue").value["depth"])


# Engines --------------------------------------------------------------------------------------------------------------


def test_an_engine_killed_before_its_answer_is_replaced(place: Place, doors: Doors) -> None:
    """kill -9 while it has the question: a fresh engine gets the question, and the client one answer."""
    place.configure({"tiny": talker(place, notes="notes"), "spare": engine()})
    daemon = place.start()
    told = []
    mark = place.root / "mark"
    with Together() as together:
        together.start(lambda: told.append(doors.front.chat("tiny", do="hang-once", mark=str(mark))))
        wait_noted(place, "notes", lambda note: note.get("do") == "hang-once")
        settle(mark.exists, "it has the question")
        first = place.records()["tiny"]["child"]["pid"]
        place.kill(first)
    assert told[0].status == 200, told[0].body
    assert told[0].value["pid"] != first
    daemon.wait_log('The engine of "tiny" gave no answer .*: the request is sent once more')
    daemon.aftermath()


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_an_engine_killed_in_mid_stream_ends_the_stream_with_an_error(place: Place, doors: Doors, api: str) -> None:
    """kill -9: an event in the words of the API that was asked, then the end; the next request is answered."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    path = CHAT if api == "openai" else "/v1/messages"
    asked = {"model": "tiny", "messages": HELLO, "stream": True, "do": "stream", "events": 1000, "every": 0.02}
    with doors.front.open(path, asked) as stream:
        assert stream.line() == b'data: {"number": 0}'
        place.kill(place.records()["tiny"]["child"]["pid"])
        lines = list(iter(stream.line, b""))
    (error,) = [json.loads(line[6:]) for line in lines if b'"error"' in line and line.startswith(b"data: ")]
    assert "ended by signal 9" in error["error"]["message"], error
    if api == "openai":
        assert lines[-1] == b"data: [DONE]"
    else:
        assert b"event: error" in lines and error["type"] == "error"
    assert doors.front.chat("tiny").status == 200
    daemon.aftermath()


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_killed_while_it_loads_is_told_to_whoever_waits(place: Place, doors: Doors, stream: bool) -> None:
    """kill -9 in mid-load: every client that waited is answered with the signal, none of them hangs."""
    gate = place.root / "gate"
    place.configure({"tiny": talker(place, "--ready-when", str(gate)), "spare": engine()})
    daemon = place.start()
    told = []
    with Together() as together:
        for _ in range(3):
            together.start(lambda: told.append(doors.front.chat("tiny", stream=stream)))
        settle(lambda: "tiny" in place.records(), "it loads")
        settle(lambda: len(doors.management.ask("/jobs").value) == 3, "all wait for it")
        place.kill(place.records()["tiny"]["child"]["pid"])
    assert len(told) == 3
    for one in told:
        assert b"ended by signal 9" in one.body, one
        assert one.status == 500 or (stream and one.status == 200), one
    gate.touch()
    assert doors.front.chat("tiny").status == 200
    daemon.aftermath()


@pytest.mark.parametrize("stream", [False, True])
def test_a_load_that_is_called_off_is_no_failure_of_the_engine(place: Place, doors: Doors, stream: bool) -> None:
    """Somebody unloads the model while others wait for it: they are told by whom, and that they may ask again."""
    gate = place.root / "gate"
    place.configure({"tiny": talker(place, "--ready-when", str(gate)), "spare": engine()})
    daemon = place.start()
    told = []
    with Together() as together:
        together.start(lambda: told.append(doors.front.chat("tiny", stream=stream)))
        settle(lambda: "tiny" in place.records(), "it loads")
        settle(lambda: len(doors.management.ask("/jobs").value) == 1, "somebody waits for it")
        assert daemon.unload("tiny").result == "done"
    (one,) = told
    assert b"before it was ready" in one.body and b"ask again" in one.body, one
    if not stream or one.status != 200:
        assert (one.status, one.error["type"], one.headers["retry-after"]) == (503, "canceled", "1")
    gate.touch()
    assert doors.front.chat("tiny").status == 200
    daemon.aftermath()


@pytest.mark.parametrize("do", ["garbage", "too-long"])
def test_an_engine_that_does_not_speak_http_is_502(place: Place, doors: Doors, do: str) -> None:
    """Garbage is no answer; more than was promised is not passed on, and never becomes the next answer's beginning."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    told = doors.front.chat("tiny", do=do)
    if do == "garbage":
        assert (told.status, told.error["type"]) == (502, "bad_gateway")
    else:
        assert (told.status, told.body) == (200, b"xx")
    for _ in range(5):
        again = doors.front.chat("tiny")
        assert (again.status, again.value["target"]) == (200, CHAT)
    daemon.aftermath()


def test_an_answer_that_is_shorter_than_promised_is_cut_off_for_the_client(place: Place, doors: Doors) -> None:
    """The client sees that something is missing, rather than a whole answer."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    with doors.front.raw() as client:
        body = json.dumps({"model": "tiny", "do": "too-short"}).encode()
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        )
        client.sendall(body)
        received = to_the_end(client)
    assert b"Content-Length: 100" in received or b"content-length: 100" in received
    assert received.endswith(b"x" * 50)
    daemon.wait_log('The answer of "tiny" was cut off')
    daemon.aftermath()


def test_a_line_of_fifty_megabytes_passes(place: Place, doors: Doors) -> None:
    """One event, 50 MB long: nothing of gpud's looks for its end, and memory stays flat."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    before_kib = daemon.memory_kib()
    with stream_of(doors, do="pour", mb=50, one_line=True) as stream:
        count = 0
        while piece := stream.read(1 << 20):
            count += len(piece)
            last = piece[-20:]
    assert count == 50 * MB + len(b"data: \n\ndata: [DONE]\n\n")
    assert last.endswith(b"data: [DONE]\n\n")
    assert _peak_kib(daemon) - before_kib < 24 << 10
    daemon.aftermath()


# Clients that leave ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["stream", "stall", "hang"])
def test_a_client_that_leaves_takes_its_engines_work_with_it(place: Place, do: str) -> None:
    """In a stream that runs, in one that stands still and before the first byte: the engine is left. In the
    last two nothing is sent meanwhile that could fail. How soon it happens is told by the bench."""
    doors = open_doors(place, heartbeat=SELDOM_S)
    place.configure({"tiny": talker(place, notes="notes"), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    for number in range(1, 6):
        with doors.front.raw() as client:
            body = json.dumps({"model": "tiny", "stream": True, "do": do, "events": 1000, "every": 0.02}).encode()
            client.sendall(
                b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
                % (CHAT.encode(), len(body), body)
            )
            if do != "hang":
                _until(client, b'"number": 1')
            wait_noted(place, "notes", lambda note: note.get("do") == do, count=number)
        wait_noted(place, "notes", lambda note: bool(note.get("left")), count=number)
    settle(lambda: daemon.model("tiny")["InFlight"] == 0, "nobody uses it any more")
    daemon.aftermath()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_model_loads_leaves_nothing(place: Place, stream: bool) -> None:
    """The load is given up when nobody waits for it any more, also where the client of a stream was told that it
    waits; it is not the next heartbeat that finds out."""
    doors = open_doors(place, heartbeat=SELDOM_S)
    place.configure({"tiny": talker(place, "--ready-when", str(place.root / "gate")), "spare": engine()})
    daemon = place.start()
    with doors.front.raw() as client:
        _send_chat(client, "tiny", stream=stream)
        daemon.wait_state("tiny", "loading")
        if stream:
            _until(client, b": gpud waits")
    daemon.wait_state("tiny", "unloaded")
    settle(lambda: not place.children(), "its engine is gone")
    daemon.aftermath()


# Stopping and reloading -----------------------------------------------------------------------------------------------


def _begin_streams(doors: Doors, count: int, events: int, **asked: object) -> tuple[list[Opened], list[list[bytes]]]:
    streams = [stream_of(doors, events=events, every=0.1, **asked) for _ in range(count)]
    # Where the load takes a second, each is told so meanwhile.
    lines = [[stream.line()] for stream in streams]
    assert all(line == [b'data: {"number": 0}'] for line in lines)
    return streams, lines


def _end_streams(streams: list[Opened], lines: list[list[bytes]], events: int) -> None:
    """All of them are whole."""
    with Together() as together:
        for stream, seen in zip(streams, lines, strict=True):
            together.start(lambda stream=stream, seen=seen: seen.extend(iter(stream.line, b"")))
    whole = [b'data: {"number": %d}' % number for number in range(events)]
    for seen in lines:
        assert seen[:events] == whole
        assert seen[-1] == b"data: [DONE]"
    for stream in streams:
        stream.close()


def test_a_stop_lets_twenty_streams_end(place: Place, doors: Doors) -> None:
    """SIGTERM: each ends whole within shutdown_drain, nobody new is let in, status 0."""
    place.configure({"tiny": talker(place), "other": engine(), "spare": engine()}, shutdown_drain="60s")
    daemon = place.start()
    gate = place.root / "gate"
    streams, lines = _begin_streams(doors, STREAMS, 10, until=str(gate))
    daemon.signal(signal.SIGTERM)
    daemon.wait_state("tiny", "unloading")
    refused = doors.front.chat("other")
    assert (refused.status, refused.error["type"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) >= 1
    gate.touch()
    _end_streams(streams, lines, 10)
    assert daemon.wait_exit() == 0
    place.check_empty()
    assert "Traceback" not in daemon.log()


def test_a_stop_ends_streams_after_its_bound_with_a_word(place: Place, doors: Doors) -> None:
    """What does not end by itself is told why it ends."""
    place.configure({"tiny": talker(place)}, shutdown_drain="500ms")
    daemon = place.start()
    streams, lines = _begin_streams(doors, 3, 10_000)
    daemon.signal(signal.SIGTERM)
    for stream, seen in zip(streams, lines, strict=True):
        seen.extend(iter(stream.line, b""))
        stream.close()
        assert seen[-1] == b"data: [DONE]", seen[-3:]
        assert b'"error"' in seen[-2], seen[-3:]
    assert daemon.wait_exit() == 0
    place.check_empty()
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("way", ["http", "hangup"])
def test_a_reload_cuts_no_stream(place: Place, doors: Doors, way: str) -> None:
    """Twenty streams of a model that stays as it is, while others come and go: not a byte is missing."""
    tiny = talker(place)
    place.configure({"tiny": tiny, "old": engine(), "spare": engine()})
    daemon = place.start()
    streams, lines = _begin_streams(doors, STREAMS, 20)
    place.configure({"tiny": tiny, "new": engine(), "spare": engine()}, idle={"timeout": "100s"})
    if way == "http":
        told = doors.front.ask("/admin/reload", method="POST")
        assert told.status == 200, told.body
        assert set(told.value["config"]["models"]) == {"tiny", "new", "spare"}
    else:
        daemon.signal(signal.SIGHUP)
        daemon.wait_log("The configuration was reloaded")
    assert doors.front.chat("old").status == 404
    _end_streams(streams, lines, 20)
    daemon.aftermath()


def test_a_door_that_moves_keeps_its_running_answers(place: Place, doors: Doors) -> None:
    """A reload with another port: the old one is free, the new one answers, and the stream goes on to its end."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    streams, lines = _begin_streams(doors, 3, 10)
    moved = open_doors(place)
    place.configure({"tiny": talker(place), "spare": engine()})
    with Together() as together:
        together.start(daemon.reload)
        _end_streams(streams, lines, 10)
    assert moved.front.ask("/health").status == 200
    with pytest.raises(ConnectionRefusedError):
        doors.front.ask("/health")
    daemon.aftermath()


def test_a_port_that_is_taken_is_told_and_tried_again(place: Place, doors: Doors) -> None:
    """The others listen meanwhile; a reload listens there once the port is free; gpud ends nobody's process."""
    place.configure({"spare": engine()})
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", doors.front.port))
        taken.listen()
        daemon = place.start()
        said = daemon.wait_log(rf"Cannot listen on 127\.0\.0\.1:{doors.front.port} \(door front\)")
        assert "in use" in said
        assert f"(process {os.getpid()})" in said, "who has it"
        daemon.wait_log(r"What to do: stop it, or set http\.front\.port")
        assert doors.management.ask("/health").status == 200
        daemon.reload()
        daemon.wait_log(rf"Cannot listen on 127\.0\.0\.1:{doors.front.port} \(door front\)", count=2)
    daemon.reload()
    daemon.wait_log(rf"Listens on 127\.0\.0\.1:{doors.front.port} \(door front\)")
    assert doors.front.chat("spare").status != 502
    assert daemon.unload().result == "done"
    assert daemon.stop() == 0
    place.check_empty()


def test_a_killed_daemon_is_followed_by_one_that_answers(place: Place, doors: Doors) -> None:
    """kill -9 with a loaded model and open connections: the next one has the same ports at once, and answers the first
    request."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    stream = stream_of(doors, events=1000, every=0.02)
    assert stream.line()
    daemon.kill9()
    with contextlib.suppress(Exception):
        stream.rest()  # It is cut, one way or the other.
    stream.close()
    again = place.start()
    assert len(listening(again.pid)) == 3
    assert doors.front.chat("tiny").status == 200
    again.aftermath()


# Refusals -------------------------------------------------------------------------------------------------------------


def sized(place: Place, gpus: FakeGpus, name: str, size_gib: float, **settings: object) -> dict[str, object]:
    """A talking engine that holds so much of the GPU while it lives."""
    gpus.rule(f"{place.root.name}/{name}.notes", int(size_gib * GIB))
    return talker(place, notes=f"{name}.notes", size=f"{int(size_gib * 1024)}MiB", **settings)


RESERVE = {"gpu": {"reserve": "256MiB", "watch": 1}}


def test_who_asks_too_often_is_429(place: Place) -> None:
    """With the seconds after which it is worth asking again; what is open to all is not counted."""
    doors = open_doors(place, rate_without_key="3/min")
    place.configure({"spare": engine()})
    daemon = place.start()
    told = [doors.front.ask("/v1/models") for _ in range(4)]
    assert [one.status for one in told] == [200, 200, 200, 429]
    assert 1 <= int(told[3].headers["retry-after"]) <= 60
    assert told[3].error["message"]
    assert doors.front.ask("/health").status == 200
    daemon.aftermath()


def test_a_model_larger_than_the_gpu_is_507(place: Place, doors: Doors, gpus: FakeGpus) -> None:
    """With what it needs and what there is, in the words of every API; nothing is started for it."""
    place.configure({"big": sized(place, gpus, "big", 40)}, **RESERVE)
    daemon = place.start()
    for door in (doors.front, doors.management):
        told = door.chat("big")
        assert (told.status, told.error["type"]) == (507, "insufficient_vram")
        assert (told.error["need_bytes"], told.error["available_bytes"]) == (40 * GIB, 6 * GIB - (256 << 20))
        assert "40.0 GiB" in told.error["message"]
    told = doors.front.ask("/v1/messages", {"model": "big", "messages": HELLO, "max_tokens": 1})
    assert told.status == 507 and told.value["type"] == "error"
    told = doors.management.ask("/load", {"model": "big"})
    assert (told.status, told.error["type"]) == (507, "insufficient_vram")
    told = doors.ollama.ask("/api/chat", {"model": "big", "messages": HELLO})
    assert told.status == 507 and "40.0 GiB" in told.value["error"]
    assert place.records() == {}
    assert daemon.stop() == 0


def test_a_full_queue_is_503_and_a_long_wait_504(place: Place, doors: Doors, gpus: FakeGpus) -> None:
    """One streams, one waits for its memory, the next is refused with Retry-After, and who waited too long is told."""
    models = {name: sized(place, gpus, name, 4) for name in ("a", "b", "c")}
    place.configure(models, queue={"size": 1, "timeout": 5, "turn": 5}, **RESERVE)
    daemon = place.start()
    told = []
    with stream_of(doors, "a", events=1000, every=0.05) as stream, Together() as together:
        assert stream.line()
        together.start(lambda: told.append(doors.front.chat("b")))
        settle(lambda: waiting(doors) == 1, "b waits")
        refused = doors.front.chat("c")
        assert (refused.status, refused.error["type"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        together.join()
        assert (told[0].status, told[0].error["type"]) == (504, "queue_timeout"), told[0].body
    assert gpus.overflows() == []
    assert daemon.stop() == 0


@pytest.mark.parametrize("told", [False, True])
def test_who_leaves_the_queue_is_not_waited_for(place: Place, gpus: FakeGpus, told: bool) -> None:
    """Its place is free for the next before any heartbeat finds out, and its model is not loaded when there is room."""
    doors = open_doors(place, heartbeat=SELDOM_S)
    models = {name: sized(place, gpus, name, 4) for name in ("a", "b", "c")}
    place.configure(models, queue={"size": 1}, **RESERVE)
    daemon = place.start()
    answers = []
    with Together() as together:
        with stream_of(doors, "a", events=1000, every=0.05) as stream:
            assert stream.line()
            with doors.front.raw() as client:
                _send_chat(client, "b", stream=told)
                settle(lambda: waiting(doors) == 1, "b waits")
                if told:
                    _until(client, b": gpud waits")
            settle(lambda: waiting(doors) == 0, "b waits no longer")
            together.start(lambda: answers.append(doors.front.chat("c")))
            settle(lambda: waiting(doors) == 1, "c waits")
        together.join()
    assert answers[0].status == 200, answers[0].body
    assert noted(place, "b.notes") == []
    assert daemon.state("b") == "unloaded"
    assert gpus.overflows() == []
    assert daemon.stop() == 0


def test_gpus_that_were_given_away_are_503(place: Place, doors: Doors) -> None:
    """Over HTTP too: given away and taken back, and who asks meanwhile is told when to come again."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    given = doors.management.ask("/yield", {"why": "a long game"})
    assert given.status == 200, given.body
    daemon.wait_state("tiny", "unloaded")
    told = doors.front.chat("tiny")
    assert (told.status, told.error["type"]) == (503, "gpu_yielded")
    assert "a long game" in told.error["message"]
    assert int(told.headers["retry-after"]) == 60
    assert doors.management.ask("/resume", {}).status == 200
    assert doors.front.chat("tiny").status == 200
    daemon.aftermath()


# Strangers ------------------------------------------------------------------------------------------------------------


def test_a_page_under_a_rebound_name_gets_nothing(place: Place, doors: Doors) -> None:
    """DNS rebinding: a name that leads to 127.0.0.1 and is not gpud's is refused at every door, whatever is asked."""
    place.configure({"spare": engine()})
    daemon = place.start()
    for door in (doors.front, doors.management, doors.ollama):
        for path, body in (("/v1/models", None), (CHAT, {"model": "spare", "messages": HELLO}), ("/api/tags", None)):
            told = door.ask(path, body, headers={"Host": f"evil.example:{door.port}"})
            assert told.status == 421, (door, path, told)
            assert b"spare" not in told.body
    assert daemon.state("spare") == "unloaded"
    daemon.aftermath()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Origin": "https://evil.example", "Content-Type": "text/plain"},
    ],
)
def test_a_foreign_page_changes_nothing(place: Place, doors: Doors, headers: dict[str, str]) -> None:
    """A form or a script of another site posts to this machine: nothing is loaded, unloaded, reloaded or read."""
    place.configure({"tiny": talker(place, notes="notes"), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    posts = (
        (doors.front, CHAT, {"model": "tiny"}),
        (doors.front, "/admin/unload", {"model": "all"}),
        (doors.front, "/admin/reload", {}),
        (doors.front, "/models/unload", {}),
        (doors.management, "/unload", {"model": "tiny"}),
        (doors.management, "/yield", {}),
        (doors.ollama, "/api/generate", {"model": "tiny", "keep_alive": 0}),
    )
    for door, path, body in posts:
        told = door.ask(path, body, headers=headers)
        assert told.status == 403, (path, told)
        assert "access-control-allow-origin" not in told.headers
    assert daemon.state("tiny") == "ready"
    assert len([note for note in noted(place, "notes") if "do" in note]) == 1
    daemon.aftermath()


def test_clients_that_crawl_do_not_keep_others_waiting(place: Place) -> None:
    """Slow-loris on the header, the body and the reading side: each is ended in its time, others are served."""
    # Long enough for one who does not crawl, on a machine that has other things to do.
    limits = {"header_timeout": 3, "body_timeout": 3, "write_timeout": 3, "idle_timeout": 6}
    doors = open_doors(place, limits=limits)
    place.configure({"tiny": talker(place, notes="notes"), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    with contextlib.ExitStack() as stack:
        crawling = [stack.enter_context(doors.front.raw()) for _ in range(60)]
        for client in crawling[:30]:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
        for client in crawling[30:]:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        # The kernel takes some for it; the rest of 50 MB waits for a reader that never comes.
        deaf = stack.enter_context(doors.front.raw())
        _send_chat(deaf, "tiny", do="pour", mb=50)
        assert doors.front.chat("tiny").status == 200
        for client in crawling:
            assert b" 408 " in to_the_end(client)
        settle(lambda: daemon.model("tiny")["InFlight"] == 0, "the deaf one is given up")
    daemon.aftermath()


def test_a_body_of_a_hundred_megabytes_passes_and_one_byte_too_many_does_not(place: Place) -> None:
    """Pictures are large: 100 MB go to the engine as they came; the memory for it is given back."""
    doors = open_doors(place)
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    head = b'{"model": "tiny", "messages": [{"role": "user", "content": "'
    body = head + b"x" * (100 * MB - len(head) - 4) + b'"}]}'
    told = doors.front.ask(CHAT, body, timeout_s=60)
    assert (told.status, told.value["sha256"]) == (200, hashlib.sha256(body).hexdigest())
    with doors.front.raw() as client:
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), (100 << 20) + 1)
        )
        answer = to_the_end(client)
    assert b" 413 " in answer and b"104857600" in answer
    daemon.aftermath()


# Many at once ---------------------------------------------------------------------------------------------------------


def test_streams_of_all_speeds_leave_memory_flat(place: Place, doors: Doors) -> None:
    """16 clients take 25 MB each, the slowest in about four seconds: what it does not take yet stays with the
    engine."""
    place.configure({"tiny": talker(place), "spare": engine()})
    daemon = place.start()
    assert doors.front.chat("tiny").status == 200
    before_kib = daemon.memory_kib()
    counts = []

    def take(takes_s: float) -> None:
        began, count = time.monotonic(), 0
        with stream_of(doors, do="pour", mb=25) as stream:
            while piece := stream.read(1 << 20):
                count += len(piece)
                ahead_s = takes_s * count / (25 * MB) - (time.monotonic() - began)
                if ahead_s > 0:
                    time.sleep(ahead_s)
        counts.append(count)

    with Together(240) as together:
        for number in range(16):
            together.start(take, number / 4)
    assert counts == [25 * MB] * 16
    assert _peak_kib(daemon) - before_kib < 48 << 10
    daemon.aftermath()


def test_models_that_do_not_fit_together_take_turns_and_lose_nobody(place: Place, gpus: FakeGpus) -> None:
    """Three models of 2.5 GiB on 6 GiB, six clients until eight engines have been started: every request is answered
    with 200, by the model that was asked, and nobody ever held more than there is."""
    doors = open_doors(place)
    names = ("a", "b", "c")
    models = {name: sized(place, gpus, name, 2.5) for name in names}
    place.configure(models, queue={"turn": 0.3}, **RESERVE)
    gpus.late(50)
    daemon = place.start()
    answers: list[tuple[str, int]] = []

    def engines() -> int:
        return sum(len({note["pid"] for note in noted(place, f"{name}.notes")}) for name in names)

    def ask(seed: int) -> None:
        choices = random.Random(seed)
        while engines() < 8:
            name = choices.choice(names)
            if choices.random() < 0.5:
                told = doors.front.chat(name)
                answers.append((name, told.status))
                assert told.status == 200, told.body
            else:
                with stream_of(doors, name, events=5, every=0.01) as stream:
                    answers.append((name, stream.status))
                    lines = list(iter(stream.line, b""))
                assert lines[-1] == b"data: [DONE]" and not any(b'"error"' in line for line in lines), lines

    with Together(240) as together:
        for seed in range(6):
            together.start(ask, seed)
    assert {status for _, status in answers} == {200}
    asked = {name: sum("do" in note for note in noted(place, f"{name}.notes")) for name in names}
    assert asked == {name: sum(one == name for one, _ in answers) for name in names}
    assert gpus.overflows() == []
    assert daemon.stop() == 0
    place.check_empty()


# On the wire ----------------------------------------------------------------------------------------------------------


def _send_chat(client: socket.socket, model: str, **asked: object) -> None:
    body = json.dumps({"model": model, "messages": HELLO, **asked}).encode()
    client.sendall(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    )


def _until(client: socket.socket, word: bytes) -> None:
    data = b""
    while word not in data:
        piece = client.recv(65536)
        assert piece, data
        data += piece


def _peak_kib(daemon: Daemon) -> int:
    """The most that it ever held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1])
