"""A GPU that a model does not use, and figures that follow its driver: a whole gpud, a real engine, a GPU that is not
real.
"""

import re
import subprocess

from fake_nvml.gpu import GIB, FakeGpus

from .doors import open_doors
from .harness import PYTHON, TOP, Daemon, Place, embedded, settle, tiny

RESERVE = {"gpu": {"reserve": "256MiB", "watch": 1}}


def gpudctl(daemon: Daemon, *words: str) -> str:
    place = daemon.place
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place.root), "DBUS_SESSION_BUS_ADDRESS": place.address}
    done = subprocess.run(
        [PYTHON, "-m", "gpud.cli", "--user", *words],
        cwd=TOP,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    assert "slow: reduced to the processor: it holds 0 MiB of the 2.0 GiB" in gpudctl(daemon, "status")
    assert re.search(said, gpudctl(daemon, "explain", "slow"))
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

    def scraped() -> float:
        text = doors.management.ask("/metrics").body.decode()
        (found,) = re.findall(r'^gpud_vram_used_bytes\{gpu="0"\} (\S+)$', text, re.M)
        return float(found)

    def told() -> float:
        (gpu,) = doors.management.ask("/vram/status").value["gpus"]
        return float(gpu["used_mb"])

    settle(lambda: told() * (1 << 20) == scraped(), "both say the same")
    before = told()
    gpus.set_foreign(3 * GIB)
    settle(lambda: told() == before + 3072, "the management API shows what was taken")
    settle(lambda: scraped() == (before + 3072) * (1 << 20), "and so does Prometheus")
    gpus.set_foreign(0)
    settle(lambda: told() == before, "and that it was given back")
    assert daemon.stop() == 0
