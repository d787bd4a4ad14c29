"""A vendor's row is enough: what engines see, what nobody else may set, and what importers and doctor look for."""

from pathlib import Path

import pytest

from gpud.backends import devices, ollama_settings
from gpud.cli import examine_machine
from gpud.cli.findings import Account
from gpud.config.forbidden import check_variable
from gpud.config.kinds import Wrong
from gpud.core.vendors import NVIDIA, VENDORS, VISIBLE, VULKAN_VISIBLE, Vendor
from gpud.gpus import PROBES
from gpud.importing import values

ROWS = pytest.mark.parametrize("vendor", VENDORS, ids=[vendor.name for vendor in VENDORS])


@ROWS
def test_an_engine_sees_the_gpus_that_it_was_given(vendor: Vendor) -> None:
    """By the vendor's own variable, with what belongs to it; what else its libraries read is left alone."""
    seen = devices.visible(("one", "two"), vendor.name)
    assert seen == {vendor.visible: "one,two", **dict(vendor.beside)}
    assert not seen.keys() & set(vendor.obeys)


@ROWS
def test_an_engine_on_the_host_sees_no_gpu(vendor: Vendor) -> None:
    """Every variable that its libraries read is there and empty."""
    seen = devices.visible((), "host")
    assert {seen[name] for name in (vendor.visible, *vendor.obeys)} == {""}


@ROWS
def test_ollama_is_kept_from_the_gpus_of_others(vendor: Vendor) -> None:
    """It takes whatever it finds: the others are hidden by name, but for what the chosen one reads too."""
    seen = ollama_settings.visible(("one",), vendor.name)
    assert seen[vendor.visible] == "one" and seen[VULKAN_VISIBLE] == "-1"
    others = {other.visible for other in VENDORS if other is not vendor}
    assert {name: seen.get(name) for name in others} == {
        name: None if name in vendor.obeys else "-1" for name in others
    }


@ROWS
def test_nobody_else_chooses_the_gpu(vendor: Vendor) -> None:
    """Neither a configuration's environment nor Ollama's; an importer takes the variable for a choice of a GPU."""
    for name in (vendor.visible, *vendor.obeys):
        with pytest.raises(Wrong, match="gpud chooses the GPU"):
            check_variable(name)
        assert ollama_settings.allowed(((name, "0"), ("OMP_NUM_THREADS", "2"))) == {"OMP_NUM_THREADS": "2"}
        assert name in values.VISIBLE


@ROWS
def test_doctor_looks_for_its_driver(tmp_path: Path, vendor: Vendor) -> None:
    """A card of its on the bus without a node to open is told with what mends it."""
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "class").write_text("0x030000\n")
    (device / "vendor").write_text(f"{vendor.pci}\n")
    assert examine_machine.vendors(tmp_path) == [vendor]
    assert examine_machine.has_gpu(tmp_path)
    found = list(examine_machine.gpus(Account("gpud", 990, frozenset()), tmp_path))
    assert any(f"modprobe {vendor.driver}" in one.remedy for one in found)


def test_every_vendor_has_a_probe_and_names_of_its_own() -> None:
    """What samples are told apart by is not shared, and nothing is left over."""
    assert len(PROBES) == len(VENDORS)
    for names in ([one.name for one in VENDORS], [one.pci for one in VENDORS], [one.visible for one in VENDORS]):
        assert len(set(names)) == len(VENDORS)
    assert set(VISIBLE) >= {NVIDIA.visible}


def test_a_machine_without_a_known_gpu_is_told_so(tmp_path: Path) -> None:
    """By the names of all vendors that gpud knows."""
    (found,) = examine_machine.gpus(Account("gpud", 990, frozenset()), tmp_path)
    assert " or ".join(one.title for one in VENDORS) in found.text and not found.is_problem
