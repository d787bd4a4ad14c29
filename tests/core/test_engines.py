"""What engines and vendors of GPUs are called by others, whose names gpud has to know to the letter."""

import re
import tomllib
from pathlib import Path

import pytest

from gpud.core.engines import BUILT_IN, BY_NAME, ENGINES, EngineKind
from gpud.core.vendors import AMD, NVIDIA, VENDORS, VISIBLE, VULKAN_VISIBLE

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

EACH = pytest.mark.parametrize("kind", ENGINES, ids=lambda kind: kind.name)


@EACH
def test_an_engine_is_found_by_a_program_or_by_a_package(kind: EngineKind) -> None:
    """By the names that its makers gave it, never by both; a custom one is whatever its entry says."""
    named = {
        "llama_server": "llama-server",
        "embedded": "xllamacpp",
        "llama_cpp": "llama_cpp",
        "ollama": "ollama",
        "vllm": "vllm",
        "tgi": "text-generation-launcher",
        "custom": "",
    }
    assert kind.program + kind.package == named[kind.name]
    assert bool(kind.package) == bool(kind.extra)


@EACH
def test_the_part_of_gpud_that_brings_a_package_is_there_to_be_installed(kind: EngineKind) -> None:
    """``pip install 'kernelcore-gpud[embedded]'`` is what doctor tells people to type."""
    if kind.extra:
        brought = [re.split(r"[\[=<>]", one)[0] for one in PROJECT["optional-dependencies"][kind.extra]]
        assert kind.package in brought or f"{kind.package.replace('_', '-')}-python" in brought


def test_whatever_people_call_an_engine_leads_to_it() -> None:
    """As its makers write it, as its package is called, as its program is called; one name never leads to two."""
    written = {
        "llama_server": {"llamacpp", "llama.cpp", "llama-cpp", "llama-server"},
        "llama_cpp": {"llama-cpp-python", "llama_cpp_python"},
        "vllm": {"vLLM"},
        "tgi": {"TGI", "text-generation-inference", "text-generation-launcher"},
    }
    assert {kind.name: set(kind.also) for kind in ENGINES if kind.also} == written
    names = [name for kind in ENGINES for name in (kind.name, *kind.also)]
    assert len(names) == len(set(names))
    assert {name: kind.name for name, kind in BY_NAME.items()} == dict(zip(BUILT_IN, BUILT_IN, strict=True))


def test_what_engines_can_do_is_known() -> None:
    """Those that tell how they fare at /metrics, and those that understand every flag of llama-server."""
    assert [kind.name for kind in ENGINES if kind.has_metrics] == ["llama_server", "embedded", "vllm", "tgi"]
    assert [kind.name for kind in ENGINES if kind.all_flags] == ["llama_server", "embedded"]


def test_vendors_are_known_by_the_names_of_their_own_drivers_and_libraries() -> None:
    """What the bus says, what the kernel calls the driver, what CUDA, ROCr and HIP read from the environment."""
    assert [(one.name, one.title, one.pci, one.driver) for one in VENDORS] == [
        ("nvidia", "NVIDIA", "0x10de", "nvidia"),
        ("amd", "AMD", "0x1002", "amdgpu"),
    ]
    # Without the second one CUDA counts by speed, and a number is another GPU's than NVML's.
    assert (NVIDIA.visible, NVIDIA.beside) == ("CUDA_VISIBLE_DEVICES", (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),))
    assert (AMD.visible, AMD.obeys) == ("ROCR_VISIBLE_DEVICES", ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
    assert (NVIDIA.nodes, AMD.nodes) == ((), ("kfd", "dri/renderD*"))
    assert VISIBLE == ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    assert VULKAN_VISIBLE == "GGML_VK_VISIBLE_DEVICES"
