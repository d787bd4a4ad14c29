"""What a snapshot looks like on the bus: names, types and units; pure, and without any decision of its own."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from gpud.core.admission import Considered
from gpud.core.errors import BackendFailed
from gpud.core.events import Alert, JobEnded, Logged
from gpud.core.facts import (
    ClaimStatus,
    GpuProcess,
    GpuStatus,
    HoldStatus,
    JobKind,
    JobStatus,
    ModelStatus,
    QueueStatus,
    SessionStatus,
    Snapshot,
    State,
)
from gpud.core.quote import Offer, Quote
from gpud.core.statuses import lively
from gpud.dbus.values import MAX, Record, number, records, text, truth, words
from gpud.dbus.wall_clock import WallClock
from gpud.dbus.wire import Variant

INTERFACE_VERSION = 5


def shown_state(status: ModelStatus) -> str:
    """The word for a model's state on the bus.

    A model that waits to be tried again after a crash is shown as failed: it does not answer, and its RetryAtUSec says
    when that may change.
    """
    if status.state is State.READY:
        return "busy" if status.in_flight else "ready"
    if status.waiting and status.state in (State.COLD, State.BACKOFF, State.FAILED):
        return "queued"
    return status.state.word()


class Known(NamedTuple):
    """What the registry knows of a model: what it would need, how often it was used before gpud started, and when it
    was used last.
    """

    need_bytes: int = 0
    uses: int = 0
    last_used_us: int = 0


NOTHING_KNOWN = Known()


def last_used_usec(status: ModelStatus, clock: WallClock, known: Known) -> int:
    """Since gpud started, else as the registry knows; 0: never."""
    return known.last_used_us if status.last_used_s is None else clock.usec(status.last_used_s)


def model_record(status: ModelStatus, clock: WallClock, known: Known = NOTHING_KNOWN) -> Record:
    model = status.model
    record = {
        "Id": text(model.name),
        "DisplayName": text(model.name),
        "Aliases": words(model.aliases),
        "VramEstimate": number("t", status.need_bytes or model.size_bytes or known.need_bytes),
        "LastUsedUSec": number("t", last_used_usec(status, clock, known)),
        "Uses": number("t", known.uses + status.uses),
        "Backend": text(model.engine),
        "State": text(shown_state(status)),
        "Reason": text(status.reason),
        "VramBytes": number("t", status.used_bytes),
        "NeedBytes": number("t", status.need_bytes),
        "Device": text(status.device),
        "ContextSize": number("u", model.settings.context),
        "InFlight": number("u", status.in_flight),
        "Holds": number("u", status.holds),
        "Pinned": truth(model.pinned),
        "UnloadAtUSec": number("t", clock.usec(status.unload_at_s)),
        "RetryAtUSec": number("t", clock.usec(status.retry_at_s if status.retries else None)),
        "Attempts": number("u", status.attempts),
        "Restarts": number("u", status.restarts),
        "LoadUSec": number("t", (status.load_seconds or 0) * 1_000_000),
        "Port": number("q", status.endpoint.port if status.endpoint else 0),
        "Pid": number("u", min(status.pids, default=0)),
        "Pids": Variant("au", sorted(status.pids)),
        "Error": text(status.error),
        "ErrorCode": text(status.error_code),
        "ErrorHint": text(status.error_hint),
        "Devices": words(device for device, _ in status.shares),
        "Shares": Variant("a{st}", _sum_by_device(status.shares)),
        "WaitsFor": text(status.waits_for),
        "Reduced": text(status.reduced),
        "NeedSource": text(status.source),
        "KvBytes": number("t", status.kv_bytes),
        "IdleTimeoutUSec": number("t", max(0.0, status.idle_timeout_s) * 1_000_000),
    }
    if status.progress is not None:
        record["Progress"] = Variant("d", float(status.progress))
    return record


def gpu_record(status: GpuStatus) -> Record:
    sample = status.sample
    record = {
        "Uuid": text(sample.uuid),
        "Name": text(sample.name),
        "Index": Variant("i", sample.index),
        "Vendor": text(sample.vendor),
        "Committed": number("t", status.committed_bytes),
        "Reserved": number("t", status.reserved_bytes),
        "Asleep": truth(sample.asleep),
        "Health": text(sample.health),
        "Reserve": number("t", status.reserve_bytes),
        "Alert": truth(status.alert),
        "Driver": text(sample.driver),
        "Processes": records([process_record(process, status.own_pids) for process in sample.processes]),
    }
    known = {
        "VramTotal": ("t", sample.total_bytes),
        "VramUsed": ("t", sample.used_bytes),
        "VramForeign": ("t", status.foreign_bytes),
        "Budget": ("t", status.budget_bytes),
        "Available": ("t", status.available_bytes),
        "Utilization": ("u", sample.utilization_percent),
        "PowerMilliWatt": ("u", sample.power_mw),
    }
    record |= {key: number(signature, value) for key, (signature, value) in known.items() if value is not None}
    if sample.temperature_c is not None:
        record["Temperature"] = Variant("i", sample.temperature_c)
    return record


def process_record(process: GpuProcess, own: Collection[int]) -> Record:
    record = {
        "Pid": number("u", process.pid),
        "Name": text(process.name),
        "Own": truth(process.pid in own),
    }
    if process.used_bytes is not None:
        record["UsedBytes"] = number("t", process.used_bytes)
    return record


def job_record(status: JobStatus, clock: WallClock) -> Record:
    record = {
        "Id": number("u", status.id),
        "Kind": text(status.kind.value),
        "Model": text(status.model),
        "Uid": number("u", status.caller.uid),
        "Caller": text(status.caller.label),
        "SinceUSec": number("t", clock.usec(status.since_s)),
        "Stage": text(status.stage),
    }
    if status.progress is not None:
        record["Progress"] = Variant("d", float(status.progress))
    if status.done_bytes is not None:
        record["Bytes"] = number("t", status.done_bytes)
        record["TotalBytes"] = number("t", status.total_bytes)
    return record


def ended_job_record(ended: JobEnded) -> Record:
    error, unload = ended.error, ended.unload
    record = {
        "Id": number("u", ended.job),
        "Kind": text(ended.kind.value),
        "Model": text(ended.model),
        "Uid": number("u", ended.caller.uid),
        "Caller": text(ended.caller.label),
        "Result": text(ended.result.value),
        "Message": text(ended.message),
        "Error": text(error.message if error else ""),
        "ErrorCode": text((error.kind if isinstance(error, BackendFailed) else "") or error.code if error else ""),
        "ErrorHint": text(error.hint if error else ""),
    }
    if unload is not None:
        record |= {
            "Unloaded": Variant("a{st}", dict(unload.unloaded)),
            "Left": Variant("a{ss}", dict(unload.left)),
            "CalledOff": words(unload.called_off),
            "StayAway": words(unload.stay_away),
        }
    return record


def hold_record(status: HoldStatus, clock: WallClock) -> Record:
    return {
        "Cookie": number("u", status.cookie),
        "Model": text(status.model),
        "What": text(":".join(sorted(status.what))),
        "Reason": text(status.reason),
        "Application": text(status.application),
        "Uid": number("u", status.caller.uid),
        "Caller": text(status.caller.label),
        "SinceUSec": number("t", clock.usec(status.since_s)),
    }


def session_record(status: SessionStatus, snapshot: Snapshot, clock: WallClock) -> Record:
    session = status.session
    return {
        "Id": text(session.id),
        "Uid": number("u", session.uid),
        "Pid": number("u", session.pid),
        "Caller": text(session.label),
        "Terminal": text(session.terminal),
        "Login": text(session.login),
        "SinceUSec": number("t", clock.usec(status.since_s)),
        "Used": words(status.used),
        "Alone": words(status.alone),
        "Holds": number("u", sum(hold.caller.owner == session.owner for hold in snapshot.holds)),
    }


def claim_record(status: ClaimStatus, clock: WallClock) -> Record:
    record = {
        "Id": number("u", status.id),
        "Who": text(status.who),
        "Why": text(status.why),
        "Uid": number("u", status.caller.uid),
        "Pid": number("u", status.caller.pid),
        "Caller": text(status.caller.label),
        "Bytes": number("t", status.bytes),
        "Device": text(status.device),
        "Granted": truth(status.granted),
        "WaitsFor": text(status.waits_for),
        "Priority": text(status.priority.name.lower()),
        "SinceUSec": number("t", clock.usec(status.since_s)),
    }
    if status.used_bytes is not None:
        record["UsedBytes"] = number("t", status.used_bytes)
    return record


def queue_record(status: QueueStatus, clock: WallClock) -> Record:
    return {
        "Position": number("u", status.position),
        "Model": text(status.model),
        "Claim": number("u", status.claim),
        "NeedBytes": number("t", status.need_bytes),
        "Priority": text(status.priority.name.lower()),
        "Callers": words(status.callers),
        "Requests": number("u", status.requests),
        "SinceUSec": number("t", clock.usec(status.since_s)),
        "UntilUSec": number("t", clock.usec(status.until_s)),
        "Overdue": truth(status.overdue),
        "WaitsFor": text(status.waits_for),
        "LoadUSec": number("t", (status.load_s or 0) * 1_000_000),
    }


def yield_record(snapshot: Snapshot, clock: WallClock) -> Record:
    status = snapshot.yielded
    if status is None:
        return {}
    return {
        "SinceUSec": number("t", clock.usec(status.since_s)),
        "UntilUSec": number("t", clock.usec(status.until_s)),
        "Why": text(status.why),
        "Uid": number("u", status.caller.uid),
        "Caller": text(status.caller.label),
    }


def considered_record(answer: Considered) -> Record:
    return {
        "Verdict": text(answer.verdict),
        "Device": text(answer.device),
        "Victims": words(answer.victims),
        "Message": text(answer.message),
    }


def quote_record(quote: Quote) -> Record:
    best = quote.offers[0] if quote.offers else None
    return {
        "NeedBytes": number("t", best.need_bytes if best else 0),
        "HostBytes": number("t", _beside_gpus(best) if best else 0),
        "Source": text(best.source.value if best else ""),
        "LoadUSec": number("t", (quote.load_s or 0) * 1_000_000),
        "Offers": records([offer_record(offer) for offer in quote.offers]),
        "Less": records([offer_record(offer) for offer in quote.less]),
    }


def offer_record(offer: Offer) -> Record:
    record = {
        "NeedBytes": number("t", offer.need_bytes),
        "HostBytes": number("t", _beside_gpus(offer)),
        "KvBytes": number("t", offer.kv_bytes),
        "Source": text(offer.source.value),
        "Reduced": text(offer.reduced),
        "Engine": text(offer.engine),
        "Shares": Variant("a{st}", _sum_by_device([(share.device, share.bytes) for share in offer.shares])),
    }
    if offer.context is not None:
        record["Context"] = number("u", offer.context)
    if offer.layers is not None:
        record["Layers"] = number("u", offer.layers)
    return record


def _beside_gpus(offer: Offer) -> int:
    return offer.host_bytes if offer.gpu_bytes else 0


def _sum_by_device(shares: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for device, share_bytes in shares:
        sums[device] = min(sums.get(device, 0) + max(0, share_bytes), MAX["t"])
    return sums


def logged_record(entry: Logged) -> Record:
    notice = entry.notice
    return {
        "AtUSec": number("t", entry.at_us),
        "Kind": text(notice.kind.value),
        "Level": text(notice.level.value),
        "Model": text(notice.model),
        "Message": text(notice.message),
        "Detail": words(notice.detail),
        "Fields": Variant("a{sv}", {key: _field(value) for key, value in notice.fields.items()}),
    }


def _field(value: str | float) -> Variant:
    """A field of a notice. What does not fit into 64 bits is a text: nothing must make the message unsendable."""
    if isinstance(value, bool):
        return truth(value)
    if isinstance(value, int):
        if 0 <= value <= MAX["t"]:
            return Variant("t", value)
        return Variant("x", value) if -(1 << 63) <= value < 0 else text(str(value))
    return Variant("d", value) if isinstance(value, float) else text(str(value))


def alert_values(alert: Alert) -> list[Any]:
    """The arguments of VramAlert."""
    percent = 100 * alert.used_bytes / alert.total_bytes if alert.total_bytes > 0 else 0
    return [
        alert.device,
        alert.name,
        alert.raised,
        number("u", percent).value,
        number("u", alert.limit_percent).value,
        alert.message,
    ]


def shown_overall(snapshot: Snapshot) -> str:
    """The word for gpud itself: while the GPUs are given away, it is not merely idle."""
    given = snapshot.yielded is not None or any({"load", "game"} & hold.what for hold in snapshot.holds)
    return "yielded" if given and snapshot.state == "idle" else snapshot.state


def loaded_models(snapshot: Snapshot) -> list[ModelStatus]:
    """Those that answer, most recently used first; those in use before the others of the same moment."""
    ready = [status for status in lively(snapshot.models) if status.state in (State.READY, State.DRAINING)]
    return sorted(ready, key=lambda status: (-(status.last_used_s or 0.0), -status.in_flight, status.model.name))


def property_values(snapshot: Snapshot, clock: WallClock, version: str, models: Sequence[Record] = ()) -> Record:
    """Every property of the interface; ``models`` are its records. The clock must have seen the snapshot."""
    loaded = loaded_models(snapshot)
    moving = lively(snapshot.models)
    active = [status for status in loaded if status.in_flight] or loaded
    gpus = [gpu for gpu in snapshot.gpus if not gpu.sample.is_host] or list(snapshot.gpus)
    unloads = [status.unload_at_s for status in moving if status.unload_at_s is not None]
    return {
        "Version": text(snapshot.version or version),
        "InterfaceVersion": number("u", INTERFACE_VERSION),
        "State": text(shown_overall(snapshot)),
        "Degraded": text(snapshot.degraded),
        "LoadedModels": words(status.model.name for status in loaded),
        "ActiveModel": text(active[0].model.name if active else ""),
        "Models": Variant("aa{sv}", models),
        "Holds": records([hold_record(status, clock) for status in snapshot.holds]),
        "Claims": records([claim_record(status, clock) for status in snapshot.claims]),
        "Queue": records([queue_record(status, clock) for status in snapshot.queue]),
        "Downloads": records([job_record(job, clock) for job in snapshot.jobs if job.kind is JobKind.DOWNLOAD]),
        "Yielded": Variant("a{sv}", yield_record(snapshot, clock)),
        "VramTotal": number("t", sum(gpu.sample.total_bytes or 0 for gpu in gpus)),
        "VramBudget": number("t", sum(gpu.budget_bytes or 0 for gpu in gpus)),
        "VramUsed": number("t", sum(gpu.sample.used_bytes or 0 for gpu in gpus)),
        "IdleTimeoutUSec": number("t", snapshot.idle_timeout_s * 1_000_000),
        "NextUnloadUSec": number("t", clock.usec(min(unloads, default=None))),
        "Utilization": number("u", max((gpu.sample.utilization_percent or 0 for gpu in gpus), default=0)),
    }


def status_values(snapshot: Snapshot, clock: WallClock, version: str, models: Sequence[Record]) -> dict[str, Any]:
    """The answer to Status: the properties, the devices and the jobs."""
    return property_values(snapshot, clock, version, models) | {
        "DegradedText": text(snapshot.degraded_text),
        "DegradedHint": text(snapshot.degraded_hint),
        "Gpus": records([gpu_record(status) for status in snapshot.gpus]),
        "Jobs": records([job_record(status, clock) for status in snapshot.jobs]),
        "Sessions": records([session_record(status, snapshot, clock) for status in snapshot.sessions]),
    }
