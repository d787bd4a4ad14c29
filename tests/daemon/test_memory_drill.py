"""What the old documents say to do when GPU memory is short, each step as it is typed, with a GPU of 6 GiB."""

import os
import re
import subprocess
import sys

from fake_nvml.gpu import GIB, MIB, FakeGpus

from .harness import BOUND_S, TOP, Daemon, Place, engine, plain, settle


def typed(place: Place, *words: str) -> str:
    """A line in a terminal, with a gpudctl of this tree."""
    folder = place.root / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "gpudctl"
    program.write_text(f'#!/bin/sh\ncd {TOP} && exec {sys.executable} -m gpud.cli "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        words,
        env={
            "PATH": f"{TOP / 'shell/bin'}:{folder}:{os.environ['PATH']}",
            "HOME": str(place.root),
            "GPUD_BUS": "user",
            "DBUS_SESSION_BUS_ADDRESS": place.address,
            "GPUD_LIB": str(TOP / "shell/lib"),
        },
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def used_mib(daemon: Daemon) -> int:
    """Of the GPU, as it was measured within the last second."""
    (gpu,) = [gpu for record in daemon.call("ListGpus") if (gpu := plain(record))["Uuid"] != "host"]
    return int(gpu["VramUsed"]) // MIB


def test_memory_comes_back_with_each_step(place: Place, gpus: FakeGpus) -> None:
    """ollama-unload says how much it gave back, and the GPU shows it; a restart gives the old one's memory back before
    the new one takes any, and never holds both.
    """
    models = {}
    for name, size_bytes in (("big", 4 * GIB), ("small", GIB)):
        mark = f"--name={place.root.name}-{name}."
        gpus.rule(mark, size_bytes)
        models[name] = engine(mark, size=f"{size_bytes // MIB}MiB")
    place.configure(models, gpu={"reserve": "256MiB", "watch": 1})
    daemon = place.start()
    empty = used_mib(daemon)
    for name in models:
        assert daemon.load(name).result == "done", daemon.log()
    settle(lambda: used_mib(daemon) - empty == 5 * 1024, "both are seen")
    assert typed(place, "gpu-temp") == "NVIDIA Fake 0: 41 °C\n"
    said = re.fullmatch(r"unloaded 2 models, freed (\d+) MiB\n", typed(place, "ollama-unload"))
    assert said is not None
    assert int(said[1]) == 5 * 1024
    settle(lambda: used_mib(daemon) == empty, "both are gone")
    assert daemon.load("big").result == "done"
    before = daemon.model("big")["Pid"]
    restarted = typed(place, "gpudctl", "restart", "big")
    assert restarted.startswith('unloaded "big", freed 4096 MiB\nrestarted "big": ')
    assert daemon.model("big")["Pid"] not in (0, before)
    settle(lambda: used_mib(daemon) - empty == 4 * 1024, "the new one is seen")
    # Two of 4 GiB do not fit into 6.
    assert gpus.overflows() == []
