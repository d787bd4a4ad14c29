"""What a snapshot says in numbers. What is not known has no number: a missing figure must not look like zero."""

from collections import Counter
from collections.abc import Callable, Iterator

from gpud.core.facts import GpuStatus, JobKind, ModelStatus, Priority, Snapshot, State
from gpud.core.record import Struct, field
from gpud.http.counting import Labels

MODEL_STATES = (*(state.value for state in State),)
DEGRADED = ("gpu-unavailable", "state-not-kept")


class Gauge(Struct):
    """One number for each combination of labels, as it is now."""

    name: str
    help: str
    labels: Labels
    values: dict[Labels, float] = field(default_factory=dict)

    def set(self, labels: Labels, value: float | None) -> None:
        if value is not None:
            self.values[labels] = float(value)


def gauges(snapshot: Snapshot, look_age_s: float | None) -> list[Gauge]:
    """Everything that is read, in the order of the text. ``look_age_s`` is the age of the devices' figures."""
    return [*_models(snapshot), *_queue(snapshot), *_devices(snapshot, look_age_s), *_daemon(snapshot)]


# Models --------------------------------------------------------------------------------------------------------------

_MODEL: tuple[tuple[str, str, Callable[[ModelStatus], float | None]], ...] = (
    ("gpud_model_in_flight", "Requests that the model's engine is working on for gpud.", lambda m: m.in_flight),
    ("gpud_model_holds", "Promises that the model stays loaded.", lambda m: m.holds),
    ("gpud_model_waiting", "1 while somebody waits for the model to be loaded, else 0.", lambda m: m.waiting),
    ("gpud_model_need_bytes", "Memory that the model is expected to take.", lambda m: m.need_bytes or None),
    ("gpud_model_used_bytes", "Memory that the model's engine was measured to hold.", lambda m: m.used_bytes),
)


def _models(snapshot: Snapshot) -> Iterator[Gauge]:
    info = Gauge("gpud_model_info", "What is configured of the model; always 1.", ("model", "engine", "priority"))
    state = Gauge("gpud_model_state", "1 for the state that the model is in, 0 for the others.", ("model", "state"))
    loaded = Gauge("gpud_models_loaded", "Models whose engine answers.", ())
    for status in snapshot.models:
        name = status.model.name
        info.set((name, status.model.engine, status.model.priority.name.lower()), 1)
        for one in MODEL_STATES:
            state.set((name, one), status.state.value == one)
    loaded.set((), sum(status.state in (State.READY, State.DRAINING) for status in snapshot.models))
    yield from (info, state, loaded)
    for metric, text, read in _MODEL:
        gauge = Gauge(metric, text, ("model",))
        for status in snapshot.models:
            gauge.set((status.model.name,), read(status))
        yield gauge


def _queue(snapshot: Snapshot) -> Iterator[Gauge]:
    depth = Gauge("gpud_queue_depth", "Models and claims that wait for memory.", ("priority",))
    waiting = Counter(entry.priority for entry in snapshot.queue)
    for priority in Priority:
        depth.set((priority.name.lower(),), waiting[priority])
    requests = Gauge("gpud_queue_requests", "Requests and jobs that wait for those models.", ())
    requests.set((), sum(entry.requests for entry in snapshot.queue))
    oldest = Gauge("gpud_queue_oldest_seconds", "How long the one that has waited longest has waited; 0: nobody.", ())
    oldest.set((), max((snapshot.now_s - entry.since_s for entry in snapshot.queue), default=0.0))
    yield from (depth, requests, oldest)


# Devices -------------------------------------------------------------------------------------------------------------

_MEMORY: tuple[tuple[str, str, Callable[[GpuStatus], float | None]], ...] = (
    ("total_bytes", "Memory of the {}.", lambda g: g.sample.total_bytes),
    ("used_bytes", "Memory of the {} that is in use, by whomever.", lambda g: g.sample.used_bytes),
    ("foreign_bytes", "Memory of the {} that programs hold which gpud did not start.", lambda g: g.foreign_bytes),
    ("committed_bytes", "Memory of the {} that gpud has given to models and claims.", lambda g: g.committed_bytes),
    (
        "reserved_bytes",
        "Memory of the {} that gpud has promised and that does not show in what is in use.",
        lambda g: g.reserved_bytes,
    ),
    ("reserve_bytes", "Memory of the {} that gpud always leaves free.", lambda g: g.reserve_bytes),
    ("budget_bytes", "Memory of the {} that gpud may take in all.", lambda g: g.budget_bytes),
    ("available_bytes", "Memory of the {} that gpud could give away now.", lambda g: g.available_bytes),
    ("alert", "1 while the {} is nearly full, by gpu.alert_percent; else 0.", lambda g: g.alert),
)

_GPU: tuple[tuple[str, str, Callable[[GpuStatus], float | None]], ...] = (
    (
        "gpud_gpu_utilization_ratio",
        "The share of time in which the GPU was at work, from 0 to 1.",
        lambda g: None if g.sample.utilization_percent is None else g.sample.utilization_percent / 100,
    ),
    ("gpud_gpu_temperature_celsius", "Temperature of the GPU.", lambda g: g.sample.temperature_c),
    (
        "gpud_gpu_power_watts",
        "Power that the GPU draws.",
        lambda g: None if g.sample.power_mw is None else g.sample.power_mw / 1000,
    ),
    ("gpud_gpu_asleep", "1 while the GPU is left alone because it sleeps, else 0.", lambda g: g.sample.asleep),
    ("gpud_gpu_healthy", "1 while the GPU's driver answers as it should, else 0.", lambda g: not g.sample.health),
)


def _devices(snapshot: Snapshot, look_age_s: float | None) -> Iterator[Gauge]:
    age = Gauge("gpud_look_age_seconds", "How long ago the figures of the devices were measured.", ())
    age.set((), look_age_s)
    yield age
    gpus = [gpu for gpu in snapshot.gpus if not gpu.sample.is_host]
    host = next((gpu for gpu in snapshot.gpus if gpu.sample.is_host), None)
    info = Gauge("gpud_gpu_info", "Which GPU it is; always 1.", ("gpu", "uuid", "name", "vendor", "driver"))
    for gpu in gpus:
        sample = gpu.sample
        info.set((str(sample.index), sample.uuid, sample.name, sample.vendor, sample.driver), 1)
    yield info
    for metric, text, read in (*((f"gpud_vram_{m}", t.format("GPU"), r) for m, t, r in _MEMORY), *_GPU):
        gauge = Gauge(metric, text, ("gpu",))
        for gpu in gpus:
            gauge.set((str(gpu.sample.index),), read(gpu))
        yield gauge
    for metric, text, read in _MEMORY:
        gauge = Gauge(f"gpud_host_memory_{metric}", text.format("machine itself"), ())
        if host is not None:
            gauge.set((), read(host))
        yield gauge


# The daemon ----------------------------------------------------------------------------------------------------------


def _daemon(snapshot: Snapshot) -> Iterator[Gauge]:
    claims = Gauge("gpud_claims", "Claims of memory by programs that are no engines.", ("state",))
    claims.set(("waiting",), sum(not claim.granted for claim in snapshot.claims))
    claims.set(("granted",), sum(claim.granted for claim in snapshot.claims))
    claimed = Gauge("gpud_claimed_bytes", "Memory that was given to claims.", ())
    claimed.set((), sum(claim.bytes for claim in snapshot.claims if claim.granted))
    jobs = Gauge("gpud_jobs", "Loads and unloads that somebody asked for and that have not ended.", ("kind",))
    for kind in JobKind:
        jobs.set((kind.value,), sum(job.kind is kind for job in snapshot.jobs))
    holds = Gauge("gpud_holds", "Promises and inhibitors that are in force.", ())
    holds.set((), len(snapshot.holds))
    yielded = Gauge("gpud_yielded", "1 while the GPUs are given away and nothing is loaded, else 0.", ())
    yielded.set((), snapshot.yielded is not None)
    degraded = Gauge("gpud_degraded", "1 for what keeps gpud from working as it should, 0 for the rest.", ("reason",))
    for reason in DEGRADED:
        degraded.set((reason,), snapshot.degraded == reason)
    yield from (claims, claimed, jobs, holds, yielded, degraded)
