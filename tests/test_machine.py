"""What gpud finds out about the machine by itself: whether its GPUs work, what survives a sleep, who plays."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from fake_nvml import FakeGpu

from gpud.machine import loses_memory, probe_gpus
from gpud.programs import OtherPrograms

Run = Callable[..., Any]


def driver(path: Path, *lines: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "params").write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["PreserveVideoMemoryAllocations", "UseKernelSuspendNotifiers"])
def test_memory_survives_where_the_driver_is_set_to_preserve_it(tmp_path: Path, name: str) -> None:
    """Either of its two settings will do."""
    assert loses_memory(driver(tmp_path, "ResmanDebugLevel: 4294967295", f"{name}: 1")) == ""
    text = loses_memory(driver(tmp_path, f"{name}: 0"))
    assert text == "NVIDIA's driver does not preserve memory (PreserveVideoMemoryAllocations is not 1)"


def test_without_the_driver_nothing_is_lost_by_it(tmp_path: Path) -> None:
    """Other drivers preserve what is theirs; and a driver that does not say is not trusted."""
    assert loses_memory(tmp_path / "none") == ""
    (tmp_path / "params").mkdir()
    assert "cannot be read" in loses_memory(tmp_path)


def probed(tmp_path: Path, *gpus: FakeGpu) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "gpus.conf"
    fake_nvml.write_config(file, gpus)
    command = [sys.executable, "-m", "gpud.gpus.probe"]
    environment = {**os.environ, **fake_nvml.environment(file)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_gpus_that_answer_are_well(tmp_path: Path) -> None:
    """Nothing is said."""
    done = probed(tmp_path, FakeGpu())
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_gpu_that_does_not_answer_is_told_with_the_drivers_word(tmp_path: Path) -> None:
    """In one sentence, whatever else NVML says."""
    done = probed(tmp_path, FakeGpu(errors={"": "GPU_IS_LOST"}))
    assert done.returncode == 1
    assert done.stdout.startswith("NVIDIA's driver does not answer: ")
    assert done.stdout.count("\n") == 1


def test_a_machine_without_the_driver_is_not_tried(tmp_path: Path, run: Run) -> None:
    """No process is started for it."""
    assert run(probe_gpus(tmp_path / "none")) == ""


def process(path: Path, pid: int, name: str, *command: str) -> None:
    (path / str(pid)).mkdir()
    (path / str(pid) / "comm").write_text(name + "\n")
    (path / str(pid) / "cmdline").write_text("".join(word + "\0" for word in command))


def test_programs_are_known_by_each_of_their_names(tmp_path: Path) -> None:
    """As they were started, as the kernel calls them, and as Steam does; kernel threads and the rest are not."""
    process(tmp_path, 1, "systemd", "/sbin/init")
    process(tmp_path, 2, "doom")
    process(tmp_path, 3, "DoomEternalx64v", r"Z:\games\DOOMEternalx64vk.exe", "-x")
    process(tmp_path, 4, "reaper", "/steam/reaper", "SteamLaunch", "AppId=570", "--", "/steam/dota")
    process(tmp_path, 5, "GameThread", "/opt/other")
    (tmp_path / "meminfo").write_text("")
    (tmp_path / "6").mkdir()
    patterns = ["doom*", "steam_app_5*", "gamethread"]
    found = {program.pid: program.name for program in OtherPrograms(lambda: patterns, tmp_path).look()}
    assert found == {3: "DOOMEternalx64vk.exe", 4: "steam_app_570", 5: "GameThread"}
    assert OtherPrograms(list, tmp_path).look() == []
    assert not OtherPrograms(list, tmp_path).wanted()


def test_the_end_of_a_program_is_heard_of(run: Run) -> None:
    """Also of one that had ended before anybody listened."""

    async def work() -> None:
        child = await asyncio.create_subprocess_exec("sleep", "3600")
        programs = OtherPrograms(lambda: ["sleep"])
        program = next(one for one in programs.look() if one.pid == child.pid)
        waiting = asyncio.create_task(programs.ended(program))
        await asyncio.sleep(0)
        assert not waiting.done()
        child.kill()
        await asyncio.wait_for(waiting, 10)
        await child.wait()
        await asyncio.wait_for(programs.ended(program), 10)

    run(work())
