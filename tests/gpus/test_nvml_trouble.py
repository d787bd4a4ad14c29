"""What goes wrong with NVIDIA's GPUs: seen at the next look, said of the GPU that it is about, over when it is over."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_nvml
import pytest
from fake_nvml import FakeInstance, FakeProcess
from fake_nvml.gpu import GIB, MIB, FakeGpus
from nvml_program import Program, held

from gpud.gpus.nvml_calls import Calls
from gpud.gpus.nvml_trouble import XidWatch

ERRORS = [
    "UNINITIALIZED",
    "INVALID_ARGUMENT",
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "NOT_FOUND",
    "INSUFFICIENT_SIZE",
    "DRIVER_NOT_LOADED",
    "TIMEOUT",
    "FUNCTION_NOT_FOUND",
    "GPU_IS_LOST",
    "RESET_REQUIRED",
    "OPERATING_SYSTEM",
    "LIB_RM_VERSION_MISMATCH",
    "MEMORY",
    "NO_DATA",
    "ARGUMENT_VERSION_MISMATCH",
    "NOT_READY",
    "GPU_NOT_FOUND",
    "UNKNOWN",
]
PARTS = [
    FakeInstance(uuid="MIG-one", name="NVIDIA Fake MIG 3g.40gb", total_mib=3072, used_mib=100, gpu_instance=1),
    FakeInstance(uuid="MIG-two", name="NVIDIA Fake MIG 4g.40gb", total_mib=4096, gpu_instance=2),
]


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[FakeGpus]:
    with FakeGpus(tmp_path / "gpus", 6 * GIB, 8 * GIB) as made:
        yield made


@pytest.fixture
def program(gpus: FakeGpus, tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "proc").symlink_to("/proc")
    made = Program(tmp_path, gpus.environment())
    yield made
    made.close()


def unwell(sample: dict[str, Any]) -> str:
    """The sentence of a GPU that has no figures."""
    assert (sample["used_bytes"], sample["free_bytes"], sample["processes"]) == (None, None, [])
    assert sample["asleep"] is False
    return str(sample["health"])


# Lost.


def test_a_lost_gpu_is_named_with_its_xid_in_the_same_words_each_time(gpus: FakeGpus, program: Program) -> None:
    """The driver tells of it once; the sentence keeps it. The other GPU is measured all along."""
    program.sample()
    gpus.xid(79)
    gpus.lose()
    said = set()
    for _ in range(3):
        lost, well = program.sample()
        said.add(unwell(lost))
        assert (lost["uuid"], lost["total_bytes"]) == (gpus.uuid(), 6 * GIB)
        assert (well["health"], well["free_bytes"]) == ("", 8 * GIB)
    (sentence,) = said
    assert "fallen off the bus" in sentence and sentence.endswith("(Xid 79)")
    gpus.find()
    lost, _ = program.sample()
    assert (lost["health"], lost["free_bytes"]) == ("", 6 * GIB)
    gpus.lose(error="RESET_REQUIRED")
    assert "79" not in unwell(program.sample()[0])


def test_nvml_is_let_go_between_looks_while_a_gpu_is_lost(gpus: FakeGpus, program: Program) -> None:
    """The driver refuses a reset while anybody has the GPU open, and shows what came of it only to who begins anew."""
    program.sample()
    gpus.lose(error="RESET_REQUIRED")
    for _ in range(2):
        assert "nvidia-smi --gpu-reset -i 0" in unwell(program.sample()[0])
        assert gpus.calls()[-1] == "nvmlShutdown"
    gpus.find()
    assert program.sample()[0]["free_bytes"] == 6 * GIB
    before = len(gpus.calls())
    program.sample()
    assert not {"nvmlInitWithFlags", "nvmlShutdown"} & set(gpus.calls()[before:])


def test_a_lost_gpu_is_looked_at_even_by_looks_that_wake_nothing(gpus: FakeGpus, program: Program) -> None:
    """As long as NVML is wanted, that is until it is released; then nothing is asked of it any more."""
    program.sample()
    gpus.lose()
    program.sample()
    gpus.find()
    assert [sample["free_bytes"] for sample in program.sample(wake=False)] == [6 * GIB, 8 * GIB]
    gpus.lose()
    program.sample()
    program.ask("release")
    assert program.ask("threads") == []
    before = gpus.calls()
    assert all(sample["asleep"] for sample in program.sample(wake=False))
    assert gpus.calls() == before


def test_a_lost_gpu_that_the_driver_shows_no_more_keeps_its_name(tmp_path: Path) -> None:
    """Begun anew, NVML counts one GPU less, under other numbers; after a release there is only what it shows."""
    first, second = fake_nvml.FakeGpu(uuid="GPU-a"), fake_nvml.FakeGpu(uuid="GPU-b", pci="0000:02:00.0")
    config = tmp_path / "nvml.conf"
    fake_nvml.write_config(config, [first, second])
    program = Program(tmp_path, fake_nvml.environment(config))
    try:
        program.sample()
        fake_nvml.write_config(config, [fake_nvml.FakeGpu(uuid="GPU-a", errors={"": "GPU_IS_LOST"}), second])
        program.sample()
        fake_nvml.write_config(config, [second])
        for _ in range(2):
            samples = {sample["uuid"]: sample for sample in program.sample()}
            assert samples.keys() == {"GPU-a", "GPU-b"}
            assert "0000:01:00.0 is no longer shown" in unwell(samples["GPU-a"])
            assert samples["GPU-b"]["free_bytes"] == 24576 * MIB
        fake_nvml.write_config(config, [first, second])
        assert [sample["health"] for sample in program.sample()] == ["", ""]
        fake_nvml.write_config(config, [fake_nvml.FakeGpu(uuid="GPU-a", errors={"": "GPU_IS_LOST"}), second])
        program.sample()
        fake_nvml.write_config(config, [second])
        program.ask("release")
        assert [sample["uuid"] for sample in program.sample()] == ["GPU-b"]
    finally:
        program.close()


# What the driver tells.


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (1, "must be reset; stop what uses it and run nvidia-smi --gpu-reset -i 0"),
        (2, "reboot"),
        (3, "between GPUs"),
        (4, "must be reset once no program moves data"),
        (5, "IMEX"),
        (6, "PCIe bus"),
        (7, "whole system"),
        (42, "action 42"),
    ],
)
def test_a_gpu_that_must_be_recovered_is_not_used(gpus: FakeGpus, program: Program, action: int, says: str) -> None:
    """The driver answers every other question as if nothing were wrong."""
    program.sample()
    gpus.xid(119, recovery=action)
    bad, well = program.sample()
    assert says in unwell(bad) and unwell(bad).endswith("(Xid 119)")
    assert well["free_bytes"] == 8 * GIB
    gpus.change(0, recovery=0)
    assert program.sample()[0]["free_bytes"] == 6 * GIB


class TellsOfOneXid:
    """Of the bindings, what a watch asks."""

    NVML_ERROR_TIMEOUT = 10
    nvmlEventTypeXidCriticalError = 8  # noqa: N815

    class NVMLError(Exception):
        value = 10

    def __init__(self) -> None:
        self.handle = ctypes.c_void_p(4096)
        self._told = [79]

    def nvmlEventSetCreate(self) -> object:  # noqa: N802
        return object()

    def nvmlDeviceRegisterEvents(self, *_: object) -> None:  # noqa: N802
        """Whatever is registered is watched."""

    def nvmlEventSetWait_v2(self, *_: object) -> object:  # noqa: N802
        if not self._told:
            raise self.NVMLError
        return SimpleNamespace(device=self.handle, eventData=self._told.pop())


def test_an_xid_explains_what_comes_soon_after_it() -> None:
    """The driver may give up on the GPU a look later; a loss of the next hour has a cause of its own."""
    for later_s, says in ((5.0, " (Xid 79)"), (3600.0, "")):
        now = [100.0]
        nvml = TellsOfOneXid()
        watch = XidWatch(Calls(nvml), lambda now=now: now[0])  # type: ignore[misc]
        watch.watch(0, "0000:01:00.0", nvml.handle)
        watch.read()
        now[0] += later_s
        watch.is_well("0000:01:00.0")
        assert watch.last("0000:01:00.0") == says
        now[0] += 3600.0
        assert watch.last("0000:01:00.0") == says
        watch.is_well("0000:01:00.0")
        assert watch.last("0000:01:00.0") == ""


def test_an_xid_is_named_when_the_loss_is_seen_a_look_later(gpus: FakeGpus, program: Program) -> None:
    """In between the GPU seemed to be well."""
    program.sample()
    gpus.xid(79)
    assert program.sample()[0]["health"] == ""
    gpus.lose()
    assert unwell(program.sample()[0]).endswith("(Xid 79)")
    program.ask("release")
    assert unwell(program.sample()[0]).endswith("(Xid 79)")


def test_an_xid_that_leaves_the_gpu_well_is_told_once_in_the_journal(gpus: FakeGpus, program: Program) -> None:
    """Most are the fault of the program that ran: nothing is refused for them."""
    program.sample()
    gpus.xid(31, gpu=1)
    gpus.xid(13, gpu=1)
    for _ in range(2):
        assert [sample["health"] for sample in program.sample()] == ["", ""]
    assert [line.partition(";")[0] for line in program.ask("warnings")] == [
        "GPU 1 reported Xid 31",
        "GPU 1 reported Xid 13",
    ]


def test_xids_are_watched_only_while_nvml_is_kept(gpus: FakeGpus, program: Program) -> None:
    """A look that was made for once registers for nothing."""
    assert program.sample(wake=False)[0]["free_bytes"] == 6 * GIB
    assert "nvmlDeviceRegisterEvents" not in gpus.calls()
    program.sample()
    assert gpus.calls().count("nvmlDeviceRegisterEvents") == 2


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"])
def test_a_driver_without_xids_is_asked_no_more_than_it_answers(
    gpus: FakeGpus, program: Program, function: str
) -> None:
    """All is well without them."""
    gpus.fail_all(function, "NOT_SUPPORTED")
    for _ in range(3):
        assert [sample["health"] for sample in program.sample()] == ["", ""]
    if function != "nvmlEventSetWait_v2":
        assert "nvmlEventSetWait_v2" not in gpus.calls()


def test_what_a_gpu_never_answers_is_asked_once(gpus: FakeGpus, program: Program) -> None:
    """The driver's advice and whether it is divided: an old card has neither, and a look costs no more for it."""
    for index in (0, 1):
        gpus.change(index, recovery=None)
    for _ in range(3):
        program.sample()
    assert gpus.calls().count("nvmlDeviceGetFieldValues") == 2
    assert gpus.calls().count("nvmlDeviceGetMigMode") == 2


def test_a_look_asks_no_more_for_more_processes(gpus: FakeGpus, program: Program) -> None:
    """Eight questions to each GPU and one for the Xids, when the GPUs are known."""
    for processes in (1, 20):
        for index in (0, 1):
            gpus.change(index, processes=[FakeProcess(4194000 + number, 100) for number in range(processes)])
        program.sample()
        before = program.ask("calls")
        assert [len(sample["processes"]) for sample in program.sample()] == [processes, processes]
        assert program.ask("calls") - before == 17


# Whatever NVML answers.


def test_no_error_of_any_call_hides_the_other_gpu_or_lasts(gpus: FakeGpus, program: Program) -> None:
    """Every function that a look uses, with every error that NVML has, for one GPU: the other is measured, the one is
    either measured or says why not, and it is well when it is over."""
    gpus.set_foreign(1 * GIB, gpu=0)
    gpus.set_foreign(1 * GIB, gpu=1)
    program.sample()
    functions = sorted({name for name in gpus.calls() if name.startswith("nvmlDevice") and name.find("Count") < 0})
    assert len(functions) >= 13
    for function in functions:
        for error in ERRORS:
            gpus.fail(function, error, gpu=0)
            bad, well = program.sample()
            assert well["health"] == "" and well["free_bytes"] == 7 * GIB, (function, error, well)
            assert bad["health"] or bad["free_bytes"] is not None, (function, error, bad)
            assert bad["uuid"] == gpus.uuid(0)
        gpus.fail(function, "", gpu=0)
        assert [sample["health"] for sample in program.sample()] == ["", ""], function
    assert program.ask("problems") == []


def test_no_error_of_nvml_as_a_whole_raises_or_lasts(gpus: FakeGpus, program: Program) -> None:
    """A driver that does not start makes every known GPU unwell, with the reason, and no longer than it lasts."""
    program.sample()
    for function in ("nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlShutdown", "nvmlEventSetCreate"):
        for error in ERRORS:
            program.ask("release")
            gpus.fail_all(function, error)
            samples = program.sample()
            assert [sample["uuid"] for sample in samples] == [gpus.uuid(0), gpus.uuid(1)], (function, error)
            assert all(sample["health"] or sample["free_bytes"] is not None for sample in samples)
            gpus.fail_all(function, "")
            assert [sample["health"] for sample in program.sample()] == ["", ""], (function, error)


# A divided GPU.


def test_the_parts_of_a_divided_gpu_are_devices_in_its_place(gpus: FakeGpus, program: Program) -> None:
    """Each by its uuid, with its own memory and processes, beside the GPUs that are whole."""
    two = FakeInstance(**{**vars(PARTS[1]), "processes": [FakeProcess(os.getpid(), 512)]})
    gpus.change(0, instances=[PARTS[0], two])
    first, second, whole = program.sample()
    assert (first["uuid"], first["name"]) == ("MIG-one", "NVIDIA Fake MIG 3g.40gb")
    assert (first["total_bytes"], first["used_bytes"]) == (3 * GIB, 100 * MIB)
    assert (second["uuid"], second["free_bytes"]) == ("MIG-two", 4 * GIB - 512 * MIB)
    assert held(second) == {os.getpid(): 512 * MIB}
    assert (first["temperature_c"], first["power_mw"], first["health"]) == (41, None, "")
    assert (whole["uuid"], whole["index"]) == (gpus.uuid(1), 2)
    program.ask("release")
    assert [sample["uuid"] for sample in program.sample(wake=False)] == ["MIG-one", "MIG-two", gpus.uuid(1)]


def test_parts_that_share_their_memory_are_one_device(gpus: FakeGpus, program: Program) -> None:
    """Two of them would promise the same bytes twice."""
    twin = FakeInstance(uuid="MIG-twin", total_mib=3072, gpu_instance=1)
    gpus.change(0, instances=[PARTS[0], twin, PARTS[1]])
    assert [sample["uuid"] for sample in program.sample()] == ["MIG-one", "MIG-two", gpus.uuid(1)]


def test_parts_come_and_go(gpus: FakeGpus, program: Program) -> None:
    """And the GPU is one again when it is no longer divided."""
    gpus.change(0, instances=PARTS)
    program.sample()
    gpus.change(0, instances=PARTS[1:])
    assert [sample["uuid"] for sample in program.sample()] == ["MIG-two", gpus.uuid(1)]
    gpus.change(0, instances=PARTS)
    assert [sample["uuid"] for sample in program.sample()] == ["MIG-one", "MIG-two", gpus.uuid(1)]


def test_a_divided_gpu_without_parts_is_unwell(gpus: FakeGpus, program: Program) -> None:
    """No program can use it; the sentence has both ways out."""
    gpus.change(0, mig=True)
    sentence = unwell(program.sample()[0])
    assert "nvidia-smi mig -i 0 -cgi" in sentence and "nvidia-smi -i 0 -mig 0" in sentence


def test_parts_that_may_not_be_seen_are_said_so(gpus: FakeGpus, program: Program) -> None:
    """The GPU is named in their place."""
    gpus.change(0, instances=PARTS)
    gpus.fail("nvmlDeviceGetMigDeviceHandleByIndex", "NO_PERMISSION", gpu=0)
    sample = program.sample()[0]
    assert sample["uuid"] == gpus.uuid(0)
    assert "may not see its parts" in unwell(sample)


def test_one_part_that_cannot_be_read_hides_no_other(gpus: FakeGpus, program: Program) -> None:
    """And a GPU that is lost is lost with all its parts, each under its name."""
    bad = FakeInstance(uuid="MIG-one", errors={"nvmlDeviceGetMemoryInfo_v2": "UNKNOWN"})
    gpus.change(0, instances=[bad, PARTS[1]])
    first, second, _ = program.sample()
    assert (first["uuid"], second["free_bytes"]) == ("MIG-one", 4 * GIB)
    assert "nvmlDeviceGetMemoryInfo" in unwell(first)
    gpus.lose(0)
    samples = program.sample()
    assert [sample["uuid"] for sample in samples] == ["MIG-one", "MIG-two", gpus.uuid(1)]
    assert all("fallen off the bus" in unwell(sample) for sample in samples[:2])
