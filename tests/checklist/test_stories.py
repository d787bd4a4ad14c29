"""What people do from day to day, as they do it: by gpudctl, the commands with old names, and curl."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model
from daemon.doors import Doors
from daemon.harness import BOUND_S, Daemon, Place, gpus_of, llama_server, on_gpu, provisioned, script
from fake_nvml.gpu import GIB, MIB, FakeGpus

OOM = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory"


@pytest.fixture
def gpus(place: Place) -> Iterator[FakeGpus]:
    """6 GiB, of which a desktop has 180 MiB."""
    with gpus_of(place, 6 * GIB) as made:
        made.set_foreign(180 * MIB, name="Xorg")
        yield made


class User:
    """Somebody at a keyboard."""

    def __init__(self, place: Place, doors: Doors) -> None:
        self._bin = place.root / "bin"
        self._environment = {
            **place.terminal(),
            "OLLAMA_HOST": f"127.0.0.1:{doors.ollama.port}",
            "FRONT": doors.front.url,
            "MANAGEMENT": doors.management.url,
        }

    def finds(self, program: Path) -> None:
        (self._bin / program.name).symlink_to(program)

    def type(self, line: str, *, fails: bool = False) -> str:
        done = subprocess.run(
            ["sh", "-c", line], env=self._environment, capture_output=True, text=True, timeout=BOUND_S, check=False
        )
        assert bool(done.returncode) == fails, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def user(place: Place, doors: Doors) -> User:
    return User(place, doors)


@pytest.fixture
def daemon(place: Place, gpus: FakeGpus, doors: Doors) -> Daemon:
    """Two models that fill the GPU together."""
    place.configure(
        {"llama3.2": on_gpu(place, gpus, "l", 2), "qwen": on_gpu(place, gpus, "q", 3018 / 1024)},
        gpu={"reserve": 0, "watch": 0},
    )
    started = place.start()
    for name in ("llama3.2", "qwen"):
        assert started.load(name).result == "done", started.log()
    return started


def test_what_holds_the_gpu(daemon: Daemon, user: User) -> None:
    """In MiB, as nvidia-smi has it, with other programs by name; the same over HTTP and by Ollama's own list."""
    shown = user.type("gpudctl status")
    assert re.search(r"^llama3\.2 +custom +ready +2048 MiB +\S+ ago +\dm( \d+s)?$", shown, re.M), shown
    assert re.search(r"^qwen +custom +ready +3018 MiB ", shown, re.M), shown
    assert re.search(r"^  other programs 180 MiB: Xorg \(pid \d+\) 180 MiB$", shown, re.M), shown
    told = user.type('curl -s "$MANAGEMENT/vram/status"')
    assert '"used_mb":5246' in told.replace(" ", "") and "Xorg" in told
    assert "llama3.2" in user.type("ollama-status")
    assert daemon.stop() == 0


@pytest.mark.parametrize("command", ["ollama-unload", "gpudctl yield --for 2h"])
def test_a_game_now(daemon: Daemon, user: User, gpus: FakeGpus, command: str) -> None:
    """Everything goes, and what that gave back is said. Given away, requests are refused with when to come again, until
    the GPUs are taken back.
    """
    assert "unloaded 2 models, freed 5066 MiB" in user.type(command)
    assert daemon.place.records() == {}
    if "yield" in command:
        ask = """curl -s -i "$FRONT/v1/chat/completions" -d '{"model": "qwen", "messages": []}'"""
        answer = user.type(ask)
        assert answer.startswith("HTTP/1.1 503 ") and re.search(r"^retry-after: \d+\r?$", answer, re.M | re.I), answer
        assert re.search("the GPUs are given away for (2h|1h 59m) more", user.type("gpudctl status"))
        assert "cannot load" in user.type("gpudctl load qwen", fails=True)
        assert user.type("gpudctl resume").startswith("resumed: the GPUs were given away for ")
    user.type("gpudctl load qwen")
    assert gpus.overflows() == []
    assert daemon.stop() == 0


def test_whoever_walks_away_is_told_why_it_has_gone(place: Place, gpus: FakeGpus, user: User) -> None:
    """After its idle time; the log says why, and how much that gave back, and so does gpudctl."""
    place.configure({"llama3.2": on_gpu(place, gpus, "l", 2, idle_timeout="1s")}, gpu={"reserve": 0})
    daemon = place.start()
    user.type("gpudctl load llama3.2")
    daemon.wait_log(r'"llama3\.2" is unloaded, 2\.0 GiB given back: it was idle')
    assert re.search(r"has been idle for \d+ s", user.type("gpudctl explain llama3.2"))
    assert daemon.stop() == 0


def test_one_that_keeps_running_out_of_memory(place: Place, gpus: FakeGpus, user: User) -> None:
    """Five times, and it is not tried again: what is to be lowered stands beside it, and reset lets it try anew."""
    place.configure(
        {"big": script(f"echo '{OOM}' >&2; exit 1")}, gpu={"reserve": 0}, restart={"first": 0.1, "max": 0.1}
    )
    daemon = place.start()
    for _ in range(5):
        user.type("gpudctl load big", fails=True)
    shown = user.type("gpudctl status")
    assert re.search(r"^big +custom +failed \(oom-gpu ×5\)", shown, re.M), shown
    assert "lower layers or context" in shown and '"gpudctl reset big"' in shown
    assert "5 attempts have failed" in user.type("gpudctl load big", fails=True)
    assert user.type("gpudctl reset big").startswith('reset "big" after 5 failed attempts')
    place.configure({"big": on_gpu(place, gpus, "b", 100 / 1024)}, gpu={"reserve": 0})
    user.type("gpudctl reload && gpudctl load big")
    assert daemon.stop() == 0


EIGHT_B, QWEN = "Qwen3-8B-Q8_0", "qwen2.5:1.5b"


def two_engines(place: Place, gpus: FakeGpus, user: User, qwen_mib: int) -> Daemon:
    """The real llama.cpp, whose model has 5 of the 6 GiB, and the real Ollama with one that was made by its command."""
    ollama, store = provisioned("ollama") / "bin" / "ollama", place.root / "store"
    user.finds(ollama)
    eight_b = tiny_model.write(place.root / f"{EIGHT_B}.gguf")
    qwen = tiny_model.write(place.root / "qwen.gguf", seed=2)
    gpus.rule(str(eight_b), 5 * GIB)
    gpus.rule(f"{store}/blobs/", qwen_mib * MIB)
    place.configure(
        {
            EIGHT_B: {"engine": "llama_server", "file": str(eight_b), "size": "5GiB", "context": 1024, "threads": 1},
            QWEN: {"engine": "ollama", "size": f"{qwen_mib}MiB", "priority": "high", "context": 1024, "threads": 1},
        },
        engines={
            **llama_server(),
            "ollama": {"binary": str(ollama), "models_dir": str(store)},
        },
        gpu={"reserve": 0, "watch": 0},
    )
    daemon = place.start()
    recipe = place.root / "Modelfile"
    # It never ends by itself.
    recipe.write_text(f"FROM {qwen}\nPARAMETER num_predict 8\n")
    user.type(f"ollama create {QWEN} -f {recipe}")
    user.type(f"gpudctl load {EIGHT_B}")
    return daemon


@pytest.mark.engines
@pytest.mark.parametrize(("qwen_mib", "stays"), [(800, True), (2000, False)])
def test_a_second_engine_on_a_gpu_of_6_gib(
    place: Place, gpus: FakeGpus, user: User, qwen_mib: int, stays: bool
) -> None:
    """Ollama is asked while llama.cpp has 5 GiB of them: what fits is loaded beside it, for what does not the idle
    model of the lower priority goes, and nobody runs out of memory.
    """
    daemon = two_engines(place, gpus, user, qwen_mib)
    assert user.type(f"ollama run {QWEN} hello </dev/null").strip()
    shown = user.type("gpudctl status")
    assert re.search(rf"^{re.escape(QWEN)} +ollama +ready +{qwen_mib} MiB ", shown, re.M), shown
    beside = "ready +5120 MiB" if stays else "unloaded"
    assert re.search(rf"^{EIGHT_B} +llama_server +{beside} ", shown, re.M), shown
    assert gpus.overflows() == []
    assert daemon.stop() == 0


@pytest.mark.engines
def test_a_second_engine_that_cannot_have_what_it_needs(place: Place, gpus: FakeGpus, user: User) -> None:
    """Somebody holds the 5 GiB: it is refused with what it needs and what there is, and no engine has tried."""
    daemon = two_engines(place, gpus, user, 2000)
    daemon.call("Hold", "sss", EIGHT_B, "a long job", "")
    told = user.type(f"ollama run {QWEN} hello </dev/null", fails=True)
    assert re.search(rf'cannot load "{QWEN}": it needs 2\.0 GiB, 844 MiB are available', told), told
    assert (daemon.state(EIGHT_B), daemon.state(QWEN)) == ("ready", "unloaded")
    assert gpus.overflows() == []
    assert daemon.stop() == 0
