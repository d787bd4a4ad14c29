"""A GPU that a model does not use, and figures that follow its driver: a whole gpud, a real engine, a GPU that is not
real.
"""

import re

from fake_nvml.gpu import GIB, FakeGpus

from .doors import open_doors
from .harness import Place, embedded, settle, tiny

RESERVE = {"gpu": {"reserve": "256MiB", "watch": 1}}


def test_a_build_for_the_processor_is_found_out(place: Place, gpus: FakeGpus) -> None:
    """The real engine of this machine has no GPU: it answers, and that is said once, in the log, by status and explain,
    with both numbers. One that is meant to be there is not spoken of."""
    file = tiny(place.root / "tiny.gguf")
    slow, meant = embedded(file, size="2GiB", layers="all"), embedded(file, size="2GiB", layers="0")
    place.configure({"slow": slow, "meant": meant}, **RESERVE)
    daemon = place.start()
    assert daemon.load("slow").result == "done"
    said = r'"slow" runs on the processor: it holds 0 MiB of the 2\.0 GiB that it was to have on NVIDIA Fake 0'
    daemon.wait_log(said)
    daemon.wait_log("gpudctl doctor")
    assert "slow: reduced to the processor: it holds 0 MiB of the 2.0 GiB" in place.type("gpudctl", "status")
    assert re.search(said, place.type("gpudctl", "explain", "slow"))
    assert daemon.load("slow").result == "done"
    assert daemon.load("meant").result == "done"
    settle(lambda: daemon.model("meant")["State"] == "ready", "the other one is there")
    assert len(re.findall("runs on the processor", daemon.log())) == 1, daemon.log()
    assert daemon.stop() == 0


def test_memory_that_others_take_is_seen_over_http(place: Place, gpus: FakeGpus) -> None:
    """By Prometheus and by whoever asks the management API: what the driver says, and by how much it has changed."""
    doors = open_doors(place)
    place.configure({"tiny": embedded(tiny(place.root / "tiny.gguf"), size="1GiB", layers="0", gpu="host")}, **RESERVE)
    daemon = place.start()
    assert daemon.load("tiny").result == "done"

    # Of a driver that was let go, or is late, there is nothing to tell for a moment.
    def scraped() -> list[float]:
        text = doors.management.ask("/metrics").body.decode()
        return [float(found) for found in re.findall(r'^gpud_vram_used_bytes\{gpu="0"\} (\S+)$', text, re.M)]

    def told() -> list[float | None]:
        return [gpu["used_mb"] for gpu in doors.management.ask("/vram/status").value["gpus"]]

    settle(lambda: told() == [0] and scraped() == [0], "both say that nothing is held")
    gpus.set_foreign(3 * GIB)
    settle(lambda: told() == [3072], "the management API shows what was taken")
    settle(lambda: scraped() == [3 * GIB], "and so does Prometheus")
    gpus.set_foreign(0)
    settle(lambda: told() == [0], "and that it was given back")
    assert daemon.stop() == 0
