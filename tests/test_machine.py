"""What gpud finds out about the machine by itself: whether its GPUs work, what survives a sleep, who plays."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from fake_cuda import FakeCuda
from fake_nvml import FakeGpu

from gpud import config
from gpud.config import Config
from gpud.core.facts import Caller
from gpud.machine import Machine, loses_memory
from gpud.power import on_battery
from gpud.programs import OtherPrograms
from gpud.trial import Trial

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
    """Only that it has begun is said."""
    done = probed(tmp_path, FakeGpu())
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_a_gpu_that_does_not_answer_is_told_with_the_drivers_word(tmp_path: Path) -> None:
    """In one sentence, whatever else NVML says."""
    done = probed(tmp_path, FakeGpu(errors={"": "GPU_IS_LOST"}))
    assert done.returncode == 1
    assert done.stdout.startswith("\nNVIDIA's driver does not answer: ")
    assert done.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("function", "code", "told"),
    [
        ("cuInit", 999, "CUDA cannot be started: CUDA_ERROR_UNKNOWN (999)"),
        ("cuDeviceGetCount", 3, "CUDA cannot count its GPUs: error 3"),
        ("cuDeviceGet", 999, "GPU 0 cannot be found by CUDA: CUDA_ERROR_UNKNOWN (999)"),
        ("cuDevicePrimaryCtxRetain", 2, "GPU 0 cannot be opened by CUDA: CUDA_ERROR_OUT_OF_MEMORY (2)"),
        ("cuCtxSetCurrent", 999, "GPU 0 cannot be opened by CUDA: CUDA_ERROR_UNKNOWN (999)"),
        ("cuMemAlloc_v2", 2, "GPU 0 cannot be given memory by CUDA: CUDA_ERROR_OUT_OF_MEMORY (2)"),
        ("cuMemFree_v2", 999, "GPU 0 cannot be given memory back by CUDA: CUDA_ERROR_UNKNOWN (999)"),
        ("cuDevicePrimaryCtxRelease_v2", 999, "GPU 0 cannot be closed by CUDA: CUDA_ERROR_UNKNOWN (999)"),
        ("cuInit", 100, ""),
        ("none", 0, ""),
    ],
)
def test_each_step_of_cuda_is_tried(tmp_path: Path, function: str, code: int, told: str) -> None:
    """The driver may answer although CUDA does not work. No GPU for it (100) is no failure."""
    fake_nvml.write_config(tmp_path / "gpus.conf", [FakeGpu()])
    cuda = FakeCuda(tmp_path / "cuda")
    cuda.fail(function, code)
    environment = cuda.environment({**os.environ, **fake_nvml.environment(tmp_path / "gpus.conf")})
    command = [sys.executable, "-m", "gpud.gpus.probe"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (int(bool(told)), told), done.stderr


# The try, and what it comes to ---------------------------------------------------------------------------------------


def test_a_machine_without_the_driver_is_not_tried(tmp_path: Path, run: Run) -> None:
    """No process is started for it."""
    assert run(Trial(tmp_path / "none", ["/nonexistent"])()) == ""


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("exit 0", ""),
        ("echo all is well; exit 0", ""),
        ("echo one; echo two; exit 1", "two"),
        ("exit 7", "a process that uses the GPUs ends with status 7"),
        ("kill -SEGV $$", f"a process that uses the GPUs ends with status {-signal.SIGSEGV}"),
    ],
)
def test_what_a_try_comes_to(tmp_path: Path, run: Run, program: str, told: str) -> None:
    """Its last line says why; a driver may also crash whoever uses it."""
    assert run(Trial(tmp_path, ["sh", "-c", program])()) == told


def test_a_machine_that_is_slow_to_start_a_program_is_not_taken_for_one_whose_driver_hangs(
    tmp_path: Path, run: Run
) -> None:
    """The driver's time begins with the program's first line."""

    async def work() -> None:
        trial = Trial(tmp_path, ["sh", "-c", f"test -e {tmp_path}/quick || exec sleep 600"], begin_s=1, within_s=0.5)
        assert await trial() == "a process that is to use the GPUs has not begun within 1 s"
        (tmp_path / "quick").touch()
        async with asyncio.timeout(30):
            while await trial():
                await asyncio.sleep(0)

    run(work())


def test_a_try_that_hangs_in_the_driver_is_the_last_until_it_has_ended(tmp_path: Path, run: Run) -> None:
    """What cannot be killed is not waited for, and no second one is put beside it."""

    async def work() -> None:
        trial = Trial(tmp_path, [str(tmp_path / "program")], within_s=0.3)
        (tmp_path / "program").write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/started\necho\nexec sleep 600\n")
        (tmp_path / "program").chmod(0o755)
        assert await trial() == "a process that uses the GPUs hangs for 0.3 s"
        # One in the kernel lives on after the kill: here, whoever is told of its end is told late.
        (pid,) = map(int, (tmp_path / "started").read_text().split())
        told = await trial()
        is_alone = told != "a process that uses the GPUs hangs for 0.3 s"
        if is_alone:
            assert re.fullmatch(rf"process {pid}, which tried them, hangs in the driver since \d+ s", told)
        else:
            # The first one had ended, and then there may be another.
            assert not Path(f"/proc/{pid}").exists()
        (tmp_path / "program").write_text("#!/bin/sh\n")
        async with asyncio.timeout(30):
            while await trial():
                await asyncio.sleep(0)
        assert len((tmp_path / "started").read_text().split()) == (1 if is_alone else 2)

    run(work())


class Told:
    """An engine that only notes what it is told of the machine."""

    def __init__(self) -> None:
        self.woken: list[tuple[bool, str, str]] = []
        self.unloaded: list[str] = []
        self.suspended: list[dict[str, Any]] = []
        self.power: list[bool] = []
        self.news = asyncio.Event()

    async def suspend(self, within_s: float, **how: Any) -> None:
        self.suspended.append(how)

    def woke_up(self, *, restore: bool = True, problem: str = "", hint: str = "", vendor: str = "") -> None:
        self.woken.append((restore, problem, hint))
        self.news.set()

    def power_seen(self, *, on_battery: bool) -> None:
        self.power.append(on_battery)

    def unload(self, name: str, caller: Caller) -> None:
        self.unloaded.append(caller.label)
        self.news.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not reached():
                self.news.clear()
                await self.news.wait()


class Gpus:
    """Each try gives the next answer; the last one again and again. None: no process can be started."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.tries = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self) -> str:
        self.tries += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.may_answer.wait()
        if answer is None:
            raise OSError(11, "Resource temporarily unavailable")
        return answer


def machine(engine: Told, gpus: Gpus, settings: Config | None = None) -> Machine:
    found = settings or config.parse("", "x")
    return Machine(
        engine,  # type: ignore[arg-type]
        lambda: found,
        try_gpus=gpus,
        try_again_s=(0.0, 0.0),
        try_later_s=(0.0,),
        address="unix:path=/nonexistent",
    )


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_gpus_are_tried_three_times_before_anything_is_said(run: Run, bad: int) -> None:
    """Whichever of the three works: the machine is awake, and nothing was wrong."""

    async def work() -> None:
        engine, gpus = Told(), Gpus(*["lost"] * bad, "")
        machine(engine, gpus).over("sleep")
        await engine.until(lambda: bool(engine.woken))
        assert (engine.woken, gpus.tries) == ([(True, "", "")], bad + 1)

    run(work())


def test_gpus_that_do_not_work_are_tried_until_they_do(run: Run) -> None:
    """Told once that they do not, with the cure, and once that they do; then nobody tries any more."""

    async def work() -> None:
        engine, gpus = Told(), Gpus(*["lost"] * 20, None, "lost", "")
        machine(engine, gpus).over("sleep")
        await engine.until(lambda: len(engine.woken) == 2)
        (restore, problem, hint), over = engine.woken
        assert (restore, problem) == (True, "the GPUs cannot be used since the machine woke up: lost")
        assert "modprobe nvidia_uvm" in hint and "tries them again by itself" in hint
        assert over == (True, "", "")
        assert gpus.tries == 23

    run(work())


def test_where_no_process_can_be_started_nothing_is_said_of_the_gpus(run: Run) -> None:
    """Models show whether they work."""

    async def work() -> None:
        engine = Told()
        machine(engine, Gpus(None)).over("sleep")
        await engine.until(lambda: bool(engine.woken))
        assert engine.woken == [(True, "", "")]

    run(work())


def test_a_reload_right_after_the_waking_does_not_take_its_end_away(run: Run) -> None:
    """The engine waits for that, also when an earlier sleep had ended badly."""

    async def work() -> None:
        engine, gpus = Told(), Gpus("lost", "lost", "lost", "lost", "")
        made = machine(engine, gpus)
        made.over("sleep")
        await engine.until(lambda: len(engine.woken) == 1)
        await made.prepare("sleep", 4.0)
        gpus.answers = [""]
        gpus.may_answer.clear()
        made.over("sleep")
        made.reconfigured()
        gpus.may_answer.set()
        await engine.until(lambda: len(engine.woken) == 2)
        assert engine.woken[1] == (True, "", "")

    run(work())


def test_a_shutdown_that_is_called_off_mends_no_gpu(run: Run) -> None:
    """What was known of them holds, and everything else comes back whatever becomes of a sleep."""

    async def work() -> None:
        engine, gpus = Told(), Gpus("lost")
        settings = config.parse("suspend: {restore: false}", "x")
        made = machine(engine, gpus, settings)
        made.over("sleep")
        await engine.until(lambda: len(engine.woken) == 1)
        await made.prepare("shutdown", 4.0)
        made.over("shutdown")
        assert [woken[0] for woken in engine.woken] == [False, True]
        assert engine.woken[0][1:] == engine.woken[1][1:]
        gpus.answers = [""]
        await engine.until(lambda: len(engine.woken) == 3)
        assert engine.woken[2] == (False, "", "")

    run(work())


def test_a_sleep_ends_the_tries(run: Run) -> None:
    """What they would find would be told into it."""

    async def work() -> None:
        engine, gpus = Told(), Gpus("lost")
        made = machine(engine, gpus)
        made.over("sleep")
        await engine.until(lambda: len(engine.woken) == 1)
        await made.prepare("sleep", 4.0)
        gpus.answers = [""]
        before = gpus.tries
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(engine.woken), gpus.tries) == (1, before)

    run(work())


def test_what_upower_says_of_the_battery_holds_until_it_is_gone(run: Run) -> None:
    """For the idle time and for reading ahead; each change is told once, and without it /sys is looked at."""

    async def work() -> None:
        engine = Told()
        made = machine(engine, Gpus(""), config.parse("idle: {timeout_on_battery: 60}", "x"))
        assert made.looks_at_battery()
        made.power_told(True)
        made.power_told(True)
        assert (made.runs_on_battery(), made.looks_at_battery()) == (True, False)
        made.power_told(False)
        assert not made.runs_on_battery()
        made.power_told(True)
        made.power_told(None)
        assert made.looks_at_battery()
        assert made.runs_on_battery() == (on_battery() is True)
        assert engine.power == [True, False, True]
        assert not machine(engine, Gpus("")).looks_at_battery()

    run(work())


def test_what_sessions_do_is_nobodys_business_unless_that_is_configured(run: Run) -> None:
    """Each of the three is off by default; what is unloaded says why."""

    async def work() -> None:
        silent, engine = Told(), Told()
        for made in (machine(silent, Gpus("")),):
            made.sessions_idle(idle=True)
            made.locked()
            made.logged_out()
        assert silent.unloaded == []
        settings = config.parse("idle: {sessions_idle: 0.1, locked: true, logged_out: true}", "x")
        made = machine(engine, Gpus(""), settings)
        made.locked()
        made.logged_out()
        assert engine.unloaded == ["gpud (a session was locked)", "gpud (the last user has logged out)"]
        made.sessions_idle(idle=True)
        made.sessions_idle(idle=False)
        made.sessions_idle(idle=True)
        await engine.until(lambda: len(engine.unloaded) == 3)
        assert engine.unloaded[2] == "gpud (sessions idle for 0.1 s)"

    run(work())


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
        # The kernel gives it its name an instant after it lets its parent go on.
        while not (found := [one for one in programs.look() if one.pid == child.pid]):
            pass
        (program,) = found
        waiting = asyncio.create_task(programs.ended(program))
        await asyncio.sleep(0)
        assert not waiting.done()
        child.kill()
        await asyncio.wait_for(waiting, 50)
        await child.wait()
        await asyncio.wait_for(programs.ended(program), 50)

    run(work())
