"""Whose GPUs gpud knows, as far as others than their probes have to know. One row a vendor; touches no device."""

from gpud.core.record import Record


class Vendor(Record):
    """``name`` is what samples call it, ``title`` what people do, ``pci`` its number on the bus.

    ``visible`` is the variable by which its engines are shown some of its GPUs, by uuid; ``beside`` is set with it.
    ``obeys`` are variables that they read as well: left alone while they are to see a GPU, and empty while they are to
    see none. ``driver`` is the kernel's, and ``nodes`` what it makes below /dev for engines to open; none where more
    than a module has to be looked at.
    """

    name: str
    title: str
    pci: str
    driver: str
    visible: str
    beside: tuple[tuple[str, str], ...] = ()
    obeys: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


NVIDIA = Vendor(
    "nvidia",
    "NVIDIA",
    "0x10de",
    driver="nvidia",
    visible="CUDA_VISIBLE_DEVICES",
    beside=(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),),
)
AMD = Vendor(
    "amd",
    "AMD",
    "0x1002",
    driver="amdgpu",
    # ROCr takes uuids and hides the rest before HIP counts; setting HIP's own as well would filter twice.
    visible="ROCR_VISIBLE_DEVICES",
    obeys=("HIP_VISIBLE_DEVICES", NVIDIA.visible),
    nodes=("kfd", "dri/renderD*"),
)

VENDORS = (NVIDIA, AMD)
"""In the order in which GPUs are numbered."""

VULKAN_VISIBLE = "GGML_VK_VISIBLE_DEVICES"
"""llama.cpp's own, which counts the GPUs of all vendors."""

VISIBLE = tuple(dict.fromkeys(name for vendor in VENDORS for name in (vendor.visible, *vendor.obeys)))
"""Every variable by which an engine's GPUs are chosen, but Vulkan's."""
