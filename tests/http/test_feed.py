"""The events: in order, resumable, told of what is missing, and never at anybody's expense but the slow reader's."""

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from engine.parts import GIB, Bench

from gpud.core.errors import BackendFailed, BudgetExceeded
from gpud.core.events import Alert, CatalogueChanged, ClaimOver, Kind, Level, ModelChanged, Notice, Touched
from gpud.core.facts import Caller, JobResult, Model, State
from gpud.core.ports import Stream
from gpud.core.record import replace
from gpud.engine import Engine
from gpud.http.feed import KEPT, KEPT_LOGS, MAILBOX, Feed, Subscription
from gpud.http.feed_events import USUAL, Type, timestamp
from gpud.http.feed_shapes import WISHED, Shape, management, management_kinds, wishes_of
from gpud.http.lines import Lines
from gpud.http.metrics import RequestSeen

Run = Callable[..., Any]
Event = dict[str, Any]
ALICE = Caller("alice", 1000, label="alice")
A = Model("a", "fake", aliases=("first",))
B = Model("b", "fake")
CHAT = "/v1/chat/completions"
SECRET = "Zk3vN0-qT8_sLw5yXhB2cRf7uJm1aEgDo4PiV9tKbYI"


def clock() -> float:
    """A time of day that stands still."""
    return 1_772_366_400.25


def fed(engine: Engine, lines: Lines | None = None) -> Feed:
    feed = Feed(engine, clock, lines)
    engine.subscribe(feed.listen)
    return feed


async def text(subscription: Subscription) -> str:
    return (await asyncio.wait_for(subscription.next(), 50)).decode()


async def event(subscription: Subscription) -> Event:
    """The next server-sent event, read as a browser reads it."""
    message = await text(subscription)
    assert message.endswith("\n\n")
    fields: Event = {}
    for line in message[:-2].split("\n"):
        name, _, value = line.partition(": ")
        assert name not in fields
        fields[name] = value
    said: Event = json.loads(fields["data"])
    assert fields["event"] == said["type"]
    assert fields.get("id", said["id"]) == said["id"]
    assert said["at"] == "2026-03-01T12:00:00.250Z"
    return said | {"has_id": "id" in fields}


async def events(subscription: Subscription, count: int) -> list[Event]:
    return [await event(subscription) for _ in range(count)]


async def up_to(subscription: Subscription, found: Callable[[Event], bool]) -> list[Event]:
    """All events up to the first one that is looked for."""
    got = [await event(subscription)]
    while not found(got[-1]):
        got.append(await event(subscription))
    return got


def is_job(said: Event) -> bool:
    return bool(said["type"] == "job")


def told(feed: Feed, *words: str) -> None:
    """Some events that are easily told apart."""
    for word in words:
        feed.notice(Notice(Kind.IDLE, word))


# What is told --------------------------------------------------------------------------------------------------------


def test_whoever_begins_gets_the_whole_picture(run: Run) -> None:
    """Models, queue and memory as they stand, under an id from which it can be resumed."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            feed = fed(bench.engine)
            await bench.engine.refresh()
            with feed.subscribe() as subscription:
                picture = await event(subscription)
                assert picture["type"] == "snapshot" and picture["has_id"]
                assert picture["state"] == "idle" and picture["yielded"] is False and picture["version"] == "0"
                assert [(m["model"], m["state"], m["phase"]) for m in picture["models"]] == [
                    ("a", "unloaded", "cold"),
                    ("b", "unloaded", "cold"),
                ]
                assert picture["models"][0]["aliases"] == ["first"]
                assert picture["queue"] == {"depth": 0, "entries": []}
                (gpu,) = picture["vram"]["gpus"]
                assert gpu["total_bytes"] == 8 * GIB and "temperature_c" not in gpu
                assert picture["vram"]["host"]["total_bytes"] == 16 * GIB

    run(work())


def test_a_load_is_told_step_by_step(run: Run) -> None:
    """States with their reasons and figures, what the journal says, how far it is, and the end of the job; ids grow."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            bench.backend.gate = asyncio.Event()
            with feed.subscribe() as subscription:
                await event(subscription)
                job = bench.engine.load("a", ALICE)
                got = await up_to(subscription, lambda said: said["type"] == "progress")
                assert (got[-1]["model"], got[-1]["progress"], got[-1]["stage"]) == ("a", 0.5, "text_model")
                bench.backend.gate.set()
                got += await up_to(subscription, is_job)
                states = [said for said in got if said["type"] == "model_state"]
                assert [(s["was"], s["state"], s["phase"]) for s in states] == [
                    ("unloaded", "loading", "loading"),
                    ("loading", "ready", "ready"),
                ]
                assert states[1]["engine"] == "fake" and states[1]["load_seconds"] >= 0 and "error" not in states[1]
                kinds = [said["kind"] for said in got if said["type"] == "notice"]
                assert kinds == ["load-started", "model-loaded"]
                ended = got[-1]
                assert (ended["job"], ended["kind"], ended["model"], ended["result"]) == (job, "load", "a", "done")
                numbers = [int(said["id"].rpartition("-")[2]) for said in got]
                assert numbers == sorted(set(numbers))

    run(work())


def test_a_failed_load_says_why(run: Run) -> None:
    """The state has the error, the job its code and what to do."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            bench.backend.failure = BackendFailed("it has no file", hint="give it one")
            with feed.subscribe() as subscription:
                await event(subscription)
                bench.engine.load("a", ALICE)
                got = await up_to(subscription, is_job)
                assert got[-1]["result"] == "failed"
                assert (got[-1]["error_code"], got[-1]["hint"]) == ("backend-failed", "give it one")
                state = next(s for s in got if s["type"] == "model_state" and s["state"] == "failed")
                assert "it has no file" in state["error"]

    run(work())


def test_claims_and_alerts_are_told(run: Run) -> None:
    """A claim's grant, its end, its refusal; a device that is nearly full."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            with feed.subscribe(kinds=(Type.CLAIM, Type.ALERT)) as subscription:
                claim = bench.engine.claim(GIB, ALICE, who="blender", why="a scene")
                await asyncio.wait_for(bench.engine.claimed(claim), 50)
                bench.engine.drop_claim(claim, "done")
                error = BudgetExceeded("too large", hint="ask for less", need_bytes=2, available_bytes=1)
                feed.listen(
                    (
                        ClaimOver(7, error, error.code),
                        Alert("GPU-0", 0, "Test GPU", True, 15 * GIB, 16 * GIB, 90.0, "vram usage 94% >= 90%"),
                    )
                )
                granted, ended, refused, alert = await events(subscription, 4)
                assert (granted["claim"], granted["state"], granted["uuid"]) == (claim, "granted", "GPU-0")
                assert (ended["state"], ended["reason"]) == ("ended", "done")
                assert (refused["state"], refused["error_code"], refused["hint"]) == (
                    "refused",
                    "budget-exceeded",
                    "ask for less",
                )
                assert alert["raised"] is True and alert["gpu"] == 0 and alert["limit_percent"] == 90.0

    run(work())


def test_memory_and_queue_are_told_when_they_have_changed(run: Run) -> None:
    """A model that has to wait, and figures that move; what has not changed is not told again."""

    async def work() -> None:
        async with Bench(A, replace(B, size_bytes=7 * GIB)) as bench:
            feed = fed(bench.engine)
            with feed.subscribe(kinds=(Type.QUEUE, Type.VRAM)) as subscription:
                await event(subscription)
                async with bench.engine.use("a", ALICE):
                    job = bench.engine.load("b", ALICE)
                    got = await up_to(subscription, lambda said: said["type"] == "queue" and said["depth"] == 1)
                (entry,) = got[-1]["entries"]
                assert (entry["model"], entry["position"], entry["priority"]) == ("b", 1, "normal")
                assert entry["waits_for"] and "caller" not in entry and "callers" not in entry
                await bench.engine.wait(job)
                got += await up_to(subscription, lambda said: said["type"] == "queue" and said["depth"] == 0)
                figures = [said for said in got if said["type"] == "vram"]
                assert any(said["gpus"][0]["committed_bytes"] > 0 for said in figures)
                bodies = [{k: v for k, v in f.items() if k != "id"} for f in figures]
                assert all(first != second for first, second in pairwise(bodies))

    run(work())


def test_what_moves_all_the_time_is_looked_at_once_a_second(run: Run) -> None:
    """Ten thousand changes cost one look, and with nobody there, none: no timer is left."""

    class Watched(Feed):
        looks = 0

        def _look(self) -> None:
            self.looks += 1
            super()._look()

    async def work() -> None:
        async with Bench(A) as bench:
            feed = Watched(bench.engine, clock)
            for _ in range(10_000):
                feed.listen((Touched(),))
            assert feed.looks == 0
            with feed.subscribe():
                for _ in range(10_000):
                    feed.listen((Touched(),))
                assert feed.looks == 1
            timers = feed._later
            assert timers is None

    run(work())


def test_requests_are_told_to_those_who_ask(run: Run) -> None:
    """By name alone: to the others a busy gateway would be nothing but noise. They are not kept."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            assert Type.REQUEST not in USUAL
            feed.observe(RequestSeen("front", CHAT, "a", 200, 9.0))
            with feed.subscribe(kinds=(Type.REQUEST,)) as subscription, feed.subscribe() as usual:
                feed.observe(RequestSeen("front", CHAT, "a", 200, 1.5, 0.25, 10))
                told(feed, "after")
                said = await event(subscription)
                assert {k: said[k] for k in ("model", "route", "status", "duration_seconds", "prompt_tokens")} == {
                    "model": "a",
                    "route": CHAT,
                    "status": 200,
                    "duration_seconds": 1.5,
                    "prompt_tokens": 10,
                }
                assert "generated_tokens" not in said
                assert [(await event(usual))["type"] for _ in range(2)] == ["snapshot", "notice"]
            with feed.subscribe(since=said["id"]) as resumed:
                assert (await event(resumed))["message"] == "after"

    run(work())


def test_lines_of_engines_are_told_without_secrets(run: Run) -> None:
    """What an engine prints; what gpud says comes once, as a notice."""

    async def work() -> None:
        async with Bench(A) as bench:
            lines = Lines(clock)
            feed = Feed(bench.engine, clock, lines)
            with feed.subscribe(kinds=(Type.LOG, Type.NOTICE)) as subscription:
                lines.line(model="a", engine="fake", stream=Stream.ERR, pid=1, text=f"key {SECRET} é")
                notice = Notice(Kind.LOAD_FAILED, f"failed with {SECRET}", "a", Level.ERROR, {"n": 1}, (SECRET,))
                lines.notice(notice)
                feed.notice(notice)
                feed.notice(Notice(Kind.DENIED, "inside", level=Level.DEBUG))
                feed.close()
                log, said = await events(subscription, 2)
                assert (log["model"], log["engine"], log["stream"]) == ("a", "fake", "err")
                assert log["text"] == "key [redacted] é"
                assert said["message"] == "failed with [redacted]"
                assert said["detail"] == ["[redacted]"] and said["fields"] == {"n": 1}
                assert await subscription.next() == b""

    run(work())


def test_a_line_with_anything_in_it_stays_one_event(run: Run) -> None:
    """Line breaks, quotes and halves of characters do not break out of the stream."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            odd = 'a\nid: 9\n\nevent: x\r\ndata: "q" \u2028 \ud800 语'
            with feed.subscribe(kinds=(Type.NOTICE,)) as subscription:
                told(feed, odd)
                assert (await event(subscription))["message"] == odd

    run(work())


# Coming back ---------------------------------------------------------------------------------------------------------


def test_whoever_comes_back_gets_what_was_missed(run: Run) -> None:
    """Everything since the last event that was read, in order, once, and no picture."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            await bench.engine.refresh()
            with feed.subscribe() as subscription:
                await event(subscription)
                told(feed, "one", "two")
                assert (await event(subscription))["message"] == "one"
                last = (await event(subscription))["id"]
            told(feed, "three", "four")
            with feed.subscribe(since=last) as subscription:
                told(feed, "five")
                assert [said["message"] for said in await events(subscription, 3)] == ["three", "four", "five"]
            with feed.subscribe(since=last, kinds=(Type.JOB,)) as subscription:
                told(feed, "six")
                feed.close()
                assert await subscription.next() == b""

    run(work())


def test_whoever_comes_back_sees_figures_that_changed_meanwhile(run: Run) -> None:
    """Although nobody was there to be told of them."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            await bench.engine.refresh()
            with feed.subscribe() as subscription:
                last = (await event(subscription))["id"]
            claim = bench.engine.claim(6 * GIB, ALICE, who="blender", why="")
            await asyncio.wait_for(bench.engine.claimed(claim), 50)
            with feed.subscribe(since=last, kinds=(Type.VRAM,)) as subscription:
                said = await event(subscription)
                assert said["type"] == "vram" and said["gpus"][0]["committed_bytes"] == 6 * GIB

    run(work())


@pytest.mark.parametrize("since", ["0badcafe-3", "nonsense", "3", "-", "\n", "9" * 5000])
def test_an_id_of_another_life_is_found_out(run: Run, since: str) -> None:
    """After a restart of gpud, or with an invented id: a gap, what there is, and the picture."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            told(feed, "one")
            with feed.subscribe(since=since) as subscription:
                got = await up_to(subscription, lambda said: said["type"] == "snapshot")
                assert [said["type"] for said in got if said["type"] != "vram"] == ["gap", "notice", "snapshot"]
                assert got[0]["reason"] == "restarted" and not got[0]["has_id"]
                assert got[-1]["has_id"]

    run(work())


def test_an_id_from_the_future_is_found_out(run: Run) -> None:
    """It cannot have been read here."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            with feed.subscribe() as subscription:
                life = (await event(subscription))["id"].partition("-")[0]
            with feed.subscribe(since=f"{life}-999999") as subscription:
                assert (await event(subscription))["reason"] == "restarted"

    run(work())


def test_whoever_was_away_too_long_is_told_of_the_gap(run: Run) -> None:
    """What is still there comes, then the picture, and from there it can be resumed again."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            with feed.subscribe() as subscription:
                last = (await event(subscription))["id"]
            told(feed, *(str(number) for number in range(KEPT + 10)))
            with feed.subscribe(since=last, kinds=(Type.NOTICE, Type.MODEL_STATE)) as subscription:
                gap = await event(subscription)
                assert (gap["type"], gap["reason"], "lost" in gap) == ("gap", "too-old", False)
                kept = await up_to(subscription, lambda said: said["type"] == "snapshot")
                assert [said["message"] for said in kept[:-1]][-1] == str(KEPT + 9)
                assert len(kept) <= KEPT + 1
            told(feed, "later")
            with feed.subscribe(since=kept[-1]["id"]) as subscription:
                assert (await event(subscription))["message"] == "later"

    run(work())


def test_an_engine_that_chatters_does_not_push_out_the_rest(run: Run) -> None:
    """Its lines have a place of their own; only one who wants them has a gap."""

    async def work() -> None:
        async with Bench(A) as bench:
            lines = Lines(clock)
            feed = Feed(bench.engine, clock, lines)
            with feed.subscribe() as subscription:
                last = (await event(subscription))["id"]
            told(feed, "kept")
            for number in range(KEPT_LOGS * 3):
                lines.line(model="a", engine="fake", stream=Stream.OUT, pid=1, text=str(number))
            with feed.subscribe(since=last, kinds=(Type.NOTICE,)) as subscription:
                assert (await event(subscription))["message"] == "kept"
            with feed.subscribe(since=last, kinds=(Type.NOTICE, Type.LOG)) as subscription:
                assert (await event(subscription))["reason"] == "too-old"
                assert (await event(subscription))["message"] == "kept"
                got = await events(subscription, KEPT_LOGS)
                assert [said["text"] for said in got][-1] == str(KEPT_LOGS * 3 - 1)
            feed.close()

    run(work())


# Slow and many -------------------------------------------------------------------------------------------------------


def test_a_slow_reader_loses_the_oldest_and_is_told_how_many(run: Run) -> None:
    """The count is exact, what is left comes in order, the picture ends it; others lose nothing."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            kinds = (Type.NOTICE, Type.SNAPSHOT)
            with feed.subscribe(kinds=kinds) as slow, feed.subscribe(kinds=kinds) as quick:
                assert (await event(slow))["type"] == (await event(quick))["type"] == "snapshot"
                for number in range(MAILBOX + 7):
                    told(feed, str(number))
                    assert (await event(quick))["message"] == str(number)
                gap = await event(slow)
                assert (gap["type"], gap["reason"], gap["lost"]) == ("gap", "slow", 7)
                rest = await events(slow, MAILBOX)
                assert [said["message"] for said in rest] == [str(number) for number in range(7, MAILBOX + 7)]
                assert (await event(slow))["type"] == "snapshot"
                told(feed, "on")
                assert (await event(slow))["message"] == "on"

    run(work())


def test_large_events_are_bounded_by_their_size(run: Run) -> None:
    """A reader that does not read holds some megabytes at the most, however large the events are."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            with feed.subscribe(kinds=(Type.NOTICE,)) as subscription:
                told(feed, *("x" * 100_000 for _ in range(40)))
                gap = await event(subscription)
                assert 25 < gap["lost"] < 40
                left = [len(await text(subscription)) for _ in range(40 - gap["lost"])]
                assert sum(left) < 2 << 20

    run(work())


def test_a_listener_that_left_costs_nothing(run: Run) -> None:
    """Closed, also when it was canceled while it waited, it gets nothing any more and no timer runs for it."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            await bench.engine.refresh()
            subscription = feed.subscribe()

            async def read() -> None:
                with subscription:
                    while True:
                        await subscription.next()

            reading = asyncio.ensure_future(read())
            for _ in range(3):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            told(feed, "late")
            feed.listen((Touched(),))
            assert await subscription.next() == b""

    run(work())


def test_closing_ends_every_stream(run: Run) -> None:
    """What is there is read to its end, whoever waits is woken, and who comes later gets nothing."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            first, second = feed.subscribe(kinds=(Type.NOTICE,)), feed.subscribe(kinds=(Type.NOTICE,))
            waiting = asyncio.ensure_future(first.next())
            await asyncio.sleep(0)
            told(feed, "last")
            feed.close()
            assert b"last" in await waiting
            assert await first.next() == b""
            assert b"last" in await second.next()
            assert await second.next() == b""
            told(feed, "too late")
            assert await feed.subscribe().next() == b""

    run(work())


# Other shapes --------------------------------------------------------------------------------------------------------


async def swapped(subscription: Subscription) -> tuple[str, Any]:
    """One message as llama-swap's clients read it: JSON in JSON."""
    message = await text(subscription)
    assert message.startswith("event:message\ndata:") and message.endswith("\n\n")
    envelope = json.loads(message.removeprefix("event:message\ndata:"))
    assert set(envelope) == {"type", "data"}
    return envelope["type"], json.loads(envelope["data"])


def test_clients_of_llama_swap_are_told_in_its_words(run: Run) -> None:
    """What was said so far, all models, and then all models with each change; lines by where they come from."""

    async def work() -> None:
        async with Bench(B, A) as bench:
            lines = Lines(clock)
            feed = fed(bench.engine, lines)
            lines.notice(Notice(Kind.IDLE, "so far"))
            lines.line(model="a", engine="fake", stream=Stream.OUT, pid=1, text="printed")
            with feed.subscribe(shape=Shape.LLAMA_SWAP) as subscription:
                kind, log = await swapped(subscription)
                assert (kind, log["source"]) == ("logData", "proxy")
                assert log["data"].endswith("[gpud] so far\n")
                kind, log = await swapped(subscription)
                assert (kind, log["source"]) == ("logData", "upstream")
                assert log["data"].endswith("[a] printed\n")
                kind, models = await swapped(subscription)
                assert (kind, [(m["id"], m["state"]) for m in models]) == (
                    "modelStatus",
                    [("a", "stopped"), ("b", "stopped")],
                )
                assert models[0]["aliases"] == ["first"]
                await bench.engine.wait(bench.engine.load("a", ALICE))
                lines.line(model="a", engine="fake", stream=Stream.OUT, pid=1, text="more")
                got = [await swapped(subscription)]
                while got[-1][1] != {"source": "upstream", "data": "[a] more\n"}:
                    got.append(await swapped(subscription))
                assert [m["state"] for kind, models in got if kind == "modelStatus" for m in models if m["id"] == "a"][
                    -1
                ] == "ready"
                assert any(kind == "logData" and "is ready after" in log["data"] for kind, log in got)
            feed.close()

    run(work())


async def messages(subscription: Subscription, last: str) -> list[Event]:
    """Bare JSON messages up to the first of this type."""
    got: list[Event] = [json.loads(await text(subscription))]
    while got[-1]["type"] != last:
        got.append(json.loads(await text(subscription)))
    return got


def test_the_management_api_has_the_names_that_its_clients_know(run: Run) -> None:
    """From the first picture over a load and a request to an unload."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            await bench.engine.refresh()
            wishes = wishes_of({"inference_events": True})
            with feed.subscribe(kinds=management_kinds(wishes), shape=management(wishes)) as subscription:
                vram, status = await messages(subscription, "backend_status")
                assert (vram["type"], vram["total_gb"], vram["used_gb"], vram["free_gb"]) == (
                    "vram_update",
                    8.0,
                    0.0,
                    8.0,
                )
                assert vram["utilization_percent"] == 0.0 and vram["timestamp"] == "2026-03-01T12:00:00.250Z"
                (gpu,) = vram["gpus"]
                assert (gpu["id"], gpu["total_mb"], gpu["temperature_c"]) == (0, 8192, None)
                assert (status["backend"], status["status"], status["loaded_model"]) == ("fake", "inactive", None)

                bench.backend.gate = asyncio.Event()
                bench.engine.load("a", ALICE)
                progress = (await messages(subscription, "model_load_progress"))[-1]
                assert (progress["model_id"], progress["progress_percent"], progress["stage"]) == (
                    "a",
                    50.0,
                    "text_model",
                )
                bench.backend.gate.set()
                loaded = (await messages(subscription, "model_loaded"))[-1]
                assert (loaded["model_name"], loaded["backend"]) == ("a", "fake")
                assert loaded["vram_usage_gb"] > 0 and loaded["load_time_seconds"] >= 0
                active = (await messages(subscription, "backend_status"))[-1]
                assert (active["status"], active["loaded_model"]) == ("active", "a")

                feed.observe(RequestSeen("front", CHAT, "a", 200, 1.5, None, 10, 20))
                done = (await messages(subscription, "inference_complete"))[-1]
                assert (done["model_id"], done["prompt_tokens"], done["completion_tokens"]) == ("a", 10, 20)

                bench.engine.unload("a", ALICE)
                gone = (await messages(subscription, "model_unloaded"))[-1]
                assert gone["model_id"] == "a" and gone["vram_freed_gb"] is not None

                feed.notice(Notice(Kind.GPU_PROBLEM, "it does not answer", level=Level.ERROR))
                error = (await messages(subscription, "error"))[-1]
                assert (error["error"], error["message"]) == ("gpu-problem", "it does not answer")

    run(work())


def test_a_client_of_the_management_api_gets_what_it_wishes(run: Run) -> None:
    """What it does not name stays as it is without wishes; errors come to everybody."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            assert wishes_of({}) == WISHED
            wishes = wishes_of({"model_events": False, "vram_updates": False, "inference_events": 0, "more": 1})
            assert wishes == {"backend_status"}
            with feed.subscribe(kinds=management_kinds(wishes), shape=management(wishes)) as subscription:
                bench.engine.subscribe(lambda outcomes: None)
                result = await bench.engine.wait(bench.engine.load("a", ALICE))
                assert result.result is JobResult.DONE
                feed.observe(RequestSeen("front", CHAT, "a", 200, 1.5))
                feed.notice(Notice(Kind.GPU_PROBLEM, "no answer", level=Level.ERROR))
                got = await messages(subscription, "error")
                assert {said["type"] for said in got} == {"backend_status", "error"}

    run(work())


def test_bare_events_are_the_same_as_those_of_the_stream(run: Run) -> None:
    """For a WebSocket: the JSON and nothing around it."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            with (
                feed.subscribe(kinds=(Type.NOTICE,)) as one,
                feed.subscribe(kinds=(Type.NOTICE,), shape=Shape.JSON) as two,
            ):
                told(feed, "same")
                said = await event(one)
                del said["has_id"]
                assert json.loads(await text(two)) == said

    run(work())


def test_states_of_models_that_are_gone_are_told_all_the_same(run: Run) -> None:
    """A model that left the configuration has no figures any more, but its end is told, in every shape."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            subscriptions = [feed.subscribe(kinds=(Type.MODEL_STATE,), shape=shape) for shape in Shape]
            for subscription in subscriptions:
                while subscription._out:
                    await subscription.next()
            feed.listen((ModelChanged("left", State.STOPPING, State.COLD, "config"),))
            for shape, subscription in zip(Shape, subscriptions, strict=True):
                said = await text(subscription)
                assert ("left" in said) is (shape is not Shape.LLAMA_SWAP), shape
                subscription.close()

    run(work())


def test_times_are_written_in_utc_with_milliseconds() -> None:
    """Also just before the second is full."""
    assert timestamp(0.9996) == "1970-01-01T00:00:01.000Z"
    assert timestamp(1_772_366_400.25) == "2026-03-01T12:00:00.250Z"


def test_a_download_is_told_while_it_goes_on_and_at_its_end(run: Run) -> None:
    """How far it is, at most once a second and without who it is for; its end is a job's; the picture has it too."""

    async def work() -> None:
        async with Bench(A) as bench:
            feed = fed(bench.engine)
            with feed.subscribe(kinds=(Type.DOWNLOAD, Type.JOB)) as subscription:
                assert (await event(subscription))["downloads"] == []
                job = bench.engine.begin_download(ALICE, "hf:org/repo/x.gguf", 1000)
                bench.engine.download_progress(job, ALICE, 250, 1000)
                said = await event(subscription)
                figures = {"job": job, "what": "hf:org/repo/x.gguf", "stage": "downloading"}
                figures |= {"done_bytes": 250, "total_bytes": 1000, "progress": 0.25}
                assert said.items() >= figures.items()
                assert "alice" not in json.dumps(said)
                assert feed.picture().body["downloads"] == [figures]
                bench.engine.end_download(job, ALICE, JobResult.DONE, "downloaded 1000 bytes")
                ended = await event(subscription)
                assert (ended["type"], ended["job"], ended["kind"]) == ("job", job, "download")
                assert (ended["result"], ended["message"]) == ("done", "downloaded 1000 bytes")
                assert feed.picture().body["downloads"] == []
            feed.close()

    run(work())


def test_other_models_are_told_in_every_shape(run: Run) -> None:
    """What has come, gone and changed, a hundred names of each; clients of llama-swap get the list anew."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            feed = fed(bench.engine)
            subscriptions = {shape: feed.subscribe(kinds=(Type.CATALOG,), shape=shape) for shape in Shape}
            new = tuple(f"m{number}" for number in range(150))
            feed.listen((CatalogueChanged(new, (), ("a",)),))
            for shape in (Shape.EVENTS, Shape.JSON, Shape.MANAGEMENT):
                said = json.loads((await text(subscriptions[shape])).rpartition("data: ")[2])
                assert said["type"] == ("models_changed" if shape is Shape.MANAGEMENT else "catalog")
                assert (said["new"], said["new_count"]) == (list(new[:100]), 150)
                assert (said["gone"], said["gone_count"], said["changed"], said["models"]) == ([], 0, ["a"], 2)
            kind, models = await swapped(subscriptions[Shape.LLAMA_SWAP])
            assert kind == "modelStatus" and [one["id"] for one in models] == ["a", "b"]
            for subscription in subscriptions.values():
                subscription.close()
            feed.close()

    run(work())
