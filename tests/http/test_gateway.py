"""The front door, its engines being real processes that behave as a request says: what is relayed, to whom, and how."""

import asyncio
import base64
import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine.parts import GIB
from gateway_place import KEY, Front, noted, question, talker
from layer.raw import connected

from gpud.core.facts import Caller, Limits, QueueLimits
from gpud.http.exchange import Exchange
from gpud.http.gateway import GatewaySettings

Run = Callable[..., Any]
CHAT = "/v1/chat/completions"


def body_of(told: Any) -> bytes:
    """What the engine says that it was sent."""
    return base64.b64decode(told["body"])


# What is relayed ---------------------------------------------------------------------------------------------------


def test_the_body_goes_to_the_engine_as_it_came(run: Run, tmp_path: Path) -> None:
    """Spaces, order, escapes and numbers stay as the client wrote them; the model was loaded for it."""
    raw = b'{ "temperature":0.70,\n"model" : "tiny", "messages":[{"role":"user","content":"h\\u00e9"}],"n":1e0 }'

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            assert front.state() == "cold"
            told = await front.ask(CHAT, raw=raw)
            assert told.status == 200
            assert body_of(told.value) == raw
            assert told.value["target"] == CHAT
            assert front.state() == "ready"
            assert front.in_flight() == 0

    run(work())


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf", "small", "default", "local-model"])
def test_a_model_is_found_by_each_of_its_names(run: Run, tmp_path: Path, name: str) -> None:
    """Its own, with .gguf behind it, an alias, and the placeholders of clients that do not care."""

    async def work() -> None:
        async with Front(tmp_path, talker(aliases=("small",)), talker("other")) as front:
            await front.ask(CHAT, {"model": "tiny"})
            told = await front.ask(CHAT, {"model": name})
            assert told.status == 200
            assert front.exchanges[-1].model == "tiny"
            assert front.state("other") == "cold"

    run(work())


def test_without_a_name_it_is_the_default_model(run: Run, tmp_path: Path) -> None:
    """The one of the settings; without one the model that was used last; with none used the first."""

    async def work() -> None:
        async with Front(tmp_path, talker(), talker("other"), talker("third")) as front:
            await front.ask(CHAT, {})
            assert front.exchanges[-1].model == "tiny"
            await front.ask(CHAT, {"model": "other"})
            await front.ask(CHAT, {})
            assert front.exchanges[-1].model == "other"
            front.gateway.settings = GatewaySettings(default_model="third")
            await front.ask(CHAT, {})
            assert front.exchanges[-1].model == "third"

    run(work())


def test_the_query_and_a_form_name_a_model_too(run: Run, tmp_path: Path) -> None:
    """What in the query is meant for gpud does not reach the engine; a form reaches it byte for byte."""
    mark = uuid.uuid4().hex
    form = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n"model"\r\n'
        f'--{mark}\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n--{mark}--\r\n'
    ).encode()

    async def work() -> None:
        async with Front(tmp_path, talker(), talker("other")) as front:
            told = await front.ask("/v1/audio/voices?model=other&language=de&progress=1")
            assert told.value["target"] == "/v1/audio/voices?language=de"
            assert front.exchanges[-1].model == "other"
            headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
            told = await front.ask("/v1/audio/transcriptions", raw=form, headers=headers)
            assert (told.status, front.exchanges[-1].model) == (200, "other")
            assert body_of(told.value) == form
            assert told.value["headers"]["content-type"] == headers["Content-Type"]

    run(work())


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_upstream_passes_any_method_and_path(run: Run, tmp_path: Path, method: str) -> None:
    """An encoded slash stays one, and the query is not touched."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            told = await front.ask("/upstream/tiny/a%2Fb/c?model=x&y=%20", method=method, raw=b"")
            assert (told.value["method"], told.value["target"]) == (method, "/a%2Fb/c?model=x&y=%20")
            assert (await front.ask("/upstream/tiny", method=method)).value["target"] == "/"

    run(work())


def test_a_websocket_passes_through_to_an_engine(run: Run, tmp_path: Path) -> None:
    """Bytes go both ways, the model counts as used meanwhile, and both ends close together."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front, connected(front.path) as client:
            headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}
            await client.send(question("/upstream/tiny/socket", method="GET", headers=headers))
            answer = await client.answer()
            assert answer.status == 101
            assert answer.headers["sec-websocket-accept"] == "HSmrc0sMlYUkAGmm5OPpG2HaGWk="
            for piece in (b"hello", b"\x00\xff" * 1000):
                await client.send(piece)
                assert await asyncio.wait_for(client.reader.readexactly(len(piece)), 50) == piece
            assert front.in_flight() == 1
            client.half_close()
            assert await client.rest() == b""
            await asyncio.wait_for(front.served.wait(), 50)
            assert front.in_flight() == 0

    run(work())


def test_the_clients_key_stays_here_and_the_engines_key_there(run: Run, tmp_path: Path) -> None:
    """The engine gets its own key and no header that is not on the list; of its answer only listed ones come back."""
    headers = {
        "Authorization": f"Bearer {KEY}",
        "X-Api-Key": KEY,
        "Cookie": "mine",
        "X-Conversation-Id": "17",
        "Origin": "http://localhost",
        "Accept-Encoding": "gzip",
        "anthropic-version": "2023-06-01",
        "User-Agent": "test",
    }

    async def work() -> None:
        async with Front(tmp_path, talker(), allowed=("*",)) as front:
            seen = (await front.ask(CHAT, {"model": "tiny"}, headers=headers)).value["headers"]
            key = seen.pop("authorization").removeprefix("Bearer ")
            assert len(key) >= 32
            assert not {"mine", KEY, f"Bearer {KEY}"} & set(seen.values())
            assert key != KEY
            assert set(seen) == {
                "host",
                "content-length",
                "content-type",
                "accept-encoding",
                "anthropic-version",
                "user-agent",
            }
            assert seen["accept-encoding"] == "identity"
            told = await front.ask(CHAT, {"model": "tiny", "do": "loud-headers"}, headers=headers)
            assert told.body == b"ok"
            assert set(told.headers) == {"content-type", "content-length", "x-request-id", "server", "date"}
            assert key not in str(told.headers)

    run(work())


@pytest.mark.parametrize("status", [200, 400, 404, 500, 503])
def test_an_answer_of_an_engine_is_an_answer(run: Run, tmp_path: Path, status: int) -> None:
    """Its errors too go to the client as they are."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            told = await front.ask(CHAT, {"model": "tiny", "do": "status", "status": status})
            assert (told.status, told.value) == (status, {"error": {"message": "as asked"}})

    run(work())


def test_a_stream_passes_while_it_is_made_and_its_tokens_are_counted(run: Run, tmp_path: Path) -> None:
    """The first event is here long before the engine is done."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front, connected(front.path) as client:
            await front.ask(CHAT, {"model": "tiny"})
            asked = {"model": "tiny", "stream": True, "do": "stream", "events": 4, "every": 0.1}
            await client.send(question(CHAT, asked))
            seen = await asyncio.wait_for(client.reader.readuntil(b'{"number": 0}'), 50)
            assert b"text/event-stream" in seen
            assert b'{"number": 1}' not in seen
            rest = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 50)
            assert rest.index(b'{"number": 3}') < rest.index(b"data: [DONE]\n\n")
            exchange = front.exchanges[-1]
            assert (exchange.prompt_tokens, exchange.generated_tokens) == (11, 4)
            assert exchange.first_byte_s is not None
            assert front.exchanges[0].prompt_tokens == 7

    run(work())


def test_a_large_body_passes_and_one_too_large_is_refused(run: Run, tmp_path: Path) -> None:
    """Up to the limit it arrives whole; beyond it is 413 in the API's shape, whether its length was said or not."""
    image = base64.b64encode(hashlib.sha512(b"image").digest() * 80_000).decode()

    async def work() -> None:
        settings = GatewaySettings(body_bytes=8 << 20)
        async with Front(tmp_path, talker(), settings=settings) as front:
            raw = json.dumps({"model": "tiny", "messages": [{"images": [image]}]}).encode()
            told = await front.ask(CHAT, raw=raw)
            assert told.value["sha256"] == hashlib.sha256(raw).hexdigest()
            told = await front.ask(CHAT, raw=raw + b" " * (8 << 20))
            assert (told.status, told.value["error"]["type"]) == (413, "request_too_large")
            async with connected(front.path) as client:
                head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
                await client.send(head)
                piece = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
                for _ in range(9):
                    await client.send(piece)
                assert (await client.answer()).status == 413
            # Nothing is held any more.
            front.gateway.take_bytes(8 * (8 << 20))

    run(work())


def test_no_more_than_a_few_of_the_largest_bodies_are_held_at_once(run: Run, tmp_path: Path) -> None:
    """Who would be one more is told when to come again; small requests of others are not the problem."""

    async def work() -> None:
        async with Front(tmp_path, talker(), settings=GatewaySettings(body_bytes=1000)) as front:
            front.gateway.take_bytes(7900)
            told = await front.ask(CHAT, raw=b'{"model":"tiny"}' + b" " * 500)
            assert told.status == 503
            assert told.headers["retry-after"] == "5"
            assert (await front.ask(CHAT, raw=b'{"model":"tiny"}')).status == 200

    run(work())


# What cannot be meant ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"model":"tiny","model":"other"}', "more than once"),
        (b'{"model":"tiny","mod\\u0065l":"other"}', "more than once"),
        (b'{"model":"tiny","model":"tiny"}', "more than once"),
        (b'{"model":"tiny"', "cannot read the body"),
        (b'{"model":7}', "cannot read the body"),
        (b'["tiny"]', "cannot read the body"),
        (b'{"model":"\xff"}', "cannot read the body"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "cannot read the body"),
    ],
    ids=["twice", "twice-escaped", "twice-the-same", "cut-off", "a-number", "a-list", "not-utf8", "nested"],
)
def test_a_body_that_cannot_be_understood_is_400(run: Run, tmp_path: Path, raw: bytes, words: str) -> None:
    """It reaches no engine, and none is loaded for it."""

    async def work() -> None:
        async with Front(tmp_path, talker(), talker("other")) as front:
            told = await front.ask(CHAT, raw=raw)
            assert told.status == 400
            assert words in told.value["error"]["message"]
            assert {front.state(), front.state("other")} == {"cold"}

    run(work())


def test_a_model_may_be_named_twice_at_different_depths(run: Run, tmp_path: Path) -> None:
    """A tool's parameter of that name, or a text that speaks of it, is no second model."""
    asked = {
        "tools": [{"parameters": {"model": {"type": "string"}}}],
        "model": "tiny",
        "prompt": '"model":"x"',
        "x": "model",
    }

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            assert (await front.ask(CHAT, asked)).status == 200

    run(work())


def test_an_unknown_model_is_404_in_the_shape_of_the_api(run: Run, tmp_path: Path) -> None:
    """OpenAI's, Anthropic's and llama-server's; the nearest name is told."""

    async def work() -> None:
        async with Front(tmp_path, talker("llama3.2")) as front:
            told = await front.ask(CHAT, {"model": "llama3.1"})
            assert told.status == 404
            assert told.value["error"]["code"] == "model_not_found"
            assert 'did you mean "llama3.2"?' in told.value["error"]["message"]
            told = await front.ask("/v1/messages", {"model": "llama3.1"})
            assert (told.status, told.value["type"]) == (404, "error")
            assert told.value["error"]["type"] == "not_found_error"
            told = await front.ask("/completion", {"model": "llama3.1"})
            assert (told.status, told.value["error"]["type"]) == (404, "not_found_error")

    run(work())


def test_a_key_gets_only_the_models_that_it_may_use(run: Run, tmp_path: Path) -> None:
    """Others are 403, are not listed, and are not chosen for it."""

    async def work() -> None:
        async with Front(tmp_path, talker(), talker("other"), allowed=("other",)) as front:
            key = {"Authorization": f"Bearer {KEY}"}
            assert (await front.ask(CHAT, {"model": "tiny"}, headers=key)).status == 403
            assert (await front.ask("/upstream/tiny/x", headers=key)).status == 403
            assert [one["id"] for one in (await front.ask("/v1/models", headers=key)).value["data"]] == ["other"]
            assert (await front.ask("/v1/models/tiny", headers=key)).status == 404
            assert (await front.ask(CHAT, {}, headers=key)).status == 200
            assert front.exchanges[-1].model == "other"
            assert front.state() == "cold"

    run(work())


def test_a_compressed_body_is_415(run: Run, tmp_path: Path) -> None:
    """gpud cannot see which model it means."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            told = await front.ask(CHAT, raw=b"xx", headers={"Content-Encoding": "gzip"})
            assert told.status == 415

    run(work())


# What does not load a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize", "/apply-template"])
def test_tokenizing_does_not_load_a_model_unless_asked_to(run: Run, tmp_path: Path, path: str) -> None:
    """It is 409 until the model is loaded, or the request says ?load=true."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            told = await front.ask(path, {"model": "tiny", "content": "x"})
            assert told.status == 409
            assert "is not loaded" in told.value["error"]["message"]
            assert front.state() == "cold"
            told = await front.ask(f"{path}?load=true", {"model": "tiny", "content": "x"})
            assert told.value["target"] == path.removeprefix("/v1")
            assert (await front.ask(path, {"model": "tiny", "content": "x"})).status == 200

    run(work())


@pytest.mark.parametrize("path", ["/props", "/slots", "/lora-adapters"])
def test_looking_at_a_model_neither_loads_nor_keeps_it(run: Run, tmp_path: Path, path: str) -> None:
    """Whoever looks again and again does not make an idle model a used one."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            assert (await front.ask(f"{path}?model=tiny")).status == 409
            await front.ask(CHAT, {"model": "tiny"})
            used = front.engine.snapshot().models[0].last_used_s
            told = await front.ask(f"{path}?model=tiny&fail_on_no_slot=1")
            assert told.value["target"] == f"{path}?fail_on_no_slot=1"
            assert front.engine.snapshot().models[0].last_used_s == used
            assert used is not None

    run(work())


# The list ------------------------------------------------------------------------------------------------------------


def test_the_list_of_models_says_how_each_stands(run: Run, tmp_path: Path) -> None:
    """In one shape for the clients of OpenAI, llama-server and llama-swap, and in Anthropic's for theirs."""

    async def work() -> None:
        async with Front(tmp_path, talker(aliases=("small",)), talker("org/other")) as front:
            await front.ask(CHAT, {"model": "tiny"})
            told = (await front.ask("/v1/models")).value
            assert told["object"] == "list"
            first, second = told["data"]
            assert (first["id"], first["object"], first["owned_by"]) == ("tiny", "model", "local")
            assert (first["aliases"], first["loaded"], first["state"]) == (["small"], True, "ready")
            assert (first["status"], second["status"]) == ({"value": "loaded"}, {"value": "unloaded"})
            assert first["size"] == GIB
            assert isinstance(first["created"], int)
            assert second["loaded"] is False
            assert (await front.ask("/v1/models/small")).value["id"] == "tiny"
            assert (await front.ask("/v1/models/org/other")).value["id"] == "org/other"
            assert (await front.ask("/v1/models/nobody")).status == 404
            theirs = (await front.ask("/v1/models", headers={"anthropic-version": "2023-06-01"})).value
            assert [one["display_name"] for one in theirs["data"]] == ["tiny", "org/other"]
            assert theirs["has_more"] is False

    run(work())


# While it waits ------------------------------------------------------------------------------------------------------


def test_a_stream_is_kept_company_while_its_model_loads(run: Run, tmp_path: Path) -> None:
    """Comments come first, then the engine's stream; with X-Gpud-Progress also events."""
    gate = tmp_path / "gate"

    async def work() -> None:
        model = talker("tiny", "--ready-when", str(gate))
        async with Front(tmp_path, model) as front, connected(front.path) as client:
            asked = {"model": "tiny", "stream": True, "do": "stream"}
            await client.send(question(CHAT, asked, headers={"X-Gpud-Progress": "true"}))
            # The first may come before the load has begun.
            seen = await asyncio.wait_for(client.reader.readuntil(b'"state":"loading"'), 50)
            assert b"HTTP/1.1 200" in seen
            assert b': gpud waits: "tiny": ' in seen
            assert b"event: gpud.progress\n" in seen
            assert front.state() == "loading"
            gate.touch()
            rest = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 50)
            assert rest.index(b'{"number": 0}') < rest.index(b"[DONE]")
            assert b"gpud waits" not in rest[rest.index(b'{"number": 0}') :]

    run(work())


def test_who_asks_for_no_stream_just_waits(run: Run, tmp_path: Path) -> None:
    """No byte comes before the engine's answer."""
    gate = tmp_path / "gate"

    async def work() -> None:
        async with Front(tmp_path, talker("tiny", "--ready-when", str(gate))) as front, connected(front.path) as client:
            await client.send(question(CHAT, {"model": "tiny"}))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 0.3)
            gate.touch()
            assert (await client.answer()).status == 200

    run(work())


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/completion"])
def test_a_wait_that_fails_ends_with_an_error_event(run: Run, tmp_path: Path, path: str) -> None:
    """In the shape of the API, with the last lines of the engine; then the stream ends properly."""

    async def work() -> None:
        model = talker("tiny", "--ready-after", "60", load_timeout_s=0.5)
        async with Front(tmp_path, model) as front:
            told = await front.ask(path, {"model": "tiny", "stream": True})
            assert told.status == 200
            events = [event for event in told.events if event[0] != ":"]
            assert len(events) < len(told.events)
            name, data = events[0]
            value = json.loads(data)
            if path == "/v1/messages":
                assert (name, value["type"], len(events)) == ("error", "error", 1)
                message = value["error"]["message"]
            elif path == "/v1/responses":
                assert (name, value["type"]) == ("error", "error")
                message = value["message"]
            else:
                message = value["error"]["message"]
            assert 'cannot load "tiny"' in message
            assert (("", "[DONE]") in events) == (path == CHAT)

    run(work())


def test_what_fails_at_once_keeps_its_status(run: Run, tmp_path: Path) -> None:
    """A model that can never fit is 507 with need and available, also for a stream."""

    async def work() -> None:
        async with Front(tmp_path, talker(size_bytes=64 * GIB), settings=GatewaySettings(first_s=3600)) as front:
            told = await front.ask(CHAT, {"model": "tiny", "stream": True})
            assert told.status == 507
            error = told.value["error"]
            assert error["type"] == "insufficient_vram"
            assert error["need_bytes"] >= 64 * GIB
            assert error["available_bytes"] < 9 * GIB

    run(work())


@pytest.mark.parametrize("way", ["full", "late"])
def test_a_queue_that_is_full_or_too_slow_is_told(run: Run, tmp_path: Path, way: str) -> None:
    """503 with Retry-After where no place is left, 504 where the turn did not come in time."""

    async def work() -> None:
        queue = QueueLimits(size=0 if way == "full" else 5, timeout_s=0.3, turn_s=60)
        models = (talker("tiny"), talker("other", size_bytes=15 * GIB // 2))
        async with (
            Front(tmp_path, *models, limits=Limits(queue=queue)) as front,
            front.engine.use("tiny", Caller("holder", 0)),
        ):
            told = await front.ask(CHAT, {"model": "other"})
            if way == "full":
                assert (told.status, told.value["error"]["type"]) == (503, "queue_full")
                assert int(told.headers["retry-after"]) >= 1
            else:
                assert (told.status, told.value["error"]["type"]) == (504, "queue_timeout")

    run(work())


def test_a_gpu_that_was_given_away_is_503(run: Run, tmp_path: Path) -> None:
    """With the time after which it is worth asking again."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            front.engine.yield_gpus(Caller("player", 0), why="a game")
            told = await front.ask(CHAT, {"model": "tiny"})
            assert (told.status, told.value["error"]["type"]) == (503, "gpu_yielded")
            assert told.headers["retry-after"] == "60"

    run(work())


# Clients that leave --------------------------------------------------------------------------------------------------


def notes_of(path: Path, word: str) -> list[dict[str, Any]]:
    return [note for note in noted(path) if word in note]


async def until(true: Callable[[], object], bound_s: float = 50.0) -> None:
    """Another process wrote something down: nobody tells when."""
    async with asyncio.timeout(bound_s):
        while not true():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("do", ["hang", "stream"])
def test_a_client_that_leaves_takes_its_engines_connection_with_it(run: Run, tmp_path: Path, do: str) -> None:
    """In the middle of a stream and before the first byte, with no heartbeat that could find out; how soon is told by
    the bench."""
    notes = tmp_path / "notes"

    async def work() -> None:
        settings = GatewaySettings(first_s=3600, heartbeat_s=3600)
        async with Front(tmp_path, talker(notes=notes), settings=settings) as front:
            await front.ask(CHAT, {"model": "tiny"})
            async with connected(front.path) as client:
                asked = {"model": "tiny", "stream": True, "do": do, "events": 100_000, "every": 0.02}
                await client.send(question(CHAT, asked))
                if do == "stream":
                    await client.reader.readuntil(b'{"number": 1}')
                else:
                    await until(lambda: [note for note in noted(notes) if note.get("do") == "hang"])
                client.leave()
                await until(lambda: notes_of(notes, "left"))
            await until(lambda: front.in_flight() == 0)

    run(work())


def test_a_load_that_nobody_waits_for_any_more_is_given_up(run: Run, tmp_path: Path) -> None:
    """The only client leaves while the model loads; with a second one it goes on."""
    gate = tmp_path / "gate"

    async def work() -> None:
        async with Front(tmp_path, talker("tiny", "--ready-when", str(gate))) as front, connected(front.path) as stays:
            async with connected(front.path) as client:
                await client.send(question(CHAT, {"model": "tiny"}))
                await until(lambda: front.state() == "loading")
                client.leave()
                await until(lambda: front.state() != "loading")
            await until(lambda: front.state() == "cold")
            await stays.send(question(CHAT, {"model": "tiny"}))
            async with connected(front.path) as client:
                await client.send(question(CHAT, {"model": "tiny", "stream": True}))
                await until(lambda: front.state() == "loading" and len(front.engine.snapshot().jobs) == 2)
                client.leave()
                await until(lambda: len(front.engine.snapshot().jobs) == 1)
            assert front.state() == "loading"
            gate.touch()
            assert (await stays.answer()).status == 200

    run(work())


def test_a_client_that_only_ends_its_sending_gets_its_answer(run: Run, tmp_path: Path) -> None:
    """A half-close is no leaving."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front, connected(front.path) as client:
            await client.send(question(CHAT, {"model": "tiny"}))
            client.half_close()
            assert (await client.answer()).status == 200

    run(work())


# Engines that fail ---------------------------------------------------------------------------------------------------


def test_an_engine_that_dies_before_its_first_byte_is_replaced_once(run: Run, tmp_path: Path) -> None:
    """The client gets the answer of the second engine and notices nothing."""
    notes = tmp_path / "notes"

    async def work() -> None:
        async with Front(tmp_path, talker(notes=notes)) as front:
            asked = {"model": "tiny", "do": "die-first-once", "mark": str(tmp_path / "mark")}
            told = await front.ask(CHAT, asked)
            assert told.status == 200
            pids = [note["pid"] for note in noted(notes)]
            assert len(pids) == len(set(pids)) == 2
            assert told.value["pid"] == pids[1]

    run(work())


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_always_dies_is_tried_twice_and_told(run: Run, tmp_path: Path, stream: bool) -> None:
    """500 with what is known of its end, as long as nothing was begun; no third engine meets the request."""
    notes = tmp_path / "notes"

    async def work() -> None:
        async with Front(tmp_path, talker(notes=notes), settings=GatewaySettings(first_s=60)) as front:
            told = await front.ask(CHAT, {"model": "tiny", "do": "die-first", "stream": stream})
            assert (told.status, told.value["error"]["type"]) == (500, "backend_error")
            assert "exited with status 3" in told.value["error"]["message"]
            assert len(noted(notes)) == 2

    run(work())


def test_what_may_have_changed_something_is_not_sent_again(run: Run, tmp_path: Path) -> None:
    """A POST to an engine's own pages is sent once, whatever comes of it."""
    notes = tmp_path / "notes"

    async def work() -> None:
        async with Front(tmp_path, talker(notes=notes)) as front:
            told = await front.ask("/upstream/tiny/change", {"do": "die-first"})
            assert told.status == 500
            assert len(noted(notes)) == 1

    run(work())


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_stream_whose_engine_dies_ends_with_an_error_event(run: Run, tmp_path: Path, path: str) -> None:
    """What had come is there, then what happened with the engine's last lines (without secrets), then the end."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            told = await front.ask(path, {"model": "tiny", "stream": True, "do": "die-mid"})
            assert told.status == 200
            events = [event for event in told.events if event[0] != ":"]
            assert events[:2] == [("", '{"number": 0}'), ("", '{"number": 1}')]
            error = json.loads(events[2][1])["error"]
            assert "exited with status 3" in error["message"]
            assert any("CUDA error: out of memory" in line for line in error["engine_output"])
            assert "hf_" not in str(error)
            if path == CHAT:
                assert events[3:] == [("", "[DONE]")]
            else:
                assert events[2][0] == "error"

    run(work())


def test_an_answer_that_is_no_stream_and_breaks_off_is_cut(run: Run, tmp_path: Path) -> None:
    """The client sees that the answer is not complete."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front, connected(front.path) as client:
            await client.send(question(CHAT, {"model": "tiny", "do": "die-mid-json"}))
            seen = await client.rest()
            assert b"Content-Length: 100" in seen
            assert seen.endswith(b'{"half":')

    run(work())


def test_garbage_is_502(run: Run, tmp_path: Path) -> None:
    """And it says whose."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            told = await front.ask(CHAT, {"model": "tiny", "do": "garbage"})
            assert (told.status, told.value["error"]["type"]) == (502, "bad_gateway")
            assert 'the engine of "tiny" gave no proper answer' in told.value["error"]["message"]

    run(work())


def test_a_stream_that_stalls_is_ended(run: Run, tmp_path: Path) -> None:
    """Within the bound, with an error event; the engine's connection is closed."""
    notes = tmp_path / "notes"

    async def work() -> None:
        settings = GatewaySettings(first_s=60, stall_s=1)
        async with Front(tmp_path, talker(notes=notes), settings=settings) as front:
            told = await front.ask(CHAT, {"model": "tiny", "stream": True, "do": "stall"})
            events = [data for name, data in told.events if name != ":"]
            assert "sent nothing for 1 s" in json.loads(events[2])["error"]["message"]
            await until(lambda: notes_of(notes, "left"))

    run(work())


def test_an_error_that_comes_after_the_stream_was_begun_is_an_event(run: Run, tmp_path: Path) -> None:
    """The status can no longer be told; what the engine said is."""
    gate = tmp_path / "gate"

    async def work() -> None:
        model = talker("tiny", "--ready-when", str(gate))
        async with Front(tmp_path, model) as front, connected(front.path) as client:
            await client.send(question(CHAT, {"model": "tiny", "stream": True, "do": "status", "status": 400}))
            await asyncio.wait_for(client.reader.readuntil(b"gpud waits"), 50)
            gate.touch()
            rest = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 50)
            assert b'data: {"error": {"message": "as asked"}}\n\ndata: [DONE]\n\n' in rest

    run(work())


def test_the_exchange_is_told_what_it_was_for(run: Run, tmp_path: Path) -> None:
    """The model by its configured name, for whoever counts."""

    async def work() -> None:
        async with Front(tmp_path, talker(aliases=("small",))) as front:
            await front.ask(CHAT, {"model": "small"})
            exchange: Exchange = front.exchanges[0]
            assert (exchange.model, exchange.generated_tokens) == ("tiny", 3)

    run(work())


def test_who_waits_for_memory_is_told_for_what(run: Run, tmp_path: Path) -> None:
    """The comment names what is in the way."""

    async def work() -> None:
        models = (talker("tiny"), talker("other", size_bytes=15 * GIB // 2))
        async with Front(tmp_path, *models) as front, connected(front.path) as client:
            async with front.engine.use("tiny", Caller("holder", 0)):
                await client.send(question(CHAT, {"model": "other", "stream": True, "do": "stream"}))
                told = await asyncio.wait_for(client.reader.readuntil(b"\n\n"), 50)
                while b"tiny" not in told:
                    told = await asyncio.wait_for(client.reader.readuntil(b"\n\n"), 50)
                assert b': gpud waits: "other": ' in told
            assert await asyncio.wait_for(client.reader.readuntil(b"[DONE]"), 50)

    run(work())


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_the_queue_leaves_it_at_once(run: Run, tmp_path: Path, stream: bool) -> None:
    """Nothing waits for memory any more, and nothing is loaded when there is some."""

    async def work() -> None:
        models = (talker("tiny"), talker("other", size_bytes=15 * GIB // 2))
        async with Front(tmp_path, *models) as front, front.engine.use("tiny", Caller("holder", 0)):
            async with connected(front.path) as client:
                await client.send(question(CHAT, {"model": "other", "stream": stream}))
                await until(lambda: front.engine.snapshot().queue)
                client.leave()
                await until(lambda: not front.engine.snapshot().queue)
            assert (front.state("other"), front.engine.snapshot().jobs) == ("cold", ())

    run(work())


def test_a_stream_whose_first_engine_dies_gets_the_second_ones(run: Run, tmp_path: Path) -> None:
    """Between the two it is told what it waits for."""

    async def work() -> None:
        async with Front(tmp_path, talker()) as front:
            asked = {"model": "tiny", "stream": True, "do": "die-first-once", "mark": str(tmp_path / "mark")}
            told = await front.ask(CHAT, asked)
            assert told.status == 200
            assert {name for name, _ in told.events} == {":", ""}
            assert json.loads(told.events[-2][1])["usage"]
            assert told.events[-1] == ("", "[DONE]")

    run(work())


def test_no_heartbeat_where_none_is_wanted(run: Run, tmp_path: Path) -> None:
    """heartbeat 0: a stream waits as any other request does."""

    async def work() -> None:
        settings = GatewaySettings(first_s=0.01, heartbeat_s=0)
        async with Front(tmp_path, talker("tiny", "--ready-after", "0.3"), settings=settings) as front:
            told = await front.ask(CHAT, {"model": "tiny", "stream": True, "do": "stream"})
            assert told.events[0] == ("", '{"number": 0}')

    run(work())
