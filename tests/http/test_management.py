"""The management API, in the shapes that clients of the ml-offload API know, and what gpud adds to them."""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from engine.catalogue import configured
from engine.parts import GIB
from house import BOUND_S, House, house
from sparse_model import write_llama

from gpud.catalog import gguf
from gpud.core.errors import BackendFailed
from gpud.core.events import ModelChanged, Outcome
from gpud.core.facts import Caller, EngineSettings, Model, Priority, State
from gpud.core.keys import ApiKey
from gpud.core.plan import Plan
from gpud.core.record import replace
from gpud.http.own import KNOWN_BACKENDS, OwnSettings

Run = Callable[..., Any]
A = Model("Alpha-8B", "fake", aliases=("first",))
B = Model("Beta-1B", "fake")
ALICE = Caller("alice", 1000, label="alice")
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def state(found: House, name: str) -> str:
    return next(one.state.value for one in found.engine.snapshot().models if one.model.name == name)


async def loaded(found: House, *names: str) -> None:
    for name in names:
        assert (await found.ask("POST /load", {"model": name})).status == 200


# Whether it is well --------------------------------------------------------------------------------------------------


def test_root_says_where_things_are(run: Run, tmp_path: Path) -> None:
    """Name, version, documentation, health, and the four that everybody wants."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            root = (await found.ask("GET /")).value
            assert root["name"] == "gpud management API" and root["version"] == "0"
            assert (root["docs"], root["health"]) == ("/docs", "/health")
            assert set(root["endpoints"]) == {"backends", "models", "status", "vram"}
            for path in (root["docs"], root["health"], root["openapi"], *root["endpoints"].values()):
                assert (await found.ask(f"GET {path}")).status == 200

    run(work())


def test_health_names_what_is_missing(run: Run, tmp_path: Path) -> None:
    """Healthy, or degraded when the state, the models' directory or the devices are not there."""

    async def work() -> None:
        async with house(tmp_path, A, settings=OwnSettings(models_path=str(tmp_path))) as (found, bench):
            told = (await found.ask("GET /health")).value
            assert set(told) == {"status", "timestamp", "version", "services"}
            assert told["status"] == "healthy" and STAMP.fullmatch(told["timestamp"])
            assert told["services"] == {"registry_db": True, "models_path": True, "vram_monitor": True}
            found.parts.settings = OwnSettings(models_path=str(tmp_path / "missing"))
            told = (await found.ask("GET /health")).value
            assert told["status"] == "degraded" and told["services"]["models_path"] is False
            found.parts.settings = OwnSettings(models_path=str(tmp_path))
            bench.store.next_problem = "the disk is full"
            await loaded(found, "Alpha-8B")
            await asyncio.wait_for(bench.store.learned_something.wait(), BOUND_S)
            await bench.engine.refresh()
            told = (await found.ask("GET /health")).value
            assert told["status"] == "degraded" and told["services"]["registry_db"] is False

    run(work())


def test_the_editors_plugin_reads_api_health(run: Run, tmp_path: Path) -> None:
    """``backends.llamacpp`` with available, ready and details, whatever is configured."""

    async def work() -> None:
        llama = Model("Gamma", "llama_server", EngineSettings(file=str(tmp_path / "gamma.gguf")))
        async with house(tmp_path, A, B) as (found, bench):
            told = (await found.ask("GET /api/health")).value
            assert told["backends"]["llamacpp"] == {
                "available": False,
                "ready": False,
                "details": "no model is configured for llamacpp",
            }
            assert told["status"] == "healthy" and told["backends"]["fake"]["ready"] is True
            await loaded(found, "Alpha-8B")
            assert (await found.ask("GET /api/health")).value["backends"]["fake"]["details"] == "loaded: Alpha-8B"
            models = {**bench.models, "Gamma": llama}
            backends = {"fake": bench.backend, "llama_server": bench.backend}
            await bench.engine.apply(
                shelf=configured(models), limits=bench.limits, idle_timeout_s=300.0, backends=backends
            )
            assert (await found.ask("GET /api/health")).value["backends"]["llamacpp"]["ready"] is True
            await found.ask("POST /yield", {"why": "a game"})
            told = (await found.ask("GET /api/health")).value
            assert (
                told["backends"]["llamacpp"]["ready"] is False
                and "given away" in told["backends"]["llamacpp"]["details"]
            )

    run(work())


def test_api_health_is_unhealthy_when_nothing_would_answer(run: Run, tmp_path: Path) -> None:
    """Nothing is configured, or all that is has failed."""

    async def work() -> None:
        async with house(tmp_path) as (found, _):
            assert (await found.ask("GET /api/health")).value["status"] == "unhealthy"
        async with house(tmp_path, A) as (found, bench):
            bench.backend.unfit = BackendFailed("there is no such file", preflight=True)
            assert (await found.ask("POST /load", {"model": "Alpha-8B"})).status == 500
            told = (await found.ask("GET /api/health")).value
            assert told["status"] == "unhealthy" and told["backends"]["fake"]["ready"] is False
            assert "there is no such file" in told["backends"]["fake"]["details"]

    run(work())


def test_backend_info_is_of_the_model_that_was_used_last(run: Run, tmp_path: Path) -> None:
    """Its context, layers and threads; null where nothing is loaded."""

    async def work() -> None:
        model = replace(A, settings=EngineSettings(context=4096, layers="all", threads=6))
        async with house(tmp_path, model) as (found, _):
            none = (await found.ask("GET /api/backend/info")).value
            assert none["model"] is None and {"n_ctx", "n_gpu_layers", "n_threads"} <= set(none)
            await loaded(found, "Alpha-8B")
            told = (await found.ask("GET /api/backend/info")).value
            assert told == {"model": "Alpha-8B", "backend": "fake", "n_ctx": 4096, "n_gpu_layers": -1, "n_threads": 6}

    run(work())


# Models --------------------------------------------------------------------------------------------------------------

MODEL_KEYS = {
    "id",
    "name",
    "path",
    "format",
    "size_gb",
    "vram_estimate_gb",
    "architecture",
    "quantization",
    "parameter_count",
    "context_length",
    "compatible_backends",
    "last_scanned",
    "last_used",
    "usage_count",
    "priority",
    "tags",
    "notes",
}


def llama(tmp_path: Path, **changes: Any) -> Model:
    """A model whose file says that it has 8 billion parameters."""
    path = write_llama(tmp_path / "big.gguf")
    return Model("big", "fake", EngineSettings(file=path, **changes))


def test_models_are_a_list_with_lists_in_it(run: Run, tmp_path: Path) -> None:
    """Each with what its file says; what should be a list is one."""

    async def work() -> None:
        model = llama(tmp_path)
        async with house(tmp_path, A, model) as (found, bench):
            bench.files.by_path[model.settings.file] = gguf.read(model.settings.file)
            first, second = (await found.ask("GET /models")).value
            assert set(first) >= MODEL_KEYS and [first["id"], second["id"]] == [1, 2]
            assert first["path"] is None and first["size_gb"] is None
            assert second["path"].endswith("big.gguf") and second["format"] == "gguf"
            assert (second["architecture"], second["quantization"]) == ("llama", "Q8_0")
            assert second["size_gb"] == 7.95 and second["parameter_count"] == "8.0B"
            assert second["context_length"] == 131072 and second["compatible_backends"] == ["fake"]
            assert second["tags"] == ["completion"] and second["priority"] == "normal"
            assert STAMP.fullmatch(second["last_scanned"]) and second["last_used"] is None

    run(work())


def test_a_model_whose_file_cannot_be_read_says_so(run: Run, tmp_path: Path) -> None:
    """It is in the list like the others."""

    async def work() -> None:
        model = Model("lost", "fake", EngineSettings(file="/nowhere/lost.gguf"))
        async with house(tmp_path, model) as (found, _):
            (told,) = (await found.ask("GET /models")).value
            assert told["notes"] == "cannot read /nowhere/lost.gguf" and told["size_gb"] is None
            scan = (await found.ask("POST /models/scan")).value
            assert scan["status"] == "scan_complete" and scan["models"] == 1
            assert (scan["new"], scan["gone"], scan["changed"], scan["problems"]) == ([], [], [], [])
            assert (await found.ask("GET /models/scan")).status == 405

    run(work())


def test_models_are_filtered(run: Run, tmp_path: Path) -> None:
    """By format, by backend, and how many; what is no filter is refused."""

    async def work() -> None:
        async with house(tmp_path, A, B, llama(tmp_path)) as (found, _):

            async def names(query: str) -> list[str]:
                return [one["name"] for one in (await found.ask(f"GET /models?{query}")).value]

            assert await names("format=gguf") == ["big"]
            assert await names("backend=fake&limit=2") == ["Alpha-8B", "Beta-1B"]
            assert await names("backend=llamacpp") == [] == await names("backend=ollama")
            for query, word in (
                ("limit=0", "limit"),
                ("limit=1001", "limit"),
                ("limit=x", "limit"),
                ("format=exe", "format"),
                ("backend=nobody", "nobody"),
            ):
                status, kind, message = (await found.ask(f"GET /models?{query}")).error
                assert (status, kind) == (400, "invalid_request") and word in message

    run(work())


@pytest.mark.parametrize("said", ["1", "Alpha-8B", "Alpha-8B.gguf", "first", "default"])
def test_a_model_is_found_by_number_name_and_alias(run: Run, tmp_path: Path, said: str) -> None:
    """With or without .gguf."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            told = await found.ask(f"GET /models/{said}")
            assert (told.status, told.value["name"], told.value["id"]) == (200, "Alpha-8B", 1)

    run(work())


@pytest.mark.parametrize("said", ["3", "0", "alpha-8b", "nothing", "a%2Fb"])
def test_an_unknown_model_is_404(run: Run, tmp_path: Path, said: str) -> None:
    """Names mind the case; the answer says which was meant, or where they are listed."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            status, kind, message = (await found.ask(f"GET /models/{said}")).error
            assert (status, kind) == (404, "model_not_found")
            assert said != "alpha-8b" or 'did you mean "Alpha-8B"' in message
            assert said != "3" or "no model with the id 3" in message

    run(work())


def test_backends_are_listed_whether_used_or_not(run: Run, tmp_path: Path) -> None:
    """Those that are always named, of which gpud supervises two here; then those that are configured besides."""

    async def work() -> None:
        async with house(tmp_path, A, settings=OwnSettings(attached=frozenset({"ollama"}))) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.ask("GET /backends")).value
            assert [one["name"] for one in told] == [*KNOWN_BACKENDS, "fake"]
            *others, own = told
            assert {"name", "status", "type", "host", "port", "loaded_model", "vram_usage_mb"} <= set(told[0])
            assert (own["status"], own["type"]) == ("active", "systemd")
            assert {one["status"] for one in others} == {"inactive"}
            assert [one["type"] for one in others] == ["systemd", *["api"] * (len(others) - 1)]
            assert (own["loaded_model"], own["vram_usage_mb"]) == ("Alpha-8B", 1024)
            found.parts.settings = OwnSettings()
            told = (await found.ask("GET /backends")).value
            assert [one["name"] for one in told[:-1] if one["supervised"]] == ["llamacpp", "ollama"]

    run(work())


def test_a_backend_whose_models_failed_is_in_error(run: Run, tmp_path: Path) -> None:
    """Until one of them is loaded again."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            bench.backend.unfit = BackendFailed("no", preflight=True)
            await found.ask("POST /load", {"model": "Alpha-8B"})
            assert (await found.ask("GET /backends")).value[-1]["status"] == "error"

    run(work())


# Memory --------------------------------------------------------------------------------------------------------------


def test_vram_is_the_same_by_both_names(run: Run, tmp_path: Path) -> None:
    """GB of 1024 MiB with two decimals, percent with one; GPUs and processes as lists."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            await loaded(found, "Alpha-8B")
            one, other = [(await found.ask(f"GET {path}")).value for path in ("/vram", "/vram/status")]
            assert STAMP.fullmatch(one.pop("timestamp")) and other.pop("timestamp")
            assert one == other
            assert {name: one[name] for name in ("total_gb", "used_gb", "free_gb", "utilization_percent")} == {
                "total_gb": 8.0,
                "used_gb": 1.0,
                "free_gb": 7.0,
                "utilization_percent": 12.5,
            }
            (gpu,) = one["gpus"]
            assert (gpu["id"], gpu["gpu_id"], gpu["name"]) == (0, 0, "Test GPU")
            assert (gpu["total_mb"], gpu["used_mb"], gpu["free_mb"]) == (8192, 1024, 7168)
            assert gpu["utilization_percent"] == 12.5 and gpu["temperature_c"] is None
            pid = bench.backend.runners["Alpha-8B"].pid
            assert one["processes"] == [{"gpu_id": 0, "pid": pid, "name": "engine", "memory_mb": 1024, "own": True}]

    run(work())


def test_curl_and_jq_read_vram(run: Run, tmp_path: Path) -> None:
    """As people look at it."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            command = ("curl", "-sf", "--unix-socket", found.socket("management"), "http://localhost:9000/vram/status")
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=BOUND_S)
            told = json.loads(done.stdout)
            assert told["total_gb"] > 0 and told["gpus"] and told["processes"] == []

    run(work())


def test_budget_says_whether_it_fits_and_how_many_layers_would(run: Run, tmp_path: Path) -> None:
    """Eight GiB do not go into what eight GiB leave; some of the layers do."""

    async def work() -> None:
        model = llama(tmp_path, context=4096)
        async with house(tmp_path, replace(B, size_bytes=GIB), model) as (found, bench):
            bench.files.by_path[model.settings.file] = gguf.read(model.settings.file)
            bench.backend.plans["big"] = Plan(file=model.settings.file, context=4096, layers=99, gpus=1)
            told = (await found.ask("GET /vram/budget?model_id=2")).value
            assert {"need_gb", "available_gb", "fits", "recommended_layers"} <= set(told)
            assert told["fits"] is False and told["need_gb"] > 8.0 and told["available_gb"] == 7.75
            assert 20 <= told["recommended_layers"] < 33 and told["verdict"] == "refused"
            small = (await found.ask("GET /vram/budget?model=Beta-1B")).value
            assert (small["need_gb"], small["fits"], small["verdict"]) == (1.0, True, "fits")
            await loaded(found, "Beta-1B")
            assert small["recommended_layers"] is None
            again = (await found.ask("GET /vram/budget?model=Beta-1B")).value
            assert (again["fits"], again["verdict"], again["message"]) == (True, "loaded", '"Beta-1B" is loaded')

    run(work())


def test_budget_names_who_would_have_to_go(run: Run, tmp_path: Path) -> None:
    """It fits, after an idle model has made room."""

    async def work() -> None:
        async with house(tmp_path, A, replace(B, size_bytes=7 * GIB)) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.ask("GET /vram/budget?model_id=2")).value
            assert (told["fits"], told["verdict"], told["victims"]) == (True, "evicts", ["Alpha-8B"])

    run(work())


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("", 400, "model_id"),
        ("model=nobody", 404, "nobody"),
        ("model=1&layers=-1", 400, "layers"),
        ("model=1&context=many", 400, "context"),
        ("model_path=other.gguf", 404, "other.gguf"),
    ],
)
def test_budget_refuses_what_it_cannot_understand(run: Run, tmp_path: Path, query: str, status: int, word: str) -> None:
    """With what was wrong."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            told = (await found.ask(f"GET /vram/budget?{query}")).error
            assert told[0] == status and word in told[2]

    run(work())


def test_status_has_everything_at_one_glance(run: Run, tmp_path: Path) -> None:
    """Memory, backends, what is loaded, and who waits."""

    async def work() -> None:
        async with house(tmp_path, A, replace(B, size_bytes=7 * GIB)) as (found, bench):
            await loaded(found, "Alpha-8B")
            async with bench.engine.use("Alpha-8B", ALICE):
                told = await found.ask("POST /schedule", {"model": "Beta-1B"})
                assert told.status == 202
                await bench.engine.refresh()
                status = (await found.ask("GET /status")).value
                assert {"timestamp", "vram", "backends", "loaded_models", "pending_queue"} <= set(status)
                assert status["vram"]["total_gb"] == 8.0 and status["yielded"] is None
                (one,) = status["loaded_models"]
                assert (one["name"], one["state"], one["in_flight"]) == ("Alpha-8B", "busy", 1)
                (waiting,) = status["pending_queue"]
                assert (waiting["model"], waiting["need_gb"], waiting["position"]) == ("Beta-1B", 7.0, 1)
                assert (await found.ask("GET /queue")).value["depth"] == 1

    run(work())


# Loading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"model_id": 1},
        {"model_id": "Alpha-8B"},
        {"model": "first", "priority": "medium"},
        {"model_id": 1, "backend": "fake", "priority": "high"},
        {"model_id": 1, "engines": ["fake", "other"]},
        {"model_path": "/models/alpha.gguf"},
        {"model_path": "alpha.gguf", "backend": "fake", "gpu_layers": 22},
        {"model_id": 1, "params": {"context_length": 2048, "gpu_layers": 22, "flash_attention": True}},
    ],
)
def test_load_takes_a_number_a_name_or_a_path(run: Run, tmp_path: Path, body: dict[str, object]) -> None:
    """And answers when the model is there."""

    async def work() -> None:
        settings = EngineSettings(file="/models/alpha.gguf", layers="22", flash_attention="on")
        async with house(tmp_path, replace(A, settings=settings)) as (found, bench):
            told = await found.ask("POST /load", body)
            assert told.status == 200, told.body
            value = told.value
            assert (value["status"], value["success"], value["model"], value["model_id"]) == (
                "loaded",
                True,
                "Alpha-8B",
                1,
            )
            assert value["vram_usage_gb"] == 1.0 and value["backend"] == "fake"
            context = 2048 if "params" in body else None
            assert value["params_used"]["context_length"] == context
            assert bench.backend.orders[0].model.settings.context == context

    run(work())


@pytest.mark.parametrize(
    ("body", "status", "kind", "word"),
    [
        ({}, 400, "invalid_request", "no model is named"),
        ({"model_id": 7}, 404, "model_not_found", "no model with the id 7"),
        ({"model": "alpha"}, 404, "model_not_found", "alpha"),
        ({"model_path": "/other.gguf"}, 404, "model_not_found", "/other.gguf"),
        ({"model_id": 1, "backend": "docker"}, 400, "invalid_request", "docker"),
        ({"model_id": 1, "backend": "ollama"}, 400, "invalid_request", "served by fake"),
        ({"model_id": 1, "engines": ["ollama"]}, 400, "invalid_request", "with ollama: it is configured for fake"),
        ({"model_id": 1, "engines": ["a b"]}, 400, "invalid_request", "no engine's name"),
        ({"model_id": 1, "engines": ["fake"], "backend": "fake"}, 400, "invalid_request", "say one of them"),
        ({"model_id": 1, "engines": "fake"}, 400, "invalid_request", "engines"),
        ({"model_id": 1, "priority": "urgent"}, 400, "invalid_request", "urgent"),
        ({"model_id": 1, "gpu_layers": 3}, 400, "invalid_request", "layers: of the model"),
        ({"model_id": 1, "params": {"rope_freq_scale": 0.5}}, 400, "invalid_request", "rope_freq_scale"),
        ({"model_id": 1, "params": {"context_length": 0}}, 400, "invalid_request", "at least 1"),
        ({"model_id": 1, "params": {"context_lenght": 1}}, 400, "invalid_request", 'mean "context_length"'),
        ({"model_id": 1, "wait_seconds": -1}, 400, "invalid_request", "wait_seconds"),
        ({"modle": "x"}, 400, "invalid_request", 'did you mean "model"'),
        ({"model": "x" * 300}, 400, "invalid_request", "256"),
    ],
)
def test_load_refuses_with_reasons(
    run: Run, tmp_path: Path, body: dict[str, object], status: int, kind: str, word: str
) -> None:
    """Nothing is loaded then."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            told = (await found.ask("POST /load", body)).error
            assert told[:2] == (status, kind) and word in told[2]
            assert bench.backend.orders == []

    run(work())


def test_what_does_not_fit_is_507_with_both_numbers(run: Run, tmp_path: Path) -> None:
    """``insufficient_vram``: need and available, for people and for programs."""

    async def work() -> None:
        async with house(tmp_path, replace(A, size_bytes=20 * GIB)) as (found, _):
            for path in ("/load", "/switch"):
                told = await found.ask(f"POST {path}", {"model": "Alpha-8B"})
                status, kind, message = told.error
                assert (status, kind) == (507, "insufficient_vram") and "20.0" in message
                assert told.value["error"]["need_bytes"] == 20 * GIB
                assert 0 < told.value["error"]["available_bytes"] < 8 * GIB

    run(work())


def test_load_need_not_wait(run: Run, tmp_path: Path) -> None:
    """``wait: false`` is 202 with the job, which can be asked about and called off."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            bench.backend.gate = asyncio.Event()
            told = await found.ask("POST /load", {"model": "Alpha-8B", "wait": False})
            assert told.status == 202 and told.value["status"] in ("queued", "loading")
            assert told.headers["location"] == f"/jobs/{told.value['job']}"
            await asyncio.wait_for(bench.backend.entered.wait(), BOUND_S)
            job = (await found.ask(f"GET {told.headers['location']}")).value
            assert (job["state"], job["kind"], job["model"]) == ("running", "load", "Alpha-8B")
            assert [one["id"] for one in (await found.ask("GET /jobs")).value] == [job["id"]]
            gone = (await found.ask(f"DELETE /jobs/{job['id']}")).value
            assert gone["state"] == "canceled"
            assert (await found.ask(f"GET /jobs/{job['id']}")).value["state"] == "canceled"
            assert (await found.ask("GET /jobs")).value == []
            assert (await found.ask(f"DELETE /jobs/{job['id']}")).error[:2] == (404, "not_found")

    run(work())


def test_a_job_can_be_waited_for(run: Run, tmp_path: Path) -> None:
    """``?wait=true`` answers at its end, with the error where it failed."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            bench.backend.gate = asyncio.Event()
            bench.backend.failure = BackendFailed("the engine broke", hint="mend it")
            job = (await found.ask("POST /schedule", {"model": "Alpha-8B"})).value["job"]
            waiting = asyncio.ensure_future(found.ask(f"GET /jobs/{job}?wait=true"))
            await asyncio.wait_for(bench.backend.entered.wait(), BOUND_S)
            bench.backend.gate.set()
            told = (await waiting).value
            assert told["state"] == "failed" and told["error"]["type"] == "backend_error"
            assert "the engine broke" in told["error"]["message"]

    run(work())


@pytest.mark.parametrize("said", ["99", "x", "-1", "1" * 40])
def test_a_job_that_is_not_there_is_404(run: Run, tmp_path: Path, said: str) -> None:
    """Whatever its number."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            assert (await found.ask(f"GET /jobs/{said}")).error[:2] == (404, "not_found")
            assert (await found.ask(f"DELETE /jobs/{said}")).error[:2] == (404, "not_found")

    run(work())


def test_whoever_leaves_while_it_loads_leaves_the_load_behind(run: Run, tmp_path: Path) -> None:
    """Memory that was asked for is there when they come back."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            bench.backend.gate = asyncio.Event()
            command = (
                f"curl -s -m 0.3 --unix-socket {found.socket('management')} -d '{{\"model_id\": 1}}' localhost/load"
            )
            done = await asyncio.to_thread(subprocess.run, ["sh", "-c", command], check=False, timeout=BOUND_S)
            assert done.returncode == 28
            (job,) = (await found.ask("GET /jobs")).value
            bench.backend.gate.set()
            assert (await found.ask(f"GET /jobs/{job['id']}?wait=true")).value["state"] == "done"
            assert state(found, "Alpha-8B") == "ready"

    run(work())


def test_schedule_goes_by_priority(run: Run, tmp_path: Path) -> None:
    """Who asks with a higher one is served before those who came earlier."""

    async def work() -> None:
        models = [Model("one", "fake"), *(Model(name, "fake", size_bytes=7 * GIB) for name in ("two", "three"))]
        async with house(tmp_path, *models) as (found, bench):
            await loaded(found, "one")
            async with bench.engine.use("one", ALICE):
                await found.ask("POST /schedule", {"model": "two"})
                told = (await found.ask("POST /schedule", {"model": "three", "priority": "critical"})).value
                assert told["status"] == "queued" and told["priority"] == "critical"
                await bench.engine.refresh()
                queue = (await found.ask("GET /queue")).value
                assert [(one["model"], one["priority"]) for one in queue["queue"]] == [
                    ("three", "critical"),
                    ("two", "normal"),
                ]
                assert (await found.ask("GET /api/stats")).value["queue_depth"] == {"critical": 1, "normal": 1}

    run(work())


# Unloading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "gone"),
    [
        ({"model": "Alpha-8B"}, ["Alpha-8B"]),
        ({"model_id": 1, "backend": "fake"}, ["Alpha-8B"]),
        ({"model": "all"}, ["Alpha-8B", "Beta-1B"]),
        ({}, ["Alpha-8B", "Beta-1B"]),
        ({"backend": "fake"}, ["Alpha-8B", "Beta-1B"]),
        ({"backend": "all"}, ["Alpha-8B", "Beta-1B"]),
        ({"model": "fake"}, ["Alpha-8B", "Beta-1B"]),
        ({"backend": "ollama"}, []),
    ],
)
def test_unload_takes_a_name_all_nothing_or_a_backend(
    run: Run, tmp_path: Path, body: dict[str, object], gone: list[str]
) -> None:
    """What is told is what has gone and what it gave back."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B", "Beta-1B")
            told = (await found.ask("POST /unload", body)).value
            assert sorted(told["models"]) == gone and told["errors"] == [] and told["success"] is True
            assert told["status"] == ("unloaded" if gone else "not_loaded")
            assert told["vram_freed_gb"] == float(len(gone))
            assert {one for one in ("Alpha-8B", "Beta-1B") if state(found, one) == "cold"} == set(gone)

    run(work())


def test_unload_leaves_what_others_hold(run: Run, tmp_path: Path) -> None:
    """It says who; with force it goes."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            await loaded(found, "Alpha-8B", "Beta-1B")
            bench.engine.hold("Beta-1B", ALICE, reason="works", application="editor")
            told = (await found.ask("POST /unload", {})).value
            assert (told["status"], told["models"]) == ("partly", ["Alpha-8B"])
            assert told["errors"][0]["model"] == "Beta-1B" and "editor" in told["errors"][0]["error"]
            assert (await found.ask("POST /unload", {"model": "Beta-1B"})).status == 409
            assert (await found.ask("POST /unload", {"model": "Beta-1B", "force": True})).value["status"] == "unloaded"

    run(work())


def test_unload_tells_what_was_not_loaded(run: Run, tmp_path: Path) -> None:
    """What had failed is forgiven, and what was to come back stays away; the job says the same."""

    async def work() -> None:
        async with house(tmp_path, replace(A, pinned=True), B) as (found, bench):
            await loaded(found, "Alpha-8B")
            bench.backend.failure = BackendFailed("the engine broke")
            assert (await found.ask("POST /load", {"model": "Beta-1B"})).status == 500
            told = (await found.ask("POST /unload", {"model": "Beta-1B"})).value
            assert (told["status"], told["models"], told["called_off"]) == ("unloaded", ["Beta-1B"], ["Beta-1B"])
            gone = asyncio.Event()

            def listen(outcomes: tuple[Outcome, ...]) -> None:
                if any(isinstance(one, ModelChanged) and one.new is State.COLD for one in outcomes):
                    gone.set()

            bench.engine.subscribe(listen)
            await found.ask("POST /yield", {"why": "a game"})
            await asyncio.wait_for(gone.wait(), BOUND_S)
            told = (await found.ask("POST /unload", {"model": "Alpha-8B"})).value
            assert (told["status"], told["models"], told["stay_away"]) == ("not_loaded", [], ["Alpha-8B"])
            told = (await found.ask("POST /unload", {"model": "Alpha-8B"})).value
            assert (told["status"], told["stay_away"], told["success"]) == ("not_loaded", [], True)
            await found.ask("POST /resume")
            assert state(found, "Alpha-8B") == "cold"

    run(work())


def test_the_job_of_an_unload_says_what_it_did(run: Run, tmp_path: Path) -> None:
    """By model, for programs; the sentence is for people. A load has none of it."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            await loaded(found, "Alpha-8B", "Beta-1B")
            bench.engine.hold("Beta-1B", ALICE, reason="works", application="editor")
            job = bench.engine.unload("", Caller("bob", 1001, label="bob"))
            told = (await found.ask(f"GET /jobs/{job}?wait=true")).value
            assert told["state"] == "done"
            assert told["unload"] == {
                "models": ["Alpha-8B"],
                "vram_freed_gb": 1.0,
                "errors": [{"model": "Beta-1B", "error": '"Beta-1B" is held by editor'}],
                "called_off": [],
                "stay_away": [],
            }
            load = (await found.ask("POST /schedule", {"model": "Alpha-8B"})).value["job"]
            assert (await found.ask(f"GET /jobs/{load}?wait=true")).value["unload"] is None

    run(work())


def test_unload_refuses_what_is_not_there(run: Run, tmp_path: Path) -> None:
    """An unknown model is 404, an unknown backend 400, a model of another backend 400."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            assert (await found.ask("POST /unload", {"model": "nobody"})).error[:2] == (404, "model_not_found")
            assert (await found.ask("POST /unload", {"backend": "nobody"})).error[:2] == (400, "invalid_request")
            told = await found.ask("POST /unload", {"backend": "ollama", "model": "Alpha-8B"})
            assert told.error[:2] == (400, "invalid_request")

    run(work())


# Switching -----------------------------------------------------------------------------------------------------------


def test_switch_unloads_the_backends_other_models_first(run: Run, tmp_path: Path) -> None:
    """Then the one that is wanted is there."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.ask("POST /switch", {"backend": "fake", "model_id": 2})).value
            assert (told["status"], told["model"], told["backend"]) == ("switched", "Beta-1B", "fake")
            assert told["unloaded"] == ["Alpha-8B"] and told["vram_freed_gb"] == 1.0
            assert (state(found, "Alpha-8B"), state(found, "Beta-1B")) == ("cold", "ready")
            again = (await found.ask("POST /switch", {"model": "Beta-1B"})).value
            assert again["unloaded"] == [] and again["status"] == "switched"

    run(work())


def test_switch_to_what_cannot_be_started_unloads_nobody(run: Run, tmp_path: Path) -> None:
    """The missing file is found before."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            await loaded(found, "Alpha-8B")
            bench.backend.unfit = BackendFailed("there is no such file", kind="missing", preflight=True)
            status, kind, message = (await found.ask("POST /switch", {"model": "Beta-1B"})).error
            assert (status, kind) == (500, "backend_error") and "there is no such file" in message
            assert state(found, "Alpha-8B") == "ready"

    run(work())


def test_switch_to_an_engine_that_does_not_serve_it_unloads_nobody(run: Run, tmp_path: Path) -> None:
    """The words are those of a load; with one that does, those of that engine go."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B")
            status, kind, message = (
                await found.ask("POST /switch", {"model": "Beta-1B", "engines": ["vllm", "tgi"]})
            ).error
            assert (status, kind) == (400, "invalid_request")
            assert message.startswith('cannot load "Beta-1B" with vllm or tgi: it is configured for fake; name one')
            assert state(found, "Alpha-8B") == "ready"
            told = (await found.ask("POST /switch", {"model": "Beta-1B", "engines": ["fake"]})).value
            assert (told["status"], told["unloaded"]) == ("switched", ["Alpha-8B"])

    run(work())


def test_switch_stops_where_somebody_holds(run: Run, tmp_path: Path) -> None:
    """Nothing is loaded beside what should have gone."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            await loaded(found, "Alpha-8B")
            bench.engine.hold("Alpha-8B", ALICE, reason="works", application="editor")
            assert (await found.ask("POST /switch", {"model": "Beta-1B"})).status == 409
            assert (state(found, "Alpha-8B"), state(found, "Beta-1B")) == ("ready", "cold")

    run(work())


# Reasons, claims, giving away ----------------------------------------------------------------------------------------


def test_reasons_are_told_newest_first(run: Run, tmp_path: Path) -> None:
    """Of one model, or of all."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, _):
            await loaded(found, "Alpha-8B", "Beta-1B")
            told = (await found.ask("GET /explain?model=first&limit=2")).value["entries"]
            assert [one["kind"] for one in told] == ["model-loaded", "load-started"]
            assert {one["model"] for one in told} == {"Alpha-8B"} and STAMP.fullmatch(told[0]["at"])
            everything = (await found.ask("GET /explain")).value["entries"]
            assert {one["model"] for one in everything} == {"Alpha-8B", "Beta-1B"}
            assert (await found.ask("GET /explain?model=nobody")).status == 404
            assert (await found.ask("GET /explain?limit=501")).status == 400

    run(work())


def test_claims_are_shown(run: Run, tmp_path: Path) -> None:
    """Who has how much, and since when."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            claim = bench.engine.claim(2 * GIB, ALICE, who="blender", why="a film", priority=Priority.HIGH)
            await bench.engine.claimed(claim)
            (told,) = (await found.ask("GET /claims")).value
            assert (told["id"], told["who"], told["why"], told["size_gb"]) == (claim, "blender", "a film", 2.0)
            assert told["granted"] is True and told["device"] == "GPU-0" and told["priority"] == "high"
            bench.engine.drop_claim(claim, "done")

    run(work())


def test_the_gpus_are_given_away_and_taken_back(run: Run, tmp_path: Path) -> None:
    """Meanwhile nothing is loaded: 503 with when to ask again."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            await loaded(found, "Alpha-8B")
            told = (await found.ask("POST /yield", {"why": "a game", "for_seconds": 3600})).value
            assert told["status"] == "yielded" and told["unloading"] == ["Alpha-8B"] and STAMP.fullmatch(told["until"])
            refused = await found.ask("POST /load", {"model": "Alpha-8B"})
            assert refused.error[:2] == (503, "gpu_yielded") and int(refused.headers["retry-after"]) > 0
            assert (await found.ask("GET /status")).value["yielded"]["why"] == "a game"
            assert (await found.ask("POST /resume")).value["message"] == "Models are loaded again"
            assert (await found.ask("POST /resume")).value["message"] == "The GPUs were not given away"
            await loaded(found, "Alpha-8B")
            assert (await found.ask("POST /yield", {"for_seconds": 0})).status == 400

    run(work())


def test_stats_count_what_was_asked(run: Run, tmp_path: Path) -> None:
    """By status and by model, since gpud started."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, bench):
            await found.ask("GET /models/nobody")
            bench.backend.failure = BackendFailed("no")
            await found.ask("POST /load", {"model": "Alpha-8B"})
            told = (await found.ask("GET /api/stats")).value
            assert told["requests"] == 2 and told["requests_failed"] == 1
            assert told["requests_by_status"] == {"404": 1, "500": 1}
            assert told["requests_by_model"] == {"Alpha-8B": 0}
            assert (told["models"], told["models_loaded"], told["in_flight"]) == (1, 0, 0)

    run(work())


def test_a_key_for_some_models_sees_those_alone(run: Run, tmp_path: Path) -> None:
    """In every list; numbers stay what they are."""
    keys = {"narrow": ApiKey("narrow", sha256(b"narrow").digest(), ("Beta-*",), may=frozenset(("use", "manage")))}

    async def work() -> None:
        async with house(tmp_path, A, B, keys=keys) as (found, bench):

            async def ask(what: str, body: object = None) -> Any:
                return await found.ask(what, body, key="narrow")

            (only,) = (await ask("GET /models")).value
            assert (only["id"], only["name"]) == (2, "Beta-1B")
            assert (await ask("GET /models/1")).error[:2] == (403, "permission_denied")
            assert (await ask("POST /load", {"model": "Alpha-8B"})).status == 403
            job = bench.engine.load("Alpha-8B", ALICE)
            await bench.engine.wait(job)
            assert (await ask(f"GET /jobs/{job}")).status == 404
            assert (await ask("GET /status")).value["loaded_models"] == []
            assert (await ask("POST /unload", {})).value["models"] == [] and state(found, "Alpha-8B") == "ready"
            for what in ("GET /explain", "GET /claims", "GET /events", "GET /logs", "POST /yield", "POST /resume"):
                assert (await ask(what)).status == 403, what

    run(work())


def test_every_change_is_no_get(tmp_path: Path, run: Run) -> None:
    """405, and all of them want the right to manage."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            paths = {route.path for route in found.routes["management"] if route.changes and route.method == "POST"}
            assert paths >= {"/load", "/unload", "/switch", "/schedule", "/models/scan", "/yield", "/resume"}
            for path in paths:
                assert (await found.ask(f"GET {path}")).status == 405, path

    run(work())


def test_what_somebody_says_of_a_model_is_kept(run: Run, tmp_path: Path) -> None:
    """Each key by itself; the list can be asked for by a tag, and ids lead to the same model for ever."""

    async def work() -> None:
        async with house(tmp_path, A, B) as (found, bench):
            told = (
                await found.ask("PATCH /models/1", {"tags": ["mine"], "priority": "high", "aliases": ["first"]})
            ).value
            assert (told["id"], told["name"]) == (1, A.name)
            assert told["tags"][0] == "mine" and told["priority"] == "high" and "first" in told["aliases"]
            told = (await found.ask("PATCH /models/first", {"notes": "good", "priority": ""})).value
            assert told["notes"] == "good" and told["priority"] == "normal" and told["tags"][0] == "mine"
            assert [one["name"] for one in (await found.ask("GET /models?tag=mine")).value] == [A.name]
            assert bench.engine.resolve("first") == A.name
            for body, word in (
                ({"priority": "urgent"}, "no priority"),
                ({"aliases": ["scan"]}, "cannot be an alias"),
                ({"colour": "red"}, "colour"),
            ):
                status, kind, message = (await found.ask("PATCH /models/1", body)).error
                assert (status, kind) == (400, "invalid_request") and word in message

    run(work())


def test_the_disk_with_the_models_is_told(run: Run, tmp_path: Path) -> None:
    """In the numbers of df; without a folder for models there is nothing to tell."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            assert (await found.ask("GET /status")).value["storage"] is None
            found.parts.settings = replace(found.parts.settings, models_path=str(tmp_path))
            told = (await found.ask("GET /status")).value["storage"]
            df = ["df", "-B1", "--output=size,avail", str(tmp_path)]
            size, free = subprocess.run(df, capture_output=True, text=True, check=True).stdout.split()[-2:]
            assert told["path"] == str(tmp_path) and told["total_gb"] == round(int(size) / 1024**3, 2)
            assert abs(told["free_gb"] - int(free) / 1024**3) < 1

    run(work())
