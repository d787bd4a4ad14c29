"""NVIDIA's GPUs through the real nvidia-ml-py and a stand-in for NVIDIA's library, in a program of their own."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeProcess, calls, claim, environment, write_config
from gpu_trees import nvidia_card, set_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvml_program import Program, held

MIB = 1 << 20
FIRST = FakeGpu()
SECOND = FakeGpu(uuid="GPU-22222222-0000-0000-0000-000000000000", name="NVIDIA Fake 3060", pci="0000:02:00.0")
UNKNOWN_TO_NVML = (2**64 - 1, 2**32 - 1)


class Machine(Program):
    """A program that looks at the GPUs, the files that make up its machine, and the stand-in's log."""

    def __init__(self, directory: Path, *, answer_s: float, library: bool) -> None:
        self.root = directory / "root"
        self.root.mkdir()
        (self.root / "proc").symlink_to("/proc")
        self.claims = directory / "claims"
        self.device = directory / "nvidia0"
        self.device.touch()
        self._log = directory / "calls"
        self._config = directory / "nvml.conf"
        super().__init__(self.root, environment(self._config) if library else {}, answer_s=answer_s)
        self.gpus()

    def gpus(self, *gpus: FakeGpu, errors: dict[str, str] | None = None, linger_ms: int = 0) -> None:
        """Replace the GPUs that the stand-in shows; by default there is one."""
        places = {"call_log": self._log, "claims": self.claims, "device": self.device}
        write_config(self._config, gpus or (FIRST,), errors=errors, linger_ms=linger_ms, **places)

    def calls(self) -> list[str]:
        return calls(self._log)


MakeMachine = Callable[..., Machine]


@pytest.fixture
def make_machine(tmp_path: Path) -> Iterator[MakeMachine]:
    made: list[Machine] = []

    def make(*, answer_s: float = 5.0, library: bool = True) -> Machine:
        made.append(Machine(tmp_path, answer_s=answer_s, library=library))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    return make_machine()


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a process that does nothing, and ends it after the test."""

    def start(**variables: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "300"], env=os.environ | variables)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    return start


# Figures.


def test_every_figure_of_a_gpu_is_reported(machine: Machine) -> None:
    """Identity, memory, temperature, load and power come as the driver gives them."""
    machine.gpus(FakeGpu(total_mib=8192, used_mib=1000, reserved_mib=200, power_mw=23500))
    (sample,) = machine.sample()
    assert sample["uuid"] == FIRST.uuid
    assert (sample["name"], sample["index"], sample["vendor"]) == ("NVIDIA Fake 4090", 0, "nvidia")
    assert sample["total_bytes"] == 8192 * MIB
    assert sample["free_bytes"] == (8192 - 1000 - 200) * MIB
    assert (sample["temperature_c"], sample["utilization_percent"], sample["power_mw"]) == (41, 3, 23500)
    assert (sample["asleep"], sample["health"]) == (False, "")


def test_what_the_driver_keeps_for_itself_counts_as_used(machine: Machine) -> None:
    """Used and free add up to the total: nothing is promised that cannot be allocated."""
    machine.gpus(FakeGpu(total_mib=8192, used_mib=1000, reserved_mib=200))
    (sample,) = machine.sample()
    assert sample["used_bytes"] == 1200 * MIB


def test_compute_and_graphics_processes_are_one_list(machine: Machine) -> None:
    """A process in both lists counts once; a size that the driver does not tell is unknown, not sixteen exbibytes."""
    processes = [
        FakeProcess(os.getpid(), 300),
        FakeProcess(os.getpid(), 300, "graphics"),
        FakeProcess(4194300, None),
        FakeProcess(4194301, 64, "graphics"),
    ]
    machine.gpus(FakeGpu(processes=processes))
    (sample,) = machine.sample()
    assert held(sample) == {os.getpid(): 300 * MIB, 4194300: None, 4194301: 64 * MIB}
    names = {process["pid"]: process["name"] for process in sample["processes"]}
    assert names[os.getpid()] == Path("/proc/self/comm").read_text().strip()
    assert names[4194300] == ""


def test_who_ends_between_two_calls_is_in_neither_figure(machine: Machine) -> None:
    """Its memory, told before, and the list without it, asked for after, would be memory that nobody holds."""
    machine.gpus(FakeGpu(processes=[FakeProcess(os.getpid(), 300), FakeProcess(4194302, 500, "leaving")]))
    (sample,) = machine.sample()
    assert held(sample) == {os.getpid(): 300 * MIB}
    assert sample["used_bytes"] == 300 * MIB


@pytest.mark.parametrize(
    ("function", "key"),
    [
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetUtilizationRates", "utilization_percent"),
        ("nvmlDeviceGetPowerUsage", "power_mw"),
    ],
)
@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "UNKNOWN", "NO_PERMISSION"])
def test_a_missing_sensor_is_unknown_and_hides_nothing(machine: Machine, function: str, key: str, error: str) -> None:
    """None, never zero; the GPU is well all the same."""
    machine.gpus(FakeGpu(errors={function: error}))
    (sample,) = machine.sample()
    assert sample[key] is None
    assert sample["health"] == ""
    others = {"temperature_c": 41, "utilization_percent": 3, "power_mw": 23500}
    del others[key]
    assert {other: sample[other] for other in others} == others
    assert sample["free_bytes"] == FIRST.total_mib * MIB


def test_a_driver_from_before_the_newer_calls_is_asked_with_the_older(machine: Machine) -> None:
    """Version 1 of the memory call, version 2 of the process lists."""
    missing = ["MemoryInfo_v2", "ComputeRunningProcesses_v3", "GraphicsRunningProcesses_v3"]
    errors = {f"nvmlDeviceGet{name}": "FUNCTION_NOT_FOUND" for name in missing}
    machine.gpus(FakeGpu(reserved_mib=100, processes=[FakeProcess(77, 300)], errors=errors))
    (sample,) = machine.sample()
    assert sample["free_bytes"] == (FIRST.total_mib - 400) * MIB
    assert held(sample) == {77: 300 * MIB}
    assert sample["health"] == ""


def test_a_gpu_without_memory_of_its_own_has_the_machines(machine: Machine) -> None:
    """Unified memory (GB10): the total and what is left are the machine's, which its name says, and nothing is wrong.
    What processes hold is told as everywhere."""
    errors = {"nvmlDeviceGetMemoryInfo_v2": "NOT_SUPPORTED", "nvmlDeviceGetMemoryInfo": "NOT_SUPPORTED"}
    machine.gpus(FakeGpu(errors=errors, processes=[FakeProcess(os.getpid(), 700)]))
    (sample,) = machine.sample()
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert sample["total_bytes"] == total_kib * 1024
    assert 0 < sample["free_bytes"] < total_kib * 1024
    assert (sample["vendor"], sample["health"]) == ("nvidia", "")
    assert sample["name"] == "NVIDIA Fake 4090 (shares the machine's memory)"
    assert held(sample) == {os.getpid(): 700 * MIB}
    machine.ask("release")
    assert machine.sample(wake=False)[0]["name"] == sample["name"]


def test_the_drivers_version_is_told_with_every_gpu(machine: Machine) -> None:
    """What was learnt about a size holds for one driver: asked once in a session, and before that sysfs tells it."""
    nvidia_card(machine.root, status="suspended")
    (machine.root / "sys/module/nvidia").mkdir(parents=True)
    (machine.root / "sys/module/nvidia/version").write_text("575.57.08\n")
    (sample,) = machine.sample(wake=False)
    assert (sample["driver"], machine.calls()) == ("575.57.08", [])
    for _ in range(2):
        (sample,) = machine.sample()
        assert sample["driver"] == "580.65.06"
    assert machine.calls().count("nvmlSystemGetDriverVersion") == 1
    machine.ask("release")
    assert machine.sample(wake=False)[0]["driver"] == "580.65.06"


def test_a_driver_that_does_not_tell_its_version_is_no_trouble(machine: Machine) -> None:
    """Nothing is known of it then."""
    machine.gpus(errors={"nvmlSystemGetDriverVersion": "UNKNOWN"})
    (sample,) = machine.sample()
    assert (sample["driver"], sample["health"]) == ("", "")


def test_memory_that_the_driver_does_not_know_is_unknown(machine: Machine) -> None:
    """The driver's word for it is 2^64-1; it must not become sixteen exbibytes of free memory."""
    machine.gpus(FakeGpu(memory_unknown=True))
    (sample,) = machine.sample()
    assert (sample["total_bytes"], sample["used_bytes"], sample["free_bytes"]) == (None, None, None)


def test_every_call_of_nvml_is_counted(machine: Machine) -> None:
    """What the probe counts is what the library sees, but for the second call that listing processes takes."""
    machine.sample()
    assert machine.ask("calls") == len(machine.calls())


# Memory of live processes.


def test_a_killed_process_gives_its_memory_back(machine: Machine, start: Callable[..., Any]) -> None:
    """What a process claims is its own while it lives and free when it is dead."""
    process = start()
    machine.gpus(FIRST, SECOND)
    claim(machine.claims, process.pid, 1024, 512)
    first, second = machine.sample()
    assert held(first) == {process.pid: 1024 * MIB}
    assert held(second) == {process.pid: 512 * MIB}
    assert first["free_bytes"] == (FIRST.total_mib - 1024) * MIB
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # Dead, and still a zombie.
    first, second = machine.sample()
    assert (held(first), held(second)) == ({}, {})
    assert first["free_bytes"] == FIRST.total_mib * MIB


def test_a_process_declares_its_memory_by_its_environment(machine: Machine, start: Callable[..., Any]) -> None:
    """On the GPU that CUDA_VISIBLE_DEVICES shows it, by uuid or by number, else on the first."""
    machine.gpus(FIRST, SECOND)
    plain = start(GPUD_FAKE_VRAM_MIB="100")
    by_uuid = start(GPUD_FAKE_VRAM_MIB="200", CUDA_VISIBLE_DEVICES=SECOND.uuid)
    by_number = start(GPUD_FAKE_VRAM_MIB="400", CUDA_VISIBLE_DEVICES="1")
    hidden = start(GPUD_FAKE_VRAM_MIB="800", CUDA_VISIBLE_DEVICES="")
    first, second = machine.sample()
    assert held(first) == {plain.pid: 100 * MIB}
    assert held(second) == {by_uuid.pid: 200 * MIB, by_number.pid: 400 * MIB}
    assert hidden.pid not in held(first) | held(second)


def test_memory_may_come_back_late(machine: Machine, start: Callable[..., Any]) -> None:
    """A driver takes a while to free what a dead process held: used by nobody, then free."""
    process = start(GPUD_FAKE_VRAM_MIB="2048")
    machine.gpus(FIRST, linger_ms=300)
    assert held(machine.sample()[0]) == {process.pid: 2048 * MIB}
    process.kill()
    process.wait()
    (sample,) = machine.sample()
    assert held(sample) == {}
    assert sample["used_bytes"] == 2048 * MIB
    deadline = time.monotonic() + 50
    while sample["used_bytes"] and time.monotonic() < deadline:
        (sample,) = machine.sample()
    assert sample["free_bytes"] == FIRST.total_mib * MIB


# Sleep.


def test_a_suspended_gpu_is_left_alone(machine: Machine) -> None:
    """Nothing of NVML is called; what sysfs tells is reported as asleep; a look that may wake it measures it."""
    card = nvidia_card(machine.root)
    set_status(card, "suspended")
    (sample,) = machine.sample(wake=False)
    assert (sample["asleep"], sample["health"], sample["uuid"]) == (True, "", card.name)
    assert sample["free_bytes"] is None
    assert machine.calls() == []
    assert machine.ask("imported") is False
    (sample,) = machine.sample(wake=True)
    assert (sample["asleep"], sample["uuid"]) == (False, FIRST.uuid)


def test_a_gpu_that_fell_asleep_keeps_its_identity(machine: Machine) -> None:
    """Name, uuid and total are remembered; the rest is unknown; even an open NVML is not used."""
    card = nvidia_card(machine.root)
    machine.sample()
    before = machine.calls()
    set_status(card, "suspended")
    (sample,) = machine.sample(wake=False)
    assert (sample["uuid"], sample["name"], sample["total_bytes"]) == (FIRST.uuid, FIRST.name, FIRST.total_mib * MIB)
    assert (sample["asleep"], sample["used_bytes"], sample["free_bytes"]) == (True, None, None)
    assert machine.calls() == before


def test_a_gpu_that_is_awake_is_measured_beside_one_that_sleeps(machine: Machine) -> None:
    """The sleeping one gets no call that names it."""
    nvidia_card(machine.root, FIRST.pci)
    second = nvidia_card(machine.root, SECOND.pci)
    machine.gpus(FIRST, SECOND)
    machine.sample()
    set_status(second, "suspended")
    # Whatever is asked of the second GPU would now hang.
    machine.gpus(FIRST, FakeGpu(uuid=SECOND.uuid, pci=SECOND.pci, errors={"": "hang"}))
    awake, asleep = machine.sample(wake=False)
    assert (awake["asleep"], awake["free_bytes"]) == (False, FIRST.total_mib * MIB)
    assert (asleep["asleep"], asleep["uuid"], asleep["health"]) == (True, SECOND.uuid, "")


def test_gpus_that_are_awake_are_met_once_and_then_let_go(machine: Machine) -> None:
    """A look that may wake nothing still learns what there is, once; afterwards it costs no call."""
    nvidia_card(machine.root)
    (sample,) = machine.sample(wake=False)
    assert (sample["uuid"], sample["free_bytes"]) == (FIRST.uuid, FIRST.total_mib * MIB)
    assert machine.calls()[-1] == "nvmlShutdown"
    assert machine.ask("threads") == []
    before = machine.calls()
    (sample,) = machine.sample(wake=False)
    assert (sample["asleep"], sample["total_bytes"], sample["free_bytes"]) == (True, FIRST.total_mib * MIB, None)
    assert machine.calls() == before


def test_gpus_that_are_never_suspended_are_looked_at_and_let_go_each_time(machine: Machine) -> None:
    """As on a desktop: nothing can be kept from its sleep, so that whoever asks sees what is so now."""
    nvidia_card(machine.root, control="on")
    machine.sample(wake=False)
    machine.gpus(FakeGpu(used_mib=1000))
    (sample,) = machine.sample(wake=False)
    assert (sample["asleep"], sample["used_bytes"]) == (False, 1000 * MIB)
    assert machine.calls()[-1] == "nvmlShutdown"
    assert machine.ask("threads") == []


def test_one_gpu_that_may_fall_asleep_keeps_all_from_being_asked(machine: Machine) -> None:
    """NVML is let go or not, for all together: a laptop's GPU beside one that never sleeps goes before figures."""
    nvidia_card(machine.root, FIRST.pci, control="on")
    nvidia_card(machine.root, SECOND.pci, control="auto")
    machine.gpus(FIRST, SECOND)
    machine.sample(wake=False)
    before = machine.calls()
    assert [sample["asleep"] for sample in machine.sample(wake=False)] == [True, True]
    assert machine.calls() == before


def test_release_closes_the_driver_and_ends_the_thread(machine: Machine) -> None:
    """No descriptor of the device and no thread is left; looks that may not wake cost nothing; the next begins anew."""
    machine.sample()
    assert str(machine.device) in machine.ask("links")
    assert len(machine.ask("threads")) == 1
    machine.ask("release")
    assert str(machine.device) not in machine.ask("links")
    assert machine.ask("threads") == []
    before = machine.calls()
    assert before[-1] == "nvmlShutdown"
    machine.sample(wake=False)
    machine.ask("release")
    assert machine.calls() == before
    assert machine.sample()[0]["free_bytes"] == FIRST.total_mib * MIB


def test_after_release_the_gpus_are_met_anew(machine: Machine) -> None:
    """Another GPU may have been plugged in while the driver was let go."""
    machine.sample()
    machine.ask("release")
    machine.gpus(SECOND, FIRST)
    assert [sample["uuid"] for sample in machine.sample()] == [SECOND.uuid, FIRST.uuid]


# Trouble.


def test_a_lost_gpu_is_unwell_and_the_other_is_measured(machine: Machine) -> None:
    """The lost one keeps its name; its sentence says what to do."""
    machine.gpus(FIRST, SECOND)
    machine.sample()
    machine.gpus(FakeGpu(errors={"": "GPU_IS_LOST"}), SECOND)
    lost, well = machine.sample()
    assert (lost["uuid"], lost["free_bytes"]) == (FIRST.uuid, None)
    assert "fallen off the bus" in lost["health"]
    assert "reboot" in lost["health"]
    assert (well["health"], well["free_bytes"]) == ("", SECOND.total_mib * MIB)


def test_a_gpu_that_comes_back_is_met_anew(machine: Machine) -> None:
    """What answers after a loss is asked who it is."""
    machine.sample()
    machine.gpus(FakeGpu(errors={"": "GPU_IS_LOST"}))
    machine.sample()
    machine.gpus(FakeGpu(uuid=SECOND.uuid, pci=FIRST.pci))
    (sample,) = machine.sample()
    assert (sample["uuid"], sample["health"]) == (SECOND.uuid, "")


def test_a_gpu_that_is_lost_from_the_start_is_still_listed(machine: Machine) -> None:
    """With a name of its own, so that the numbers of the others stay."""
    machine.gpus(FakeGpu(errors={"": "GPU_IS_LOST"}), SECOND)
    lost, well = machine.sample()
    assert "fallen off the bus" in lost["health"]
    assert (well["uuid"], well["index"]) == (SECOND.uuid, 1)


def test_memory_that_cannot_be_read_is_said_with_the_error(machine: Machine) -> None:
    """The call and the error of the driver are in the sentence."""
    machine.gpus(FakeGpu(errors={"nvmlDeviceGetMemoryInfo_v2": "UNKNOWN"}))
    (sample,) = machine.sample()
    assert "nvmlDeviceGetMemoryInfo" in sample["health"]
    assert "999" in sample["health"]
    assert (sample["used_bytes"], sample["free_bytes"]) == (None, None)


def test_a_driver_that_differs_from_its_library_is_said_with_the_cure(machine: Machine) -> None:
    """After an upgrade: the GPU is listed, unwell, until the driver is reloaded; then it is measured."""
    nvidia_card(machine.root)
    machine.gpus(errors={"nvmlInitWithFlags": "LIB_RM_VERSION_MISMATCH"})
    (sample,) = machine.sample()
    assert "differ in version" in sample["health"]
    assert "reboot" in sample["health"] and "modprobe" in sample["health"]
    before = machine.calls()
    (sample,) = machine.sample(wake=False)
    assert "differ in version" in sample["health"]
    assert machine.calls() == before
    machine.gpus()
    (sample,) = machine.sample()
    assert (sample["health"], sample["uuid"]) == ("", FIRST.uuid)


def test_a_driver_that_fails_where_sysfs_shows_no_gpu_is_a_problem(machine: Machine) -> None:
    """There is no device to say it of."""
    machine.gpus(errors={"nvmlInitWithFlags": "LIB_RM_VERSION_MISMATCH"})
    assert machine.sample() == []
    (problem,) = machine.ask("problems")
    assert "differ in version" in problem


def test_a_library_without_a_driver_and_a_gpu_is_an_ordinary_machine(machine: Machine) -> None:
    """A driver package on a machine whose GPU is elsewhere is no problem."""
    machine.gpus(errors={"nvmlInitWithFlags": "DRIVER_NOT_LOADED"})
    assert machine.sample() == []
    assert machine.ask("problems") == []


def test_a_gpu_without_nvidias_library_is_a_problem_and_no_device(make_machine: MakeMachine) -> None:
    """No engine could use it either; the host's memory is reported all the same."""
    machine = make_machine(library=False)
    nvidia_card(machine.root)
    for wake in (False, True):
        assert machine.sample(wake=wake) == []
        (problem,) = machine.ask("problems")
        assert "libnvidia-ml.so.1 is not installed" in problem


def test_a_machine_without_nvidia_has_only_the_host(make_machine: MakeMachine) -> None:
    """No problem, no thread, and the bindings are not even imported."""
    machine = make_machine(library=False)
    assert machine.sample() == []
    assert machine.ask("problems") == []
    assert machine.ask("threads") == []
    assert machine.ask("imported") is False


@pytest.mark.parametrize(("driver", "says"), [("nouveau", "its driver is nouveau"), ("", "its driver is missing")])
def test_a_gpu_of_another_driver_is_named(machine: Machine, driver: str, says: str) -> None:
    """It cannot be used; what it has instead of NVIDIA's driver is said."""
    nvidia_card(machine.root, driver=driver)
    machine.gpus(errors={"nvmlInitWithFlags": "DRIVER_NOT_LOADED"})
    assert machine.sample() == []
    assert says in " ".join(machine.ask("problems"))


def test_a_gpu_that_belongs_to_a_virtual_machine_is_not_mentioned(machine: Machine) -> None:
    """Passed through on purpose."""
    nvidia_card(machine.root, driver="vfio-pci")
    machine.gpus(errors={"nvmlInitWithFlags": "DRIVER_NOT_LOADED"})
    assert machine.sample() == []
    assert machine.ask("problems") == []


def test_nvml_that_was_shut_down_under_us_is_begun_anew(machine: Machine) -> None:
    """One look is lost, the next is well."""
    machine.sample()
    machine.gpus(FakeGpu(errors={"nvmlDeviceGetMemoryInfo_v2": "UNINITIALIZED"}))
    assert machine.sample()[0]["health"] != ""
    machine.gpus()
    assert machine.sample()[0]["health"] == ""


# Hangs.


def test_a_driver_that_hangs_is_reported_in_time_and_recovers(make_machine: MakeMachine) -> None:
    """The answer comes after the bound, later ones at once; the calls do not pile up; an end of the hang is noticed."""
    machine = make_machine(answer_s=2.0)
    machine.sample()
    machine.gpus(FakeGpu(errors={"nvmlDeviceGetMemoryInfo_v2": "hang"}))
    began = time.monotonic()
    (sample,) = machine.sample()
    assert time.monotonic() - began > 1.9
    assert "NVML has not answered for 2 s" in sample["health"]
    assert (sample["uuid"], sample["total_bytes"], sample["free_bytes"]) == (FIRST.uuid, FIRST.total_mib * MIB, None)
    hanging = machine.calls()
    assert machine.ask("samples_at_once", 50) == 50
    assert machine.ask("samples_at_once", 50) == 50
    assert machine.calls() == hanging
    assert machine.ask("threads") == ["gpud-NVML"]
    machine.gpus()
    deadline = time.monotonic() + 50
    while (sample := machine.sample()[0])["health"] and time.monotonic() < deadline:
        pass
    assert sample["free_bytes"] == FIRST.total_mib * MIB


def test_a_driver_that_hangs_from_the_start_is_reported_on_the_gpu_that_sysfs_shows(make_machine: MakeMachine) -> None:
    """The GPU is known by its address until the driver answers."""
    machine = make_machine(answer_s=2.0)
    card = nvidia_card(machine.root)
    machine.gpus(errors={"nvmlInitWithFlags": "hang"})
    (sample,) = machine.sample()
    assert (sample["uuid"], sample["health"][:4]) == (card.name, "NVML")


def test_release_does_not_wait_for_a_driver_that_hangs(make_machine: MakeMachine) -> None:
    """It is let go when it answers at last: NVML is shut down and the thread ends without anybody asking again."""
    machine = make_machine(answer_s=2.0)
    machine.sample()
    machine.gpus(FakeGpu(errors={"nvmlDeviceGetPowerUsage": "hang"}))
    machine.sample()
    began = time.monotonic()
    machine.ask("release")
    assert time.monotonic() - began < 30
    assert machine.ask("threads") == ["gpud-NVML"]
    machine.gpus()
    assert machine.ask("wait_for_end_of_thread") is True
    assert machine.calls()[-1] == "nvmlShutdown"


# Whatever the driver says.


@pytest.fixture(scope="module")
def busy_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"), answer_s=5.0, library=True)
    machine.ask("calls")  # Its program starts with the module, not inside a test that is watched for what it leaves.
    yield machine
    machine.close()


MIBS = st.integers(0, 1 << 17)
ERRORS = st.dictionaries(
    st.sampled_from(
        [
            "nvmlDeviceGetMemoryInfo_v2",
            "nvmlDeviceGetTemperature",
            "nvmlDeviceGetPowerUsage",
            "nvmlDeviceGetUtilizationRates",
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetGraphicsRunningProcesses_v3",
            "nvmlDeviceGetPciInfo_v3",
            "nvmlDeviceGetFieldValues",
            "nvmlDeviceGetMigMode",
        ]
    ),
    st.sampled_from(["NOT_SUPPORTED", "UNKNOWN", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "RESET_REQUIRED", "NO_DATA"]),
    max_size=2,
)
PROCESSES = st.lists(
    st.builds(
        FakeProcess,
        st.integers(4194000, 4194010),
        st.none() | st.integers(0, 1 << 15),
        st.sampled_from(["compute", "graphics"]),
    ),
    max_size=8,
)
GPUS = st.lists(
    st.builds(
        FakeGpu,
        total_mib=MIBS,
        used_mib=MIBS,
        memory_unknown=st.booleans(),
        reserved_mib=st.integers(0, 600),
        temperature_c=st.sampled_from([0, 41, 2**32 - 1]),
        power_mw=st.sampled_from([0, 23500, 2**32 - 1]),
        utilization_percent=st.sampled_from([0, 100, 2**32 - 1]),
        processes=PROCESSES,
        errors=ERRORS,
    ),
    min_size=1,
    max_size=3,
)


def numbers(value: object) -> Iterator[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int):
        yield value


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gpus=GPUS)
def test_no_figure_is_negative_or_the_drivers_word_for_unknown(busy_machine: Machine, gpus: list[FakeGpu]) -> None:
    """And what is used and free makes up the total wherever all three are known."""
    busy_machine.gpus(*gpus)
    samples = busy_machine.sample()
    busy_machine.ask("release")
    assert len(samples) == len(gpus)
    for sample in samples:
        assert all(number >= 0 and number not in UNKNOWN_TO_NVML for number in numbers(sample))
        if sample["free_bytes"] is not None and sample["total_bytes"] is not None:
            assert sample["used_bytes"] + sample["free_bytes"] == sample["total_bytes"]
