"""The variables that let an engine see the GPUs it was given, and no other."""

from collections.abc import Mapping, Sequence

NOTHING_VISIBLE: Mapping[str, str] = {
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
}
"""An engine on the host opens no GPU: even an unused context costs hundreds of MiB and tens of watts."""


def visible(devices: Sequence[str], vendor: str) -> dict[str, str]:
    """Environment for an engine on ``devices`` (uuids as the vendor names them); empty ``devices``: no GPU at all."""
    if not devices:
        return dict(NOTHING_VISIBLE)
    listed = ",".join(devices)
    if vendor == "nvidia":
        return {"CUDA_VISIBLE_DEVICES": listed, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if vendor == "amd":
        # ROCr takes uuids and hides the rest before HIP counts; setting HIP's own as well would filter twice.
        return {"ROCR_VISIBLE_DEVICES": listed}
    return {}
