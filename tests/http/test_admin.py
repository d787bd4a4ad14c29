"""The admin routes of the front door, in the shapes that clients of four other programs know."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from house import BOUND_S, House, house, question
from layer.raw import connected

from gpud.core.errors import BackendFailed
from gpud.core.facts import Caller, EngineSettings, Model
from gpud.core.keys import ApiKey, Right
from gpud.core.ports import Stream
from gpud.http.access import Rules
from gpud.http.doors import Doors, Opening
from gpud.http.keys import Keys
from gpud.http.listening import TcpAddress
from gpud.http.own import OwnSettings
from gpud.http.routing import Router

Run = Callable[..., Any]
A = Model("Alpha-8B", "fake", aliases=("first",))
B = Model("Beta-1B", "fake", EngineSettings(command=("serve", "--api-key", "hidden")))
ALICE = Caller("alice", 1000, label="alice")


def key(secret: str, *allow: str, may: frozenset[Right] = frozenset(Right)) -> ApiKey:
    return ApiKey(secret, sha256(secret.encode()).digest(), allow or ("*",), may=may)


async def loaded(found: House, *names: str) -> None:
    for name in names:
        assert (await found.front("POST /models/load", {"model": name})).status == 200


def state(found: House, name: str) -> str:
    return next(one.state.value for one in found.engine.snapshot().models if one.model.name == name)


# What only looks -----------------------------------------------------------------------------------------------------


def test_health_has_the_shape_of_llama_server_and_more(run: Run, tmp_path: Path) -> None:
    """``status`` is ok whenever gpud answers; the loaded models and the uptime stand beside it."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            before = (await found.front("GET /health")).value
            assert before["status"] == "ok" and before["loaded_models"] == [] and before["state"] == "idle"
            assert isinstance(before["uptime"], int) and before["degraded"] == "" and before["version"] == "0"
            await loaded(found, "Alpha-8B")
            assert (await found.front("GET /v1/health")).value["loaded_models"] == ["Alpha-8B"]

    run(work())


def test_health_is_well_while_a_model_loads(run: Run, tmp_path: Path) -> None:
    """200 with the state, where llama-server itself would say 503."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            bench.backend.gate = asyncio.Event()
            told = await found.front("POST /models/load", {"model": "Alpha-8B", "wait": False})
            assert told.status == 202 and told.value["status"] == "loading"
            await asyncio.wait_for(bench.backend.entered.wait(), BOUND_S)
            health = await found.front("GET /health")
            assert (health.status, health.value["state"], health.value["loaded_models"]) == (200, "loading", [])
            bench.backend.gate.set()

    run(work())


def test_curl_reads_health(run: Run, tmp_path: Path) -> None:
    """As people ask it."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            command = ("curl", "-sf", "--unix-socket", found.socket("front"), "http://localhost/health")
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=BOUND_S)
            assert json.loads(done.stdout)["status"] == "ok"

    run(work())


def test_metrics_are_what_prometheus_reads(run: Run, tmp_path: Path) -> None:
    """With the type that its client asked for."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            await loaded(found, "Alpha-8B")
            told = await found.front("GET /metrics")
            assert told.headers["content-type"].startswith("text/plain; version=")
            assert b'gpud_loads_total{model="Alpha-8B",result="loaded"} 1.0' in told.body

    run(work())


def test_status_tells_memory_and_what_is_loaded(run: Run, tmp_path: Path) -> None:
    """The numbers by which a workflow decides whom to unload: in MiB, as nvidia-smi has them."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.front("GET /models/status")).value
            assert (told["total_mb"], told["used_mb"], told["free_mb"]) == (8192, 1024, 7168)
            assert told["utilization_percent"] is None
            (one,) = told["loaded_models"].values()
            assert set(one) == {"model", "service", "loaded_at", "vram_mb", "status"}
            assert (one["model"], one["service"], one["vram_mb"], one["status"]) == ("Alpha-8B", "fake", 1024, "loaded")

    run(work())


def test_running_has_neither_commands_nor_secrets(run: Run, tmp_path: Path) -> None:
    """llama-swap's keys, with nothing in those that would say how an engine is reached."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Beta-1B")
            told = await found.front("GET /running")
            (one,) = told.value["running"]
            assert one == {
                "model": "Beta-1B",
                "state": "ready",
                "ttl": 300,
                "name": "",
                "description": "",
                "cmd": "",
                "proxy": "",
            }
            assert b"hidden" not in told.body and b"sockets" not in told.body

    run(work())


def test_the_first_page_and_the_version(run: Run, tmp_path: Path) -> None:
    """What this is, in a few words."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            page = (await found.front("GET /")).value
            assert page["name"] == "gpud" and page["endpoints"]["chat"] == "/v1/chat/completions"
            assert (await found.front("GET /api/version")).value == {"version": "0", "commit": "", "build_date": ""}

    run(work())


# What changes something ----------------------------------------------------------------------------------------------

CHANGES = (
    "/admin/unload",
    "/admin/reload",
    "/models/load",
    "/models/unload",
    "/api/models/unload",
    "/api/models/unload/Alpha-8B",
    "/unload",
)


@pytest.mark.parametrize("path", CHANGES)
def test_changes_are_never_asked_with_get(run: Run, tmp_path: Path, path: str) -> None:
    """405, with what is allowed, and nothing happens."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            await loaded(found, "Alpha-8B")
            told = await found.front(f"GET {path}")
            assert told.status == 405 and told.headers["allow"] == "POST"
            assert state(found, "Alpha-8B") == "ready"

    run(work())


def test_admin_unload_by_name_and_all(run: Run, tmp_path: Path) -> None:
    """llama-cpp-server's answers, to the word."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B", "Beta-1B")
            one = await found.front("POST /admin/unload", {"model": "first"})
            assert one.value == {"status": "success", "message": "Model 'Alpha-8B' unloaded"}
            await loaded(found, "Alpha-8B")
            both = await found.front("POST /admin/unload", {"model": "all"})
            assert both.value == {"status": "success", "message": "Unloaded 2 models"}
            assert state(found, "Alpha-8B") == state(found, "Beta-1B") == "cold"
            none = await found.front("POST /admin/unload", {"model": "all"})
            assert none.value["message"] == "Unloaded 0 models"
            again = await found.front("POST /admin/unload", {"model": "Alpha-8B"})
            assert (again.status, again.value["message"]) == (200, "Model 'Alpha-8B' was not loaded")

    run(work())


def test_admin_unload_refuses_what_it_cannot_understand(run: Run, tmp_path: Path) -> None:
    """No model is 400, an unknown one 404, a field with a typo is named with what was meant."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            status, kind, message = (await found.front("POST /admin/unload")).error
            assert (status, kind) == (400, "invalid_request") and message.startswith("model field is required")
            status, kind, message = (await found.front("POST /admin/unload", {"model": "alpha-8b"})).error
            assert (status, kind) == (404, "model_not_found") and 'did you mean "Alpha-8B"' in message
            status, _, message = (await found.front("POST /admin/unload", {"model": "x", "forse": True})).error
            assert status == 400 and "'forse'" in message and 'did you mean "force"' in message
            status, _, message = (await found.front("POST /admin/unload", raw=b'{"model": 5}')).error
            assert status == 400 and "model" in message
            status, _, message = (await found.front("POST /admin/unload", raw=b"[" * 100_000)).error
            assert status == 400

    run(work())


def test_reload_tells_what_is_configured_now(run: Run, tmp_path: Path) -> None:
    """Names only: a configuration has secrets."""

    async def work() -> None:
        async with house(tmp_path, A, B, settings=OwnSettings(default_model="first")) as (found, _):
            told = await found.front("POST /admin/reload")
            assert told.value == {
                "status": "success",
                "message": "Configuration reloaded successfully",
                "config": {
                    "models": ["Alpha-8B", "Beta-1B"],
                    "default_model": "first",
                    "idle_timeout_seconds": 300.0,
                },
            }

    run(work())


def test_load_waits_and_tells_what_it_takes(run: Run, tmp_path: Path) -> None:
    """The orchestrator's answer; what is loaded already is no mistake."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            for _ in range(2):
                told = await found.front("POST /models/load", {"model": "Alpha-8B", "service": "fake", "priority": 10})
                assert told.status == 200
                assert {"model", "service", "loaded_at", "vram_mb", "status"} <= set(told.value)
                assert (told.value["status"], told.value["vram_mb"], told.value["success"]) == ("loaded", 1024, True)
            assert len(bench.backend.orders) == 1

    run(work())


def test_load_refuses_with_reasons(run: Run, tmp_path: Path) -> None:
    """An unknown service is 400, an unknown model 404, a priority that is none 400, an engine that fails 500."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):

            async def problem(**body: object) -> tuple[int, str, str]:
                return (await found.front("POST /models/load", {"model": "Alpha-8B", **body})).error

            status, kind, message = await problem(service="whisperx")
            assert (status, kind) == (400, "invalid_request") and "llamacpp, ollama" in message
            assert (await problem(model="Gamma"))[:2] == (404, "model_not_found")
            assert (await problem(model=""))[:2] == (400, "invalid_request")
            assert (await problem(priority=11))[:2] == (400, "invalid_request")
            bench.backend.failure = BackendFailed("the engine broke", hint="mend it")
            status, kind, message = await problem()
            assert (status, kind) == (500, "backend_error") and "the engine broke" in message and "mend it" in message

    run(work())


def test_unload_answers_as_the_orchestrator(run: Run, tmp_path: Path) -> None:
    """One model: unloaded, and the second time not loaded. Both are answers, not errors."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.front("POST /models/unload", {"model": "Alpha-8B", "force": False})).value
            assert told == {
                "success": True,
                "status": "unloaded",
                "model": "Alpha-8B",
                "service": "fake",
                "note": "1024 MiB given back",
            }
            again = (await found.front("POST /models/unload", {"model": "Alpha-8B"})).value
            assert (again["status"], again["success"]) == ("not_loaded", True)
            assert (await found.front("POST /models/unload", {"model": "Gamma"})).status == 404

    run(work())


def test_unload_without_a_model_means_all(run: Run, tmp_path: Path) -> None:
    """What somebody else holds stays, and is told with its reason."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            await loaded(found, "Alpha-8B", "Beta-1B")
            bench.engine.hold("Beta-1B", ALICE, reason="works", application="editor")
            told = (await found.front("POST /models/unload")).value
            assert told["success"] is False and told["unloaded"] == ["Alpha-8B"] and told["freed_mb"] == 1024
            (error,) = told["errors"]
            assert error["model"] == "Beta-1B" and "is held by" in error["error"]
            status, kind, _ = (await found.front("POST /models/unload", {"model": "Beta-1B"})).error
            assert (status, kind) == (409, "model_in_use")
            forced = (await found.front("POST /models/unload", {"model": "", "force": True})).value
            assert forced == {"success": True, "unloaded": ["Beta-1B"], "errors": [], "freed_mb": 1024}

    run(work())


@pytest.mark.parametrize("path", ["/api/models/unload", "/unload", "/api/models/unload/Alpha-8B"])
def test_unload_as_llama_swap_has_it(run: Run, tmp_path: Path, path: str) -> None:
    """With POST alone."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.front(f"POST {path}")).value
            assert told == {"msg": "ok", "success": True, "unloaded": ["Alpha-8B"], "errors": []}

    run(work())


def test_a_model_with_a_slash_can_be_unloaded(run: Run, tmp_path: Path) -> None:
    """Names of Hugging Face have one."""

    async def work() -> None:
        async with house(tmp_path, Model("org/name", "fake")) as (found, _):
            await loaded(found, "org/name")
            assert (await found.front("POST /api/models/unload/org/name")).value["unloaded"] == ["org/name"]

    run(work())


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_for_some_models_sees_and_unloads_those_alone(run: Run, tmp_path: Path) -> None:
    """Neither the other models nor what is about all of them."""
    keys = {"narrow": key("narrow", "Beta-*"), "wide": key("wide")}

    async def work() -> None:
        async with house(tmp_path, A, B, keys=keys) as (found, _):
            await loaded(found, "Alpha-8B", "Beta-1B")
            health = await found.front("GET /health", key="narrow")
            assert health.value["loaded_models"] == ["Beta-1B"]
            running = await found.front("GET /running", key="narrow")
            assert [one["model"] for one in running.value["running"]] == ["Beta-1B"]
            for path in ("/logs", "/logs/stream", "/logs/stream/proxy", "/api/events"):
                assert (await found.front(f"GET {path}", key="narrow")).status == 403
            assert (await found.front("GET /logs?model=Beta-1B", key="narrow")).status == 200
            assert (await found.front("GET /logs?model=Alpha-8B", key="narrow")).status == 403
            assert (await found.front("GET /logs", key="wide")).status == 200
            refused = await found.front("POST /models/unload", {"model": "Alpha-8B"}, key="narrow")
            assert refused.error[:2] == (403, "permission_denied")
            told = (await found.front("POST /models/unload", {}, key="narrow")).value
            assert told["unloaded"] == ["Beta-1B"] and state(found, "Alpha-8B") == "ready"

    run(work())


def test_a_key_that_may_only_use_changes_nothing(run: Run, tmp_path: Path) -> None:
    """Every change wants the right to manage."""
    keys = {"user": key("user", may=frozenset({Right.USE}))}

    async def work() -> None:
        async with house(tmp_path, A, keys=keys) as (found, _):
            for path in CHANGES:
                assert (await found.front(f"POST {path}", {}, key="user")).error[:2] == (403, "permission_denied")

    run(work())


def test_whoever_has_no_key_learns_only_that_gpud_is_well(run: Run, tmp_path: Path) -> None:
    """Health is open to all who reach the door; which models there are is not."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            await loaded(found, "Alpha-8B")
            routers = {name: Router(routes) for name, routes in found.routes.items()}
            doors = Doors(found.engine, routers, say=found.notices.append)
            rules = Rules(without_key=frozenset())
            openings = [Opening(name, (TcpAddress("127.0.0.1", 0),), rules) for name in routers]
            await doors.apply(openings, Keys([key("secret")]))
            try:
                ports = {name: int(where[0].rpartition(":")[2]) for name, where in doors.addresses.items()}
                told = {}
                for name, path in (("front", "/health"), ("management", "/health"), ("management", "/api/health")):
                    async with connected(ports[name]) as client:
                        answer = await client.ask(question(f"GET {path}"))
                    assert answer.status == 200 and b"Alpha" not in answer.body
                    told[name, path] = json.loads(answer.body)
                assert told["front", "/health"]["loaded_models"] == []
                assert told["management", "/api/health"]["backends"]["fake"] == {
                    "available": True,
                    "ready": True,
                    "details": None,
                }
                async with connected(ports["front"]) as client:
                    assert (await client.ask(question("GET /running"))).status == 401
                async with connected(ports["front"]) as client:
                    assert b"Alpha-8B" in (await client.ask(question("GET /health", key="secret"))).body
            finally:
                await doors.close(0.0)

    run(work())


# Logs and events -----------------------------------------------------------------------------------------------------


def test_the_log_shows_gpud_and_its_engines(run: Run, tmp_path: Path) -> None:
    """All of it, one model's, or one side's; without secrets."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B")
            found.lines.line(model="Beta-1B", engine="fake", stream=Stream.ERR, pid=1, text="api_key=topsecret123")
            told = await found.front("GET /logs")
            assert told.headers["content-type"] == "text/plain; charset=utf-8"
            assert b'[gpud] "Alpha-8B" is ready' in told.body and b"[Beta-1B] api_key=[redacted]" in told.body
            assert b"Alpha" not in (await found.front("GET /logs?model=Beta-1B")).body
            assert b"redacted" not in (await found.front("GET /logs?model=proxy")).body
            assert b"gpud" not in (await found.front("GET /logs?model=upstream")).body
            assert len((await found.front("GET /logs?limit=1")).body.splitlines()) == 1
            assert (await found.front("GET /logs?limit=0")).status == 400
            assert (await found.front("GET /logs?model=Gamma")).status == 404

    run(work())


def test_what_went_wrong_is_found_by_the_word_error(run: Run, tmp_path: Path) -> None:
    """``grep -i error`` finds why a model was not loaded; what went well has not the word."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            await loaded(found, "Beta-1B")
            assert b"error" not in (await found.front("GET /logs")).body
            bench.backend.failure = BackendFailed("the engine broke")
            assert (await found.front("POST /models/load", {"model": "Alpha-8B"})).status == 500
            lines = (await found.front("GET /logs")).body.decode().splitlines()
            assert any("error" in line and "Alpha-8B" in line and "the engine broke" in line for line in lines), lines

    run(work())


@pytest.mark.parametrize("path", ["/logs/stream", "/logs/stream/Alpha-8B", "/api/events"])
def test_the_head_alone_of_a_stream_is_an_answer_that_ends(run: Run, tmp_path: Path, path: str) -> None:
    """The next question on the same connection is answered."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _), found.listening(f"HEAD {path}", door="front") as client:
            async with asyncio.timeout(BOUND_S):
                assert (await client.answer("HEAD")).status == 200
                await client.send(question("GET /health"))
                answer = await client.answer("GET")
            assert (answer.status, json.loads(answer.body)["status"]) == (200, "ok")

    run(work())


@pytest.mark.parametrize("path", ["/logs/stream", "/logs/stream/Alpha-8B", "/logs/stream/upstream"])
def test_the_log_is_followed(run: Run, tmp_path: Path, path: str) -> None:
    """What was printed, then each line as it comes, until gpud ends."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            said = found.lines.line
            said(model="Alpha-8B", engine="fake", stream=Stream.OUT, pid=1, text="an old line")
            async with found.listening(f"GET {path}", door="front") as client:
                async with asyncio.timeout(BOUND_S):
                    head = await client.reader.readuntil(b"\r\n\r\n")
                    assert b"200 OK" in head and b"text/plain" in head
                    await client.reader.readuntil(b"an old line\n")
                    said(model="Alpha-8B", engine="fake", stream=Stream.OUT, pid=1, text="a new line")
                    await client.reader.readuntil(b"a new line\n")
                    found.lines.close()
                    assert (await client.reader.readuntil(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")

    run(work())


def test_the_log_is_followed_without_its_history(run: Run, tmp_path: Path) -> None:
    """``?no-history``, as llama-swap has it."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            said = found.lines.line
            said(model="Alpha-8B", engine="fake", stream=Stream.OUT, pid=1, text="an old line")
            async with found.listening("GET /logs/stream?no-history", door="front") as client:
                async with asyncio.timeout(BOUND_S):
                    await client.reader.readuntil(b"\r\n\r\n")
                    said(model="Alpha-8B", engine="fake", stream=Stream.OUT, pid=1, text="a new line")
                    assert b"old" not in await client.reader.readuntil(b"a new line\n")

    run(work())


async def next_event(client: Any) -> dict[str, str]:
    """One server-sent event off the wire; comments count as events named "comment"."""
    async with asyncio.timeout(BOUND_S):
        size = int(await client.reader.readuntil(b"\r\n"), 16)
        data = (await client.reader.readexactly(size + 2))[:-2].decode()
    if data.startswith(":"):
        return {"event": "comment"}
    return dict(line.split(": ", 1) for line in data.strip().split("\n"))


def test_events_are_told_and_resumed(run: Run, tmp_path: Path) -> None:
    """From the picture of the whole on; who comes back with the last id misses nothing and gets nothing twice."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            async with found.listening("GET /api/events?types=snapshot,model_state,gap", door="front") as client:
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert b"text/event-stream" in head and b"no-cache" in head
                first = await next_event(client)
                assert first["event"] == "snapshot"
                await loaded(found, "Alpha-8B")
                states = [json.loads((await next_event(client))["data"])["state"] for _ in range(2)]
                assert states == ["loading", "ready"]
            async with found.listening(
                "GET /api/events?types=snapshot,model_state,gap", door="front", Last_Event_ID=first["id"]
            ) as client:
                await client.reader.readuntil(b"\r\n\r\n")
                states = [json.loads((await next_event(client))["data"])["state"] for _ in range(2)]
                assert states == ["loading", "ready"]
            async with found.listening(
                "GET /api/events?types=snapshot,gap", door="front", Last_Event_ID="another-17"
            ) as client:
                await client.reader.readuntil(b"\r\n\r\n")
                assert (await next_event(client))["event"] == "gap"

    run(work())


def test_a_quiet_stream_says_that_it_is_there(run: Run, tmp_path: Path) -> None:
    """A comment now and then, so that nobody between cuts it."""

    async def work() -> None:
        async with (
            house(tmp_path, A, settings=OwnSettings(heartbeat_s=0.05)) as (found, _),
            found.listening("GET /api/events?types=gap", door="front") as client,
        ):
            async with asyncio.timeout(BOUND_S):
                await client.reader.readuntil(b"\r\n\r\n")
            for _ in range(2):
                assert (await next_event(client))["event"] == "comment"

    run(work())


def test_events_in_llama_swaps_words(run: Run, tmp_path: Path) -> None:
    """For its own pages and programs."""

    async def work() -> None:
        async with (
            house(tmp_path, A) as (found, _),
            found.listening("GET /api/events?shape=llama-swap", door="front") as client,
        ):
            async with asyncio.timeout(BOUND_S):
                await client.reader.readuntil(b"\r\n\r\n")
                told = await client.reader.readuntil(b'\\"id\\":\\"Alpha-8B\\"')
            assert b"event:message" in told and b'"type":"modelStatus"' in told

    run(work())


def test_unknown_types_of_events_are_refused(run: Run, tmp_path: Path) -> None:
    """With those that there are."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            status, _, message = (await found.front("GET /api/events?types=vram,moods")).error
            assert status == 400 and "'moods'" in message and "model_state" in message
            assert (await found.front("GET /api/events?shape=xml")).status == 400

    run(work())


def test_whoever_leaves_a_stream_is_forgotten(run: Run, tmp_path: Path) -> None:
    """Nothing is kept for one who listens no longer."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            async with found.listening("GET /api/events", door="front") as client:
                async with asyncio.timeout(BOUND_S):
                    await client.reader.readuntil(b"snapshot")
            async with asyncio.timeout(BOUND_S):
                while found.feed.listeners:
                    await asyncio.sleep(0.005)

    run(work())
