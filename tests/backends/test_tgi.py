"""text-generation-inference as a child and as somebody else's server, against a stand-in that is a real process."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_model
import pytest
from place import HERE, QUICK, Place
from ports import free_port
from squatter import Squatter

from gpud.backends import call
from gpud.backends.attached import AttachedRunner
from gpud.backends.budget import GIB
from gpud.backends.options import EngineOptions
from gpud.backends.runner import ProcessRunner
from gpud.backends.serving import HubServer
from gpud.backends.tgi import tgi
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, GpuSample, Model
from gpud.core.ports import LoadOrder, Standing
from gpud.core.record import replace

Run = Callable[..., Any]

FAKE = HERE / "fake_tgi.py"
GPU = GpuSample("GPU-7", "Test GPU", 0, "nvidia", 24 * GIB, 0, 24 * GIB)


def backend(place: Place) -> HubServer:
    return tgi(EngineOptions(binary=str(FAKE)), place.launcher)


def llama(folder: Path, **settings: Any) -> Model:
    return Model("chat", "tgi", EngineSettings(file=str(folder), **settings), load_timeout_s=30, stop=QUICK)


def on_gpu(place: Place, model: Model) -> LoadOrder:
    return replace(place.order(model, ("GPU-7",), "nvidia"), gpus=(GPU,))


def test_a_folder_is_served_on_a_private_port_and_given_back(run: Run, tmp_path: Path) -> None:
    """With a share of the GPU, sockets of its own between its processes, and nothing of it left afterwards."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            record = tmp_path / "record"
            model = llama(
                hub_model.write(tmp_path / "model"),
                parallel=4,
                environment=(("FAKE_RECORD", str(record)),),
                extra_flags=("--dtype", "float16"),
            )
            server = backend(place)
            server.check(model)
            one = await server.load(on_gpu(place, model))
            assert isinstance(one, ProcessRunner)
            seen = json.loads(record.read_text())
            told = dict(zip(seen["argv"][::2], seen["argv"][1::2], strict=True))
            assert told["--model-id"] == str(tmp_path / "model")
            assert (told["--hostname"], told["--port"]) == ("127.0.0.1", str(one.endpoint.port))
            assert (told["--max-total-tokens"], told["--max-input-tokens"]) == ("4096", "4095")
            assert (told["--max-batch-size"], told["--num-shard"], told["--dtype"]) == ("4", "1", "float16")
            need = server.need(model, on_gpu=True)
            assert need is not None
            share = float(told["--cuda-memory-fraction"]) * 24 * GIB
            assert need.parts[0].total_bytes - 24 * GIB / 10_000 <= share <= need.parts[0].total_bytes
            assert seen["environment"]["API_KEY"] == one.endpoint.key
            assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-7"
            left = Path(told["--shard-uds-path"] + "-0")
            assert left.exists()
            assert place.stages == ["starting", "downloading", "weights", "warming up"]
            assert await one.busy() is False
            assert (await call.request(one.endpoint, "POST", "/generate", body={}, timeout_s=50)).status == 200
            stranger = replace(one.endpoint, key="")
            assert (await call.request(stranger, "POST", "/generate", body={}, timeout_s=50)).status == 401
            adopted = await server.adopt(place.records[-1], model)
            assert adopted is not None and adopted.endpoint == one.endpoint
            await one.unload(QUICK)
            await one.gone()
            assert not left.exists()

    run(work())


@pytest.mark.parametrize(("running", "waiting", "busy"), [("0", "0", False), ("2", "0", True), ("0", "1", True)])
def test_it_is_busy_by_its_own_gauges(running: str, waiting: str, busy: bool, run: Run, tmp_path: Path) -> None:
    """While a batch runs, and while some wait for the next."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            gauges = (("FAKE_RUNNING", running), ("FAKE_WAITING", waiting))
            one = await backend(place).load(on_gpu(place, llama(hub_model.write(tmp_path / "m"), environment=gauges)))
            assert await one.busy() is busy
            await one.unload(QUICK)

    run(work())


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (
            "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB (GPU 0; 24 GiB total)",
            "oom-gpu",
            "896.00 MiB more could not be had",
        ),
        (
            "RuntimeError: Not enough memory to handle 4146 prefill tokens. You need to decrease",
            "size-too-small",
            "nothing of its memory was left for keys and values",
        ),
        (
            "ValueError: Unsupported model type newmodel",
            "unsupported",
            "does not know the architecture 'newmodel'",
        ),
        (
            "404 Client Error. Repository Not Found for url: https://huggingface.co/api/models/x/y.",
            "no-such-model",
            "Hugging Face knows no model x/y",
        ),
    ],
)
def test_a_start_that_fails_is_told_by_its_last_words(
    line: str, kind: str, words: str, run: Run, tmp_path: Path
) -> None:
    """And no socket between its processes stays."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            model = llama(hub_model.write(tmp_path / "model"), environment=(("FAKE_FAIL", line),))
            with pytest.raises(BackendFailed) as failure:
                await backend(place).load(on_gpu(place, model))
            assert failure.value.kind == kind
            assert words in failure.value.message
            assert not list((tmp_path / "run").rglob("*-shard-*"))

    run(work())


def test_flags_that_it_would_get_twice_are_refused(run: Run, tmp_path: Path) -> None:
    """It takes none twice; one that it does not know is named by itself."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            folder = hub_model.write(tmp_path / "model")
            with pytest.raises(BackendFailed) as failure:
                backend(place).check(llama(folder, extra_flags=("--max-input-tokens=9",)))
            assert failure.value.preflight
            assert "extra_flags has --max-input-tokens, which gpud sets itself" in failure.value.message
            with pytest.raises(BackendFailed) as failure:
                await backend(place).load(on_gpu(place, llama(folder, extra_flags=("--turbo", "1"))))
            assert failure.value.kind == "bad-flag"
            assert "--turbo" in failure.value.message

    run(work())


def test_a_stranger_on_its_port_is_not_taken_for_it(run: Run, tmp_path: Path) -> None:
    """Its health has no key that would tell them apart, but the kernel knows who listens: another port is taken."""

    async def work() -> None:
        async with Place(tmp_path) as place:
            squatter = Squatter(place)
            server = tgi(EngineOptions(binary=str(FAKE)), squatter)
            one = await server.load(on_gpu(place, llama(hub_model.write(tmp_path / "model"))))
            assert squatter.server is not None
            assert one.endpoint.port != squatter.server.sockets[0].getsockname()[1]
            assert (await call.request(one.endpoint, "GET", "/info", timeout_s=50)).status == 200
            await one.unload(QUICK)
            squatter.server.close()

    run(work())


def test_an_attached_one_is_used_and_let_go(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot give its memory back, and that is said."""

    async def work() -> None:
        port = free_port()
        flags = ["--model-id", "x/y", "--hostname", "127.0.0.1", "--port", str(port), "--max-total-tokens", "99"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(FAKE),
            *flags,
            "--shard-uds-path",
            str(tmp_path / "shard"),
            env={**os.environ, "FAKE_RUNNING": "1"},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(50):
                while b"Connected" not in await process.stdout.readline():
                    pass
            async with Place(tmp_path) as place:
                settings = EngineSettings(url=f"http://127.0.0.1:{port}")
                model = Model("chat", "tgi", settings, size_bytes=GIB, stop=QUICK)
                server = backend(place)
                assert await server.standing(model) == Standing(1, full=False, resident=True)
                one = await server.load(place.order(model))
                assert isinstance(one, AttachedRunner)
                assert one.pids() == {process.pid}
                assert await one.busy() is True
                await one.kill()
                await one.gone()
                assert process.returncode is None
        finally:
            process.terminate()
            await process.communicate()

    run(work())
    assert "keeps its memory: text-generation-inference has no way to give it back" in caplog.text
