"""What the old documents say to do when GPU memory is short, each step as it is typed, with a GPU of 6 GiB."""

import re

from fake_nvml.gpu import GIB, MIB, FakeGpus

from .harness import Daemon, Place, engine, plain, settle


def used_mib(daemon: Daemon) -> int | None:
    """Of the GPU, as it was measured within the last second; None once its driver was let go."""
    (gpu,) = [gpu for record in daemon.call("ListGpus") if (gpu := plain(record))["Uuid"] != "host"]
    return int(gpu["VramUsed"]) // MIB if "VramUsed" in gpu else None


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
    for name in models:
        assert daemon.load(name).result == "done", daemon.log()
    settle(lambda: used_mib(daemon) == 5 * 1024, "both are seen")
    assert place.type("gpu-temp") == "NVIDIA Fake 0: 41 °C\n"
    said = re.fullmatch(r"unloaded 2 models, freed (\d+) MiB\n", place.type("ollama-unload"))
    assert said is not None
    assert int(said[1]) == 5 * 1024
    settle(lambda: used_mib(daemon) in (0, None), "both are gone")
    assert daemon.load("big").result == "done"
    before = daemon.model("big")["Pid"]
    restarted = place.type("gpudctl", "restart", "big")
    assert restarted.startswith('unloaded "big", freed 4096 MiB\nrestarted "big": ')
    assert daemon.model("big")["Pid"] not in (0, before)
    settle(lambda: used_mib(daemon) == 4 * 1024, "the new one is seen")
    # Two of 4 GiB do not fit into 6.
    assert gpus.overflows() == []
