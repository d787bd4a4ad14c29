"""What Prometheus is told: counts kept here as things happen, and the rest read from the engine when it is asked.

A scrape decides nothing, wakes nothing and looks at no device: it shows the last look and says how old that is. What is
not known is left out; it is never zero. Every name is explained in docs/metrics.md.

The library that writes the text is loaded with the first scrape: until then, and on machines that nobody scrapes, it
costs neither memory nor start-up time.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from gpud.core import statuses
from gpud.core.events import (
    ClaimGranted,
    ClaimOver,
    JobEnded,
    Kind,
    ModelChanged,
    Notice,
    Outcome,
)
from gpud.core.facts import JobKind, JobResult, Snapshot, State
from gpud.core.record import Record, replace
from gpud.engine import Engine
from gpud.http.counting import Counter, Histogram, Labels
from gpud.http.gauges import Gauge, gauges

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

LOAD_BOUNDS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
WAIT_BOUNDS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
FIRST_BYTE_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
DURATION_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

ROUTES = 128
"""So many different routes and doors have counts of their own, more than gpud has. One who hands in paths instead of
routes fills "other", and not the memory."""

OTHER = "other"

LOAD_RESULTS = ("loaded", "failed", "canceled")
EVICTION_REASONS = ("needed", "gave-way")


class RequestSeen(msgspec.Struct, frozen=True):
    """One request that has been answered, or given up.

    ``route`` is the pattern of the route, never the path that was asked for. ``model`` is the configured name; empty
    where the request was for none, or for one that is not configured. ``status`` 499 says that the client has left.
    Times count from the last byte of the head; None where there was no first byte. Tokens are what the engine itself
    counted, None where it did not say.
    """

    door: str
    route: str
    model: str
    status: int
    duration_s: float
    first_byte_s: float | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None


class Metrics:
    """Fed with the engine's outcomes and with each request, asked by the doors for the text."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._models: frozenset[str] = frozenset()
        self._routes: set[str] = set()
        self._canceled: set[str] = set()
        self._places: dict[tuple[str, str, str, int], tuple[Labels, Labels]] = {}
        self._loads = Counter(
            "gpud_loads", "Starts of engines that came to an end, by how they ended.", ("model", "result")
        )
        self._load_seconds = Histogram(
            "gpud_load_seconds", "How long an engine took from its start until it answered.", ("model",), LOAD_BOUNDS_S
        )
        self._unloads = Counter("gpud_unloads", "Models that were unloaded, by why.", ("model", "reason"))
        self._evictions = Counter(
            "gpud_evictions",
            "Models that were told to go because a model or a claim needed their memory, or other programs did.",
            ("model", "reason"),
        )
        self._crashes = Counter("gpud_engine_crashes", "Engines that ended by themselves while loaded.", ("model",))
        self._kills = Counter("gpud_engine_kills", "Engines that did not end when they were told to.", ("model",))
        self._jobs = Counter("gpud_jobs_ended", "Loads and unloads that somebody asked for.", ("kind", "result"))
        self._errors = Counter(
            "gpud_load_errors", "Loads that somebody asked for and did not get, by the error's code.", ("code",)
        )
        self._claims = Counter("gpud_claims_ended", "Claims of memory that came to an end.", ("result",))
        self._granted = Counter("gpud_claims_granted", "Claims of memory that were granted.", ())
        self._wait_seconds = Histogram(
            "gpud_queue_wait_seconds",
            "How long the first who asked for a model waited until its engine was started.",
            (),
            WAIT_BOUNDS_S,
        )
        self._notices = Counter("gpud_notices", "Messages in the journal, by their kind.", ("kind",))
        self._requests = Counter(
            "gpud_requests", "Requests that were answered or given up.", ("door", "route", "model", "status")
        )
        self._first_byte = Histogram(
            "gpud_request_first_byte_seconds",
            "From a request's head to the first byte of its answer, any wait and load included.",
            ("route", "model"),
            FIRST_BYTE_BOUNDS_S,
        )
        self._duration = Histogram(
            "gpud_request_duration_seconds",
            "From a request's head to the last byte of its answer.",
            ("route", "model"),
            DURATION_BOUNDS_S,
        )
        self._prompt = Counter("gpud_prompt_tokens", "Tokens of prompts, as the engines counted them.", ("model",))
        self._generated = Counter("gpud_generated_tokens", "Tokens of answers, as the engines counted.", ("model",))
        # All that stand above are told, in their order.
        self._counters = [each for each in vars(self).values() if isinstance(each, Counter)]
        self._histograms = [each for each in vars(self).values() if isinstance(each, Histogram)]
        for kind in Kind:
            self._notices.known((kind.value,))
        for job in JobKind:
            for result in JobResult:
                self._jobs.known((job.value, result.value))
        self._granted.known(())
        self._wait_seconds.known(())

    # What happens ----------------------------------------------------------------------------------------------------

    def listen(self, outcomes: tuple[Outcome, ...]) -> None:
        """The engine's listener. Cheap: it is called for each request that passes."""
        for outcome in outcomes:
            match outcome:
                case ModelChanged():
                    self._changed(outcome)
                case Notice():
                    self.notice(outcome)
                case JobEnded():
                    self._jobs.add((outcome.kind.value, outcome.result.value))
                    if outcome.kind is JobKind.LOAD and outcome.error is not None:
                        self._errors.add((outcome.error.code,))
                case ClaimGranted():
                    self._granted.add(())
                case ClaimOver():
                    self._claims.add((outcome.error.code if outcome.error is not None else "given-back",))
                case _:
                    pass

    def _changed(self, change: ModelChanged) -> None:
        name, old, new = change.model, change.old, change.new
        if new is State.LOADING:
            self._started(name)
        elif old is State.LOADING:
            self._load_ended(name, new)
        elif new in (State.BACKOFF, State.FAILED):
            if old in (State.READY, State.DRAINING):
                self._crashes.add((name,))
        elif new is State.KILLING:
            self._kills.add((name,))
        elif new is State.COLD and old.has_engine():
            if name not in self._canceled:
                self._unloads.add((name, change.reason))
            self._canceled.discard(name)

    def _started(self, name: str) -> None:
        """Whoever asked first has waited until now; after a crash nobody may have asked."""
        self._canceled.discard(name)
        snapshot = self._engine.snapshot()
        asked = [job.since_s for job in snapshot.jobs if job.kind is JobKind.LOAD and job.model == name]
        if asked:
            self._wait_seconds.observe((), max(0.0, snapshot.now_s - min(asked)))

    def _load_ended(self, name: str, new: State) -> None:
        if new is State.READY:
            self._loads.add((name, "loaded"))
            status = statuses.status_of(self._engine.snapshot().models, name)
            if status is not None and status.load_seconds is not None:
                self._load_seconds.observe((name,), status.load_seconds)
        elif new is State.STOPPING:
            self._loads.add((name, "canceled"))
            self._canceled.add(name)
        else:
            self._loads.add((name, "failed"))

    def notice(self, notice: Notice) -> None:
        """What was told; also what does not come from the engine may be counted so."""
        self._notices.add((notice.kind.value,))
        if notice.kind is Kind.EVICTED:
            self._evictions.add((notice.model, "needed"))
        elif notice.kind is Kind.GAVE_WAY and notice.model:
            self._evictions.add((notice.model, "gave-way"))

    def observe(self, seen: RequestSeen) -> None:
        """One request is over. Called for each: it adds numbers and nothing else."""
        key = seen.door, seen.route, seen.model, seen.status
        places = self._places.get(key)
        if places is None:
            places = self._places_of(seen)
            if places[0] == (*key[:3], str(seen.status)):
                # Bounded as the labels are: what is counted as something else is looked at each time.
                self._places[key] = places
        labels, place = places
        model = labels[2]
        self._requests.add(labels)
        self._duration.observe(place, seen.duration_s)
        if seen.first_byte_s is not None:
            self._first_byte.observe(place, seen.first_byte_s)
        if model and seen.prompt_tokens is not None:
            self._prompt.add((model,), max(0, seen.prompt_tokens))
        if model and seen.generated_tokens is not None:
            self._generated.add((model,), max(0, seen.generated_tokens))

    def _places_of(self, seen: RequestSeen) -> tuple[Labels, Labels]:
        """The labels under which a request is counted, and under which it is timed."""
        model = seen.model if self._is_configured(seen.model) else ""
        route, door = self._bounded(seen.route), self._bounded(seen.door)
        status = str(seen.status) if 100 <= seen.status <= 599 else OTHER
        return (door, route, model, status), (route, model)

    def _is_configured(self, model: str) -> bool:
        """Only configured models become labels. One that is not known may have come with a reload: it is looked up."""
        if model and model not in self._models:
            self._models = frozenset(statuses.names_of(self._engine.snapshot().models))
        return model in self._models

    def _bounded(self, word: str) -> str:
        if word in self._routes:
            return word
        if len(self._routes) >= ROUTES:
            return OTHER
        self._routes.add(word)
        return word

    # What is told ----------------------------------------------------------------------------------------------------

    def requests_of(self, model: str) -> int:
        """How many requests a model has had since gpud started."""
        return sum(int(count) for labels, count in self._requests.values.items() if labels[2] == model)

    def requests_by_status(self) -> dict[str, int]:
        """How many requests there were since gpud started, by the status of their answers."""
        found: dict[str, int] = {}
        for labels, count in self._requests.values.items():
            found[labels[3]] = found.get(labels[3], 0) + int(count)
        return found

    def render(self, accept: str = "", engines: Mapping[str, str] | None = None) -> tuple[str, bytes]:
        """The content type and the text that a client which sent this ``Accept`` can read.

        ``engines`` are the texts that running engines gave of themselves, by model: their metrics follow, with a label
        that names the model.
        """
        return _write(self._numbers(), accept, engines or {})

    async def scrape(self, accept: str = "", engines: Mapping[str, str] | None = None) -> tuple[str, bytes]:
        """The same, with the loop free while the text is written. The first call loads the library: 50 ms, 4 MiB."""
        return await asyncio.to_thread(_write, self._numbers(), accept, engines or {})

    def _numbers(self) -> "Numbers":
        """A copy of every number of this moment."""
        snapshot = self._engine.snapshot()
        models = self._models = frozenset(statuses.names_of(snapshot.models))
        self._canceled &= models
        self._places.clear()
        for name in models:
            self._know(name)
        for counter in self._counters:
            counter.keep_models(models)
        for histogram in self._histograms:
            histogram.keep_models(models)
        looked_at_s = self._engine.looked_at_s
        age_s = None if looked_at_s is None else max(0.0, snapshot.now_s - looked_at_s)
        return Numbers(
            counters=[replace(counter, values=dict(counter.values)) for counter in self._counters],
            histograms=[replace(h, values={k: t.copy() for k, t in h.values.items()}) for h in self._histograms],
            gauges=[*gauges(snapshot, age_s), _build(snapshot)],
        )

    def _know(self, model: str) -> None:
        for result in LOAD_RESULTS:
            self._loads.known((model, result))
        for reason in EVICTION_REASONS:
            self._evictions.known((model, reason))
        for counter in (self._crashes, self._kills, self._prompt, self._generated):
            counter.known((model,))


def _build(snapshot: Snapshot) -> Gauge:
    gauge = Gauge(
        "gpud_build_info", "The version of gpud, and of the Python that runs it; always 1.", ("version", "python")
    )
    gauge.set((snapshot.version, sys.version.split()[0]), 1)
    return gauge


class Numbers(Record):
    """Every number of one moment; a thread may read it while the counting goes on."""

    counters: list[Counter]
    histograms: list[Histogram]
    gauges: list[Gauge]

    def families(self) -> "Iterable[Metric]":
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for counter in self.counters:
            counters = CounterMetricFamily(counter.name, counter.help, labels=counter.labels)
            for labels, value in counter.values.items():
                counters.add_metric(labels, value)
            yield counters
        for histogram in self.histograms:
            histograms = HistogramMetricFamily(histogram.name, histogram.help, labels=histogram.labels)
            for labels, tally in histogram.values.items():
                histograms.add_metric(labels, histogram.buckets(tally), tally.sum)
            yield histograms
        for gauge in self.gauges:
            gauges = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            for labels, value in gauge.values.items():
                gauges.add_metric(labels, value)
            yield gauges


def _write(numbers: Numbers, accept: str, engines: Mapping[str, str]) -> tuple[str, bytes]:
    """On a registry of its own, which has nothing in it but this. The library is loaded here, the first time."""
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    from gpud.http.engine_metrics import families_of_engines

    families = [*numbers.families(), *families_of_engines(engines)]

    class Taken:
        def describe(self) -> "Iterable[Metric]":
            return ()

        def collect(self) -> "Iterable[Metric]":
            return families

    registry = CollectorRegistry()
    registry.register(Taken())
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)
