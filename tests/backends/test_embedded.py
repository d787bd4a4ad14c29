"""The engine that comes with gpud: a real child with the real wheel."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from place import Place, complete

from gpud.backends import call
from gpud.backends.embedded import PROGRAM, embedded
from gpud.backends.embedded_server import CACHE_TYPES, make_parser
from gpud.backends.llama_flags import Flags
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model, StopTimes

pytest.importorskip("xllamacpp", reason="the embedded engine is an extra")

Run = Callable[..., Any]


def model_of(file: str, **settings: Any) -> Model:
    chosen = EngineSettings(file=file, **{"context": 2048, "threads": 1, **settings})
    return Model("tiny", "embedded", chosen, load_timeout_s=60)


async def loaded(place: Place, model: Model) -> ProcessRunner:
    backend = embedded(EngineOptions(), place.launcher)
    backend.check(model)
    runner = await backend.load(place.order(model))
    assert isinstance(runner, ProcessRunner)
    return runner


def test_it_loads_answers_and_unloads(run: Run, tmp_path: Path, tiny: str) -> None:
    """Like a llama-server: on a private socket, with key, progress and gauges."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(place, model_of(tiny, parallel=2, flash_attention="on", batch=512, micro_batch=256))
            assert runner.endpoint.socket
            answer = await complete(runner, 8)
            assert (answer["model"], answer["usage"]["completion_tokens"]) == ("tiny", 8)
            assert place.progress[0].stage == "loading weights"
            assert await runner.busy() is False
            stranger = call.Endpoint(socket=runner.endpoint.socket, key="other")
            assert (await call.request(stranger, "GET", "/v1/models", timeout_s=50)).status == 401
            await runner.unload(StopTimes())
            assert (await runner.gone()).code == -15
            assert len(place.journal.texts) < 25, place.journal.texts

    run(work())


def test_it_ends_at_once_when_it_is_told_while_it_generates(run: Run, tmp_path: Path, tiny: str) -> None:
    """TERM has its default effect: no second one, no kill."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(place, model_of(tiny, context=32768))
            answering = asyncio.ensure_future(complete(runner, 30_000))
            while not (await runner.busy() or answering.done()):
                await asyncio.sleep(0.02)
            began = time.monotonic()
            await runner.unload(StopTimes(term_s=30))
            assert time.monotonic() - began < 25
            with pytest.raises(call.Unreachable):
                await answering

    run(work())


def test_it_ends_with_gpuds_hold_on_it(run: Run, tmp_path: Path, tiny: str) -> None:
    """When nobody holds the other end of its stdin any more."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(place, model_of(tiny))
            runner.child.close_lease()
            assert (await asyncio.wait_for(runner.gone(), 50)).code == 1

    run(work())


def test_it_is_found_again(run: Run, tmp_path: Path, tiny: str) -> None:
    """By its record."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            backend = embedded(EngineOptions(), place.launcher)
            model = model_of(tiny)
            await backend.load(place.order(model))
            runner = await backend.adopt(place.records[-1], model)
            assert runner is not None
            assert (await complete(runner, 4))["usage"]["completion_tokens"] == 4
            await runner.kill()

    run(work())


@pytest.mark.parametrize("kind", ["truncated-tensors", "unknown-architecture", "missing-tensor"])
def test_it_says_what_is_wrong_with_a_file(run: Run, tmp_path: Path, kind: str) -> None:
    """In llama-server's words, read by the same table."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            file = str(tiny_model.write_broken(tmp_path / "broken.gguf", kind))
            with pytest.raises(BackendFailed) as failure:
                await loaded(place, model_of(file))
            expected = {"truncated-tensors": "truncated", "unknown-architecture": "unsupported"}
            assert failure.value.kind == expected.get(kind, "incomplete")
            assert failure.value.hint
            assert "gpud-embedded-server exited with status 1 before it was ready: " in failure.value.message

    run(work())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extra_flags": ("--temp", "1.2")}, "the engine does not know --temp 1.2"),
        ({"cache_type_k": "q99"}, "the engine does not accept the value of -ctk: unsupported cache type: q99"),
        ({"flash_attention": "maybe"}, "the engine does not accept the value of -fa: invalid value 'maybe'"),
    ],
)
def test_it_says_what_is_wrong_with_a_setting(
    run: Run, tmp_path: Path, tiny: str, settings: dict[str, Any], words: str
) -> None:
    """Its flags are few; the others are named."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            with pytest.raises(BackendFailed) as failure:
                await loaded(place, model_of(tiny, **settings))
            assert failure.value.kind == "bad-flag"
            assert words in failure.value.message

    run(work())


def test_a_missing_wheel_is_said_before_the_start(run: Run, tmp_path: Path, tiny: str) -> None:
    """Shown by an interpreter that has no site-packages."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            python = tmp_path / "python"
            python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
            python.chmod(0o755)
            backend = embedded(EngineOptions(python=str(python)), place.launcher)
            with pytest.raises(BackendFailed) as failure:
                await backend.load(place.order(model_of(tiny)))
            assert failure.value.preflight
            assert "the Python package xllamacpp is not installed" in failure.value.message
            assert failure.value.hint == "install it into the interpreter that the engine runs with"

    run(work())


def test_every_setting_reaches_the_wheel(run: Run, tmp_path: Path, tiny: str) -> None:
    """A model with all that can be set for it loads and answers."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            # On a GPU, as far as the command line is concerned; a build without one loads on the host all the same.
            model = model_of(
                tiny,
                layers="1",
                cpu_moe=1,
                override_tensor=r"blk\.1\.ffn.*=CPU",
                cache_type_k="bf16",
                cache_type_v="f32",
                continuous_batching=True,
                chat_template="chatml",
                draft_file=tiny,
            )
            backend = embedded(EngineOptions(), place.launcher)
            runner = await backend.load(place.order(model, ("GPU-none",), "nvidia"))
            assert (await complete(runner, 4))["usage"]["completion_tokens"] == 4
            props = (await call.request(runner.endpoint, "GET", "/props", timeout_s=50)).json()
            assert isinstance(props, dict)
            assert "<|im_start|>" in str(props["chat_template"])
            await runner.unload(StopTimes())

    run(work())


def test_embeddings_are_served(run: Run, tmp_path: Path, tiny: str) -> None:
    """By a model that is only for them; how it pools is the user's to say."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            runner = await loaded(place, model_of(tiny, embeddings=True, extra_flags=("--pooling", "mean")))
            answer = await call.request(
                runner.endpoint, "POST", "/v1/embeddings", body={"input": "hello"}, timeout_s=10
            )
            assert answer.status == 200, answer.body
            await runner.unload(StopTimes())

    run(work())


def test_its_help_is_read_like_a_llama_servers() -> None:
    """One adapter asks both what they understand."""
    flags = Flags.parse(make_parser().format_help())
    assert flags.says("--host", ".sock")
    assert flags.says("--api-key", "LLAMA_API_KEY")
    assert flags.says("--gpu-layers", "'all'")
    assert flags.says("--verbosity", "4: trace")
    assert flags.takes_value("-fa")
    assert not flags.takes_value("--metrics")


def test_every_cache_type_is_known_to_the_wheel() -> None:
    """Names here, an enumeration there."""
    import xllamacpp

    for name in CACHE_TYPES:
        assert hasattr(xllamacpp.ggml_type, f"GGML_TYPE_{name.upper()}")


def test_the_child_imports_nothing_of_gpud() -> None:
    """It is a program of its own: it starts fast and cannot break with the daemon."""
    code = (
        f"import sys, runpy; sys.argv = ['x', '--nosuch']\n"
        f"try: runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
        f"except SystemExit as end: print(end.code, [name for name in sys.modules if name.startswith('gpud')])"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1 []\n"
    assert found.stderr == "error: invalid argument: --nosuch\n"
