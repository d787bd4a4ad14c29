"""vLLM and text-generation-inference on the whole daemon, beside other engines on one GPU of 24 GiB.

Everything is real but the servers, which are stand-ins with real processes and real HTTP, and the library that tells of
the GPU.
"""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_nvml.gpu import GIB, FakeGpus

from .harness import BOUND_S, TOP, Daemon, Place, engine, gone, gpus_of, settle, wait_gone

sys.path.append(str(TOP / "tests" / "backends"))

import hub_model

BACKENDS = TOP / "tests" / "backends"
VLLM = {"vllm": {"binary": str(BACKENDS / "fake_vllm.py")}}
TGI = {"tgi": {"binary": str(BACKENDS / "fake_tgi.py")}}


@pytest.fixture
def gpus(place: Place) -> Iterator[FakeGpus]:
    with gpus_of(place, 24 * GIB) as made:
        yield made


def folder(place: Place, gpus: FakeGpus, name: str, *, weights_gib: float, holds_gib: float) -> Path:
    """A model whose server holds so much of the GPU while it lives."""
    path = hub_model.write(place.root / f"{place.root.name}-{name}", weights_bytes=int(weights_gib * GIB))
    gpus.rule(f"{path.name}", int(holds_gib * GIB))
    return path


@contextlib.contextmanager
def somebody_elses(place: Place, gpus: FakeGpus, holds_gib: float) -> Iterator[tuple[str, int]]:
    """A vLLM that serves "chat" and may sleep; gpud finds it running."""
    mark = f"{place.root.name}/theirs"
    gpus.rule(mark, int(holds_gib * GIB))
    flags = ["serve", mark, "--served-model-name", "chat", "--port", "0", "--enable-sleep-mode"]
    process = subprocess.Popen(
        [sys.executable, str(BACKENDS / "fake_vllm.py"), *flags],
        env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().split()[-1]}", process.pid
    finally:
        process.terminate()
        process.communicate()


def is_asleep(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/is_sleeping", timeout=BOUND_S) as answer:
        told = json.load(answer)
    return bool(told["is_sleeping"])


def failure(daemon: Daemon, name: str) -> tuple[str, str]:
    assert daemon.load(name).result == "failed"
    model = daemon.model(name)
    return str(model["ErrorCode"]), str(model["Error"])


@pytest.mark.parametrize("name", ["vllm", "tgi"])
def test_a_server_of_safetensors_lives_beside_others(place: Place, gpus: FakeGpus, name: str) -> None:
    """It is told the part of the GPU that it was counted with, makes room when it is idle, and leaves nothing."""
    path, record = folder(place, gpus, "chat", weights_gib=8, holds_gib=10.5), place.root / "told"
    mark = f"{place.root.name}-big."
    gpus.rule(mark, 16 * GIB)
    models = {
        "chat": {"engine": "auto", "file": str(path), "environment": {"FAKE_RECORD": str(record)}},
        "big": engine("--say", mark, size="16GiB"),
    }
    order = {"backend_order": ["llama_server", "embedded", name]}
    place.configure(models, engines=VLLM | TGI, scheduler=order, gpu={"reserve": "256MiB"})
    daemon = place.start()
    pid = daemon.loaded("chat")["child"]["pid"]
    model = daemon.model("chat")
    assert (model["State"], model["Backend"], model["Device"]) == ("ready", name, "GPU-fake-0")
    argv = json.loads(record.read_text())["argv"]
    share = float(argv[argv.index("--gpu-memory-utilization" if name == "vllm" else "--cuda-memory-fraction") + 1])
    daemon.wait_log(r'Loading "chat" with \w+ on NVIDIA Fake 0, 1[12]\.\d GiB reserved \(calculated from its file\)')
    assert 10 < share * 24 < 12
    assert daemon.load("big").result == "done", daemon.log()
    wait_gone(pid)
    assert daemon.state("chat") == "unloaded"
    assert daemon.load("chat").result == "done"
    daemon.wait_log(r'Loading "chat" with \w+ on NVIDIA Fake 0, 10\.5 GiB reserved \(as measured before\)')
    again = json.loads(record.read_text())["argv"]
    assert again[again.index("--max-total-tokens" if name == "tgi" else "--kv-cache-memory-bytes") + 1] in argv
    assert gpus.overflows() == []
    assert daemon.stop() == 0


def test_forty_gib_in_safetensors_go_to_nobody_who_cannot_hold_them(place: Place, gpus: FakeGpus) -> None:
    """No llama engine is even asked, and the refusal says what it needs and what there is."""
    path = hub_model.write(place.root / "huge", weights_bytes=40 * GIB, shards=4)
    place.configure({"huge": {"engine": "auto", "file": str(path)}}, engines=VLLM | TGI)
    daemon = place.start()
    code, error = failure(daemon, "huge")
    assert code == "budget-exceeded"
    assert "it needs 43." in error
    assert "the whole budget of NVIDIA Fake 0 is 23.8 GiB" in error
    assert "llama" not in daemon.log()
    assert daemon.stop() == 0


def test_a_vllm_that_somebody_else_runs_is_woken_up_and_put_to_sleep(place: Place, gpus: FakeGpus) -> None:
    """What it holds when gpud comes is not asked for a second time; it is never ended."""
    with somebody_elses(place, gpus, 16) as (url, pid):
        place.configure({"chat": {"engine": "vllm", "url": url, "size": "16GiB", "idle_timeout": 0}})
        daemon = place.start()
        assert daemon.load("chat").result == "done", daemon.log()
        settle(lambda: daemon.model("chat")["VramBytes"] == 16 * GIB, "its memory is seen as the model's", daemon.log)
        assert not is_asleep(url)
        assert daemon.unload("chat").result == "done"
        assert is_asleep(url)
        assert not gone(pid)
        assert daemon.stop() == 0
    assert "more than the 0" not in daemon.log()


def test_the_engine_that_has_the_model_and_is_idle_wins(place: Place, gpus: FakeGpus) -> None:
    """Before one that is first in the configuration and would have to be started."""
    with somebody_elses(place, gpus, 16) as (url, _):
        own = {key: value for key, value in engine(size="1GiB").items() if key != "engine"}
        several = {"custom": own, "vllm": {"url": url, "size": "16GiB"}}
        place.configure({"chat": {"engine": several}})
        daemon = place.start()
        assert daemon.load("chat").result == "done", daemon.log()
        assert daemon.model("chat")["Backend"] == "vllm"
        assert daemon.unload("chat").result == "done"
        # It sleeps now, and the other one is as good.
        assert daemon.load("chat").result == "done", daemon.log()
        assert daemon.model("chat")["Backend"] == "custom"
        assert daemon.stop() == 0


def test_the_processes_behind_a_server_end_with_a_killed_daemon(place: Place, gpus: FakeGpus) -> None:
    """vLLM's have the GPU and outlive it otherwise."""
    path = folder(place, gpus, "chat", weights_gib=8, holds_gib=10.5)
    models = {"chat": {"engine": "vllm", "file": str(path), "environment": {"FAKE_ORPHAN": "1"}}}
    place.configure(models, engines=VLLM)
    daemon = place.start()
    pid = daemon.loaded("chat")["child"]["pid"]
    behind = set(place.children()) - {pid}
    assert behind
    daemon.kill9()
    wait_gone(pid)
    again = place.start()
    for one in behind:
        wait_gone(one)
    assert again.load("chat").result == "done"
    assert again.stop() == 0
