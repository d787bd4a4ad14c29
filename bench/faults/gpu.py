"""The GPU is lost, its driver does not answer, others take its memory, or it comes back late."""

import contextlib
import time

from daemon.harness import plain
from fake_nvml.gpu import GIB, FakeGpus

from bench.faults.fault import Cuts, Over, Scene, fault
from bench.faults.models import REAL, TALKERS

EVERYONE = (*TALKERS, *REAL)


def _well(gpus: FakeGpus) -> None:
    gpus.find(0)
    gpus.fail_all("nvmlInitWithFlags", "")
    gpus.late(0)


@fault(Cuts.NOBODY, "gpu_unavailable", also=EVERYONE)
def gpu_lost(scene: Scene) -> Over:
    """As after Xid 79: nothing that is asked of the GPU is answered. It is found again."""
    scene.system.gpus.lose(0, scene.chance.choice(("GPU_IS_LOST", "RESET_REQUIRED", "UNKNOWN")))
    try:
        _try_to_load(scene)
        time.sleep(0.3)
    finally:
        _well(scene.system.gpus)
    return scene.answers


@fault(Cuts.NOBODY, "gpu_unavailable")
def driver_hangs(scene: Scene) -> Over:
    """NVML does not return for a second and a half."""
    scene.system.gpus.lose(0, "hang")
    try:
        _try_to_load(scene)
        time.sleep(1.5)
    finally:
        _well(scene.system.gpus)
    return scene.answers


def _try_to_load(scene: Scene) -> None:
    """Somebody wants a model just then; what becomes of that is told by the load's own clients."""
    with scene.client() as client, contextlib.suppress(Exception):
        client.call("Load", "s", scene.chance.choice(TALKERS))


@fault()
def xid_told(scene: Scene) -> Over:
    """The driver tells of an Xid that a program caused; the GPU is well."""
    scene.system.gpus.xid(scene.chance.choice((13, 31, 43)), gpu=0)
    return scene.answers


@fault(Cuts.NOBODY, "insufficient_vram", "gpu_busy")
def others_take_the_memory(scene: Scene) -> Over:
    """A game takes 2 or 4 GiB, grows, and is killed: idle models give way, whoever then does not fit is told so."""
    gpus = scene.system.gpus
    try:
        gpus.set_foreign(2 * GIB, name="game")
        _try_to_load(scene)
        time.sleep(0.3)
        gpus.set_foreign(scene.chance.choice((3, 5)) * GIB, name="game")
        _try_to_load(scene)
        time.sleep(1.2)
    finally:
        gpus.end_foreign("game")
    return scene.answers


@fault(Cuts.NOBODY, "insufficient_vram")
def memory_comes_back_late(scene: Scene) -> Over:
    """What ended engines held stays taken for half a second: the next load waits for it."""
    scene.system.gpus.late(500)
    try:
        scene.forgive(scene.model)
        scene.answers(*TALKERS)
    finally:
        scene.system.gpus.late(0)
    return scene.answers


@fault(Cuts.NOBODY, "insufficient_vram")
def memory_that_does_not_come_back(scene: Scene) -> Over:
    """What an ended engine held stays taken for longer than a load waits for it."""
    scene.system.gpus.late(4000)
    try:
        scene.forgive(scene.model)
        _try_to_load(scene)
        time.sleep(0.5)
    finally:
        scene.system.gpus.late(0)
    return lambda: _nobody_holds_any(scene)


def _nobody_holds_any(scene: Scene) -> None:
    """What lingered is gone, too."""

    def others_bytes() -> int:
        gpus = [device for device in map(plain, scene.system.daemon.call("ListGpus")) if device["Uuid"] != "host"]
        return sum(device.get("VramForeign", 0) for device in gpus)

    scene.until(lambda: not others_bytes(), "what ended engines held is back")
    scene.answers()
