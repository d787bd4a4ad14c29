"""What the tests of desktops stand on: a bus that stands for the system's, and a real gpud on it with a GPU.

gpud runs outside the container as the tests' own user, where a fake NVML tells it of a GPU of 6 GiB. Its bus is the
container's system bus, so a desktop finds it where it looks for the system's gpud.
"""

from collections.abc import Iterator

import pytest
from daemon.harness import Daemon, Place, engine, place_at
from dbus.private_bus import PrivateBus, session_bus
from fake_nvml.gpu import GIB, FakeGpus

from .tree import START_S, missing_parts, wait_until

MODELS = {"qwen3-8b": 4 * GIB, "gemma-3-1b": GIB, "phi-4-mini": 3 * GIB}
"""What each holds of the GPU, and how much of that is foreseen."""

TOO_LARGE = "llama-4-maverick"
BROKEN = "smollm2-1.7b"
SLOW = "qwen2.5-coder-7b"


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Programs of the desktop come and go; its container takes all of them along."""


@pytest.fixture(scope="module")
def system_bus() -> Iterator[PrivateBus]:
    """What the desktop takes for the system bus. Whoever asks for it may say and own anything there."""
    if reason := missing_parts():
        pytest.skip(reason)
    with session_bus() as bus:
        yield bus


@pytest.fixture(scope="module")
def place(system_bus: PrivateBus) -> Iterator[Place]:
    """Where gpud runs: ``place.start()`` starts one, with three models and the GPU of ``gpus``."""
    with place_at(system_bus.address) as made:
        yield made


@pytest.fixture(scope="module")
def gpus(place: Place) -> Iterator[FakeGpus]:
    """The GPU, whose name is that of a real one. Its figures change when a test says so, and gpud looks again."""
    with FakeGpus(place.root / "gpus", 6 * GIB) as made:
        made.change(0, name="NVIDIA GeForce RTX 3050 6GB Laptop GPU")
        place.environment |= made.environment()
        models = {}
        for name, size_bytes in MODELS.items():
            mark = f"--name={place.root.name}-{name}"
            made.rule(mark, size_bytes)
            models[name] = engine(mark, size=f"{size_bytes // GIB}GiB")
        models[TOO_LARGE] = engine(size="100GiB")
        models[BROKEN] = engine("--exit-at-once", "1", size="1GiB")
        models[SLOW] = engine("--ready-after", "600", size="4GiB")
        # What has failed stays so for as long as a person looks at it.
        place.configure(models, restart={"first": 60, "max": 60})
        yield made
        for daemon in place.daemons:
            if daemon.running:
                daemon.stop()


@pytest.fixture
def daemon(place: Place, gpus: FakeGpus) -> Iterator[Daemon]:
    """gpud, running, with nothing loaded and nobody else on the GPU."""
    made = next((known for known in place.daemons if known.running), None) or place.start()
    made.call("Resume")
    made.unload(force=True)
    yield made
    gpus.close()


def until_unmeasured(daemon: Daemon) -> None:
    """Nothing is loaded any more: for a moment gpud still knows what was in use, and tells whoever opens a menu."""
    gpu = FakeGpus.uuid()
    wait_until(
        lambda: not any("VramUsed" in record for record in daemon.status()["Gpus"] if record["Uuid"][1] == gpu),
        "gpud measures what nobody uses",
    )


@pytest.fixture
def thousands(place: Place, daemon: Daemon) -> Iterator[None]:
    """gpud knows m0000 to m4999, too. None of them can be loaded."""
    before = place.config.read_text()
    one = '{engine: custom, command: [/bin/true, "${socket}"], health: /health, size: 10MiB}'
    others = "".join(f"  m{number:04}: {one}\n" for number in range(5000))
    place.config.write_text(before.replace("models:\n", f"models:\n{others}"))
    daemon.reload(START_S)
    yield
    place.config.write_text(before)
    daemon.reload(START_S)


@pytest.fixture
def away(place: Place, gpus: FakeGpus) -> None:
    """No gpud runs."""
    for daemon in place.daemons:
        if daemon.running:
            daemon.stop()
