"""AMD's GPUs from recorded trees of /sys and /proc."""

import os
from pathlib import Path

from gpu_trees import lay_out, recorded

from gpud.core.facts import GpuSample
from gpud.gpus.amdgpu import AmdGpuProbe

GIB = 1 << 30
MIB = 1 << 20
NOBODY: frozenset[int] = frozenset()


def held(sample: GpuSample) -> dict[int, int | None]:
    return {process.pid: process.used_bytes for process in sample.processes}


def test_a_card_of_its_own_memory(tmp_path: Path) -> None:
    """Name by libdrm's list, uuid as ROCm writes it, figures in our units; the GTT of a card is not its memory."""
    (sample,) = AmdGpuProbe(recorded("rx7900", tmp_path)).look(NOBODY, wake=True)
    assert (sample.name, sample.vendor, sample.uuid) == ("AMD Radeon RX 7900 XTX", "amd", "GPU-7d3d1b2f6a0c9e41")
    assert sample.total_bytes == 25753026560
    assert sample.used_bytes == 7 * GIB
    assert sample.free_bytes == 25753026560 - 7 * GIB
    assert (sample.temperature_c, sample.utilization_percent, sample.power_mw) == (52, 37, 61000)
    assert (sample.asleep, sample.health) == (False, "")


def test_the_drivers_version_is_the_packages_or_the_kernels(tmp_path: Path) -> None:
    """What was learnt about a size holds for one driver; one that sleeps has it too."""
    root = recorded("rx7900", tmp_path)
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text("6.12.48-amd64\n")
    probe = AmdGpuProbe(root)
    assert [sample.driver for sample in probe.look(NOBODY, wake=False)] == ["6.12.48-amd64"]
    lay_out("sys/module/amdgpu/version: 6.14.14", root)
    assert [sample.driver for sample in probe.look(NOBODY, wake=True)] == ["6.14.14"]
    assert [sample.driver for sample in probe.recall("it hangs")] == ["6.14.14"]


def test_processes_are_counted_once_for_each_client(tmp_path: Path) -> None:
    """Two descriptors of one client, and a child that inherited them, add nothing; two clients of one process add up.
    ROCm's own account holds where it knows of more."""
    (sample,) = AmdGpuProbe(recorded("rx7900", tmp_path)).look(NOBODY, wake=False)
    assert held(sample) == {4100: 5 * GIB, 4222: 513 * MIB}
    assert [process.name for process in sample.processes] == ["llama-server", "averylongprogramname"]


def test_an_apu_works_in_the_machines_memory(tmp_path: Path) -> None:
    """The pool that the driver may take counts beside the carve-out, for the card and for its processes."""
    (sample,) = AmdGpuProbe(recorded("apu", tmp_path)).look(NOBODY, wake=False)
    assert sample.total_bytes == 512 * MIB + 15 * GIB
    assert sample.free_bytes == 128 * MIB + 14 * GIB
    assert held(sample) == {700: 32 * MIB + 896 * MIB}
    assert (sample.temperature_c, sample.power_mw, sample.uuid) == (38, 4012, "0000:c4:00.0")
    assert sample.name == "AMD GPU 15BF"


def test_an_apu_offers_no_more_than_the_machine_has_left(tmp_path: Path) -> None:
    """The pool is a limit, not a reserve: other programs may have taken the memory."""
    root = recorded("apu", tmp_path)
    (root / "proc/meminfo").write_text("MemTotal: 31457280 kB\nMemAvailable: 1048576 kB\n")
    (sample,) = AmdGpuProbe(root).look(NOBODY, wake=False)
    assert sample.free_bytes == 128 * MIB + 1 * GIB


def test_a_carve_out_that_is_larger_than_the_pool_is_the_memory(tmp_path: Path) -> None:
    """The driver then allocates from the carve-out alone."""
    root = recorded("apu", tmp_path)
    device = root / "sys/bus/pci/devices/0000:c4:00.0"
    (device / "mem_info_vram_total").write_text(f"{96 * GIB}\n")
    (sample,) = AmdGpuProbe(root).look(NOBODY, wake=False)
    assert sample.total_bytes == 96 * GIB


def test_a_suspended_card_is_left_alone(tmp_path: Path) -> None:
    """Its identity and total are told; its sensors, which would wake it (here: hang the test), are not read. Another
    vendor's card is none of ours."""
    (sample,) = AmdGpuProbe(recorded("suspended", tmp_path)).look(NOBODY, wake=False)
    assert (sample.asleep, sample.uuid) == (True, "GPU-1f9a30c2d4e5b687")
    assert sample.total_bytes == 8573157376
    assert (sample.used_bytes, sample.free_bytes, sample.temperature_c) == (None, None, None)


def test_a_card_that_may_fall_asleep_is_not_kept_from_it(tmp_path: Path) -> None:
    """Its sensors would put its sleep off each time (here: hang the test) and are not read; its memory may be."""
    root = recorded("rx7900", tmp_path)
    device = root / "sys/bus/pci/devices/0000:03:00.0"
    for sensor in (device / "gpu_busy_percent", device / "hwmon/hwmon4/temp1_input"):
        sensor.unlink()
        os.mkfifo(sensor)
    (sample,) = AmdGpuProbe(root).look(NOBODY, wake=False)
    assert (sample.asleep, sample.used_bytes) == (False, 7 * GIB)
    assert (sample.temperature_c, sample.utilization_percent, sample.power_mw) == (None, None, None)


def test_a_suspended_card_is_measured_when_it_may_be_woken(tmp_path: Path) -> None:
    """Then its figures are read like any other's."""
    root = recorded("suspended", tmp_path)
    used = root / "sys/bus/pci/devices/0000:03:00.0/mem_info_vram_used"
    for pipe in [used, *used.parent.glob("gpu_busy_percent"), *used.parent.glob("hwmon/*/*")]:
        pipe.unlink()
    used.write_text("1048576\n")
    (sample,) = AmdGpuProbe(root).look(NOBODY, wake=True)
    assert (sample.asleep, sample.used_bytes, sample.temperature_c) == (False, 1048576, None)


def test_a_card_that_does_not_tell_its_memory_is_unwell(tmp_path: Path) -> None:
    """Unknown is not zero, and the sentence says where to look."""
    root = recorded("rx7900", tmp_path)
    (root / "sys/bus/pci/devices/0000:03:00.0/mem_info_vram_used").unlink()
    (sample,) = AmdGpuProbe(root).look(NOBODY, wake=True)
    assert (sample.used_bytes, sample.free_bytes) == (None, None)
    assert "journalctl -k" in sample.health


def test_more_used_than_there_is_leaves_nothing_free(tmp_path: Path) -> None:
    """Never a negative figure."""
    root = recorded("rx7900", tmp_path)
    (root / "sys/bus/pci/devices/0000:03:00.0/mem_info_vram_used").write_text(f"{99 * GIB}\n")
    (sample,) = AmdGpuProbe(root).look(NOBODY, wake=True)
    assert (sample.free_bytes, sample.used_bytes) == (0, sample.total_bytes)


def test_a_machine_without_the_driver_has_no_card(tmp_path: Path) -> None:
    """A card that another driver serves is not ours, and an empty /sys is no error."""
    listing = """
    sys/class/drm/card0/device/vendor: 0x1002
    sys/class/drm/card0/device/driver -> ../../bus/pci/drivers/radeon
    """
    assert AmdGpuProbe(lay_out(listing, tmp_path)).look(NOBODY, wake=True) == ()
    assert AmdGpuProbe(tmp_path / "nothing").look(NOBODY, wake=True) == ()


def test_what_is_recalled_has_no_figures(tmp_path: Path) -> None:
    """While the driver hangs, the cards are still named."""
    probe = AmdGpuProbe(recorded("rx7900", tmp_path))
    probe.look(NOBODY, wake=False)
    (sample,) = probe.recall("it hangs")
    assert (sample.health, sample.free_bytes, sample.processes) == ("it hangs", None, ())
    assert sample.total_bytes == 25753026560
