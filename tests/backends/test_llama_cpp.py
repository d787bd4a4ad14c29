"""llama-cpp-python's server: its command line, and the real one in a child."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from place import QUICK, Place, complete

from gpud.backends import call
from gpud.backends.llama_cpp import GGML_TYPES, LlamaCpp
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model, StopTimes

Run = Callable[..., Any]


def model_of(file: str, **settings: Any) -> Model:
    chosen = EngineSettings(file=file, **{"context": 2048, "threads": 1, **settings})
    return Model("tiny", "llama_cpp", chosen, load_timeout_s=60)


def test_its_command_line_has_its_own_names(tmp_path: Path) -> None:
    """Golden: numbers for cache types, words for switches, and the two defaults that are never wanted."""
    backend = LlamaCpp(EngineOptions(), Place(tmp_path).launcher)
    settings = {
        "context": 8192,
        "layers": "22",
        "threads": 6,
        "batch": 1024,
        "micro_batch": 256,
        "cache_type_k": "q8_0",
        "cache_type_v": "f16",
        "flash_attention": "on",
        "chat_template": "chatml",
        "mmproj": "/m/p.gguf",
        "embeddings": True,
        "extra_flags": ("--seed", "7"),
    }
    assert list(backend.flags(model_of("/m/a.gguf", **settings), 40123, on_gpu=True)) == [
        *("--model", "/m/a.gguf"),
        *("--model_alias", "tiny"),
        *("--host", "127.0.0.1"),
        *("--port", "40123"),
        *("--n_ctx", "8192"),
        *("--n_gpu_layers", "22"),
        *("--n_batch", "1024"),
        *("--n_ubatch", "256"),
        *("--n_threads", "6"),
        *("--type_k", "8"),
        *("--type_v", "1"),
        *("--flash_attn", "true"),
        *("--clip_model_path", "/m/p.gguf"),
        *("--chat_format", "chatml"),
        *("--embedding", "true"),
        *("--logits_all", "false"),
        *("--interrupt_requests", "false"),
        *("--seed", "7"),
    ]


@pytest.mark.parametrize(
    ("layers", "on_gpu", "expected"),
    [(None, True, "-1"), ("auto", True, "-1"), ("all", True, "-1"), ("5", True, "5"), ("all", False, "0")],
)
def test_layers_are_a_number(tmp_path: Path, layers: str | None, on_gpu: bool, expected: str) -> None:
    """Its own default is none at all."""
    argv = LlamaCpp(EngineOptions(), Place(tmp_path).launcher).flags(model_of("/a", layers=layers), 1, on_gpu=on_gpu)
    assert argv[argv.index("--n_gpu_layers") + 1] == expected


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"cpu_moe": 3}, "n_cpu_moe"),
        ({"override_tensor": "x=CPU"}, "override_tensor"),
        ({"parallel": 2}, "parallel"),
        ({"draft_file": "/m/d.gguf"}, "draft_file"),
        ({"reranking": True}, "reranking"),
        ({"cache_type_k": "q99"}, 'cache_type_k "q99"'),
        ({"extra_flags": ("--interrupt_requests", "true")}, "--interrupt_requests"),
        ({"extra_flags": ("--api_key=x",)}, "--api_key"),
    ],
)
def test_what_it_cannot_do_is_said_before_the_start(tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    """Not left out in silence."""
    backend = LlamaCpp(EngineOptions(), Place(tmp_path).launcher)
    with pytest.raises(BackendFailed) as failure:
        backend.check(model_of("/m/a.gguf", **settings))
    assert failure.value.preflight
    assert name in failure.value.message


def test_a_missing_package_is_said_with_the_command_that_installs_it(run: Run, tmp_path: Path, tiny: str) -> None:
    """By check where gpud's own interpreter is used, by the start where another is."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            for options, words in (
                (EngineOptions(python="/nonexistent/python"), "there is no interpreter /nonexistent/python"),
                (EngineOptions(), "the Python package llama_cpp is not installed for "),
            ):
                with pytest.raises(BackendFailed) as failure:
                    LlamaCpp(options, place.launcher).check(model_of(tiny))
                assert (failure.value.kind, failure.value.preflight) == ("package-missing", True)
                assert words in failure.value.message
                assert 'pip install "llama-cpp-python[server]"' in failure.value.hint
            backend = LlamaCpp(EngineOptions(python="/usr/bin/python3"), place.launcher)
            with pytest.raises(BackendFailed, match="No module named 'llama_cpp'") as failure:
                await backend.load(place.order(model_of(tiny)))
            assert failure.value.preflight

    run(work())


def real(place: Place, site: Path) -> LlamaCpp:
    return LlamaCpp(EngineOptions(environment=(("PYTHONPATH", str(site)),)), place.launcher)


async def loaded(backend: LlamaCpp, place: Place, model: Model) -> ProcessRunner:
    backend.check(model)
    runner = await backend.load(place.order(model))
    assert isinstance(runner, ProcessRunner)
    return runner


@pytest.mark.engines
def test_the_real_server_works_one_request_at_a_time(run: Run, tmp_path: Path, tiny: str, site: Path) -> None:
    """It says so; while it generates it is busy and healthy; a stranger is refused; it is found again; it ends."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = real(place, site)
            model = model_of(tiny)
            began = time.monotonic()
            runner = await loaded(backend, place, model)
            print(f"load {time.monotonic() - began:.2f} s")
            assert runner.serial
            assert await runner.busy() is False
            answer = await complete(runner, 8)
            assert answer["usage"]["completion_tokens"] == 8
            stranger = call.Endpoint(host="127.0.0.1", port=runner.endpoint.port)
            assert (await call.request(stranger, "GET", "/v1/models", timeout_s=50)).status == 401
            answering = asyncio.ensure_future(complete(runner, 1_900))
            while not (await runner.busy() or answering.done()):
                await asyncio.sleep(0.02)
            assert await backend.adopt(place.records[-1], model) is not None
            await runner.unload(QUICK)
            assert (await runner.gone()).code in (-15, -9)
            with pytest.raises(call.Unreachable):
                await answering
            assert len(place.journal.texts) < 25, place.journal.texts
            assert await backend.adopt(place.records[-1], model) is None

    run(work())


@pytest.mark.engines
@pytest.mark.parametrize(("broken", "kind"), [("truncated-tensors", "truncated"), ("missing-tensor", "incomplete")])
def test_the_real_server_says_what_is_wrong_with_a_file(
    run: Run, tmp_path: Path, site: Path, broken: str, kind: str
) -> None:
    """Out of a Python traceback and llama.cpp's own words."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            file = str(tiny_model.write_broken(tmp_path / "broken.gguf", broken))
            with pytest.raises(BackendFailed) as failure:
                await loaded(real(place, site), place, model_of(file))
            assert failure.value.kind == kind, failure.value.tail
            assert "llama_cpp.server exited with status 1 before it was ready: " in failure.value.message

    run(work())


@pytest.mark.engines
@pytest.mark.parametrize("after_s", [0.05, 0.5, 1.2])
def test_a_load_can_be_canceled(run: Run, tmp_path: Path, tiny: str, site: Path, after_s: float) -> None:
    """While its package is looked for, while it imports, while it loads."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            loading = asyncio.ensure_future(real(place, site).load(place.order(model_of(tiny))))
            await asyncio.sleep(after_s)
            loading.cancel()
            try:
                runner = await loading
            except asyncio.CancelledError:
                return
            await runner.unload(StopTimes())

    run(work())


@pytest.mark.engines
def test_cache_types_have_llama_cpps_numbers(site: Path) -> None:
    """They are part of its file format and do not change; a wrong one would load another cache than was asked for."""
    text = (site / "llama_cpp" / "llama_cpp.py").read_text() + (site / "include" / "ggml.h").read_text()
    for name, number in GGML_TYPES.items():
        assert f"GGML_TYPE_{name.upper():<7} = {number}," in text or f"GGML_TYPE_{name.upper()} = {number}" in text, (
            name
        )
