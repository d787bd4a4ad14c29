"""What the tray shows of the daemon: its records from the bus as values, and the arithmetic of how full a GPU is.

Knows nothing of buses, words or pictures.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gpud.core.record import Record

HOST = "host"
"""The machine's own memory among the devices."""

LOADED = ("ready", "busy")
LEAVING = ("unloading",)
COMING = ("loading", "queued")
"""The states of a model, in the words of the bus. Every other one means that it is not there."""


class Device(Record):
    """A GPU, or the machine's own memory. ``foreign_bytes`` is what other programs hold. ``measured`` is False where
    nobody knows what is used, as while nothing is loaded: gpud lets the driver sleep, and its figures grow old.
    """

    name: str
    total_bytes: int
    used_bytes: int
    measured: bool
    foreign_bytes: int

    @property
    def percent(self) -> int:
        """How full it is, rounded down: 90 is said when 90 is reached."""
        return min(100, 100 * self.used_bytes // self.total_bytes) if self.total_bytes else 0


class Model(Record):
    """One model. ``size_bytes`` is measured where something was measured, else what is reserved for it, else
    what it would need."""

    name: str
    label: str
    state: str
    size_bytes: int
    last_used_usec: int
    waits_for: str
    error: str

    @property
    def loaded(self) -> bool:
        return self.state in LOADED

    @property
    def at_rest(self) -> bool:
        """Nobody has it, wants it, or is getting rid of it: it could be loaded."""
        return self.state not in (*LOADED, *LEAVING, *COMING)


class Snapshot(Record):
    """The daemon at one moment. ``models`` are in the order in which they were last used, the newest first."""

    state: str
    degraded: str
    active: str
    models: tuple[Model, ...]
    devices: tuple[Device, ...]
    on_host: bool
    """There is no GPU, and the devices are the machine's own memory."""
    yielded: bool
    """The GPUs are given away by Yield, and Resume takes them back."""
    others: int
    """So many models that rest are known to the daemon and not among ``models``: there may be thousands."""
    queue: tuple[tuple[str, int], ...]
    """Each model that waits for memory, and the job to cancel; 0 where somebody else's request waits."""

    @property
    def gpus(self) -> int:
        """How many there are, for sentences that count them."""
        return 0 if self.on_host else len(self.devices)

    @property
    def measured(self) -> bool:
        return all(device.measured for device in self.devices)

    @property
    def total_bytes(self) -> int:
        return sum(device.total_bytes for device in self.devices)

    @property
    def used_bytes(self) -> int:
        return sum(device.used_bytes for device in self.devices)

    @property
    def foreign_bytes(self) -> int:
        return sum(device.foreign_bytes for device in self.devices)

    @property
    def percent(self) -> int:
        """How full the fullest device is: that one fails first, whatever is free on another."""
        return max((device.percent for device in self.devices), default=0)

    def model(self, name: str) -> Model | None:
        return next((model for model in self.models if model.name == name), None)


def snapshot(status: Mapping[str, Any]) -> Snapshot:
    """From what Overview() says, in plain values. What is not there counts as nothing: records may lack any key."""
    models = [_model(record) for record in _records(status.get("Models")) if record.get("Id")]
    gpus = _records(status.get("Gpus"))
    devices = [gpu for gpu in gpus if gpu.get("Uuid") != HOST] or gpus
    jobs = {
        str(job.get("Model")): int(job.get("Id", 0))
        for job in _records(status.get("Jobs"))
        if job.get("Kind") == "load"
    }
    waiting = sorted({model.name for model in models if model.state == "queued"})
    return Snapshot(
        state=str(status.get("State", "")),
        degraded=str(status.get("Degraded", "")),
        active=str(status.get("ActiveModel", "")),
        models=tuple(sorted(models, key=lambda model: (-model.last_used_usec, model.name))),
        devices=tuple(_device(gpu, fresh=not all(model.at_rest for model in models)) for gpu in devices),
        on_host=all(gpu.get("Uuid") == HOST for gpu in devices),
        yielded=bool(status.get("Yielded")),
        others=int(status.get("Others", 0)),
        queue=tuple((name, jobs.get(name, 0)) for name in waiting),
    )


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [record for record in value if isinstance(record, Mapping)] if isinstance(value, Iterable) else []


def _device(gpu: Mapping[str, Any], *, fresh: bool) -> Device:
    measured = fresh and "VramUsed" in gpu
    return Device(
        str(gpu.get("Name", "")),
        int(gpu.get("VramTotal", 0)),
        int(gpu["VramUsed"]) if measured else 0,
        measured,
        int(gpu.get("VramForeign", 0)) if measured else 0,
    )


def _model(record: Mapping[str, Any]) -> Model:
    name = str(record["Id"])
    return Model(
        name,
        str(record.get("DisplayName") or name),
        str(record.get("State", "")),
        int(record.get("VramBytes") or record.get("NeedBytes") or record.get("VramEstimate") or 0),
        int(record.get("LastUsedUSec", 0)),
        str(record.get("WaitsFor", "")),
        str(record.get("Error", "")),
    )
