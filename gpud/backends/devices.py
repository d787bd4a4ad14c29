"""The variables that let an engine see the GPUs it was given, and no other."""

from collections.abc import Mapping, Sequence

from gpud.core.vendors import VENDORS, VISIBLE

NOTHING_VISIBLE: Mapping[str, str] = dict.fromkeys(VISIBLE, "")
"""An engine on the host opens no GPU: even an unused context costs hundreds of MiB and tens of watts."""


def visible(devices: Sequence[str], vendor: str) -> dict[str, str]:
    """Environment for an engine on ``devices`` (uuids as the vendor names them); empty ``devices``: no GPU at all."""
    if not devices:
        return dict(NOTHING_VISIBLE)
    return {
        name: value
        for one in VENDORS
        if one.name == vendor
        for name, value in ((one.visible, ",".join(devices)), *one.beside)
    }
