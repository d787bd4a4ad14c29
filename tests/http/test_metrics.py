"""What Prometheus is told: right numbers, good names, nothing invented, nobody woken, and no label without a bound."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine.catalogue import configured, nothing_found
from engine.parts import GIB, Bench, OneGpu
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from gpud.core.errors import BackendFailed, GpudError, QueueFull
from gpud.core.events import ClaimGranted, ClaimOver, JobEnded, Kind, ModelChanged, Notice
from gpud.core.facts import Caller, GpuSample, JobKind, JobResult, Model, Priority, State
from gpud.core.record import replace
from gpud.engine import Engine
from gpud.http.metrics import ROUTES, Metrics, RequestSeen

Run = Callable[..., Any]
TOP = Path(__file__).resolve().parent.parent.parent
ALICE = Caller("alice", 1000, label="alice")
A = Model("a", "fake", aliases=("first",))
B = Model("b", "fake", priority=Priority.HIGH)
CHAT = "/v1/chat/completions"

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped:
    """A scrape, read as Prometheus reads it."""

    def __init__(self, text: bytes) -> None:
        self.text = text.decode()
        self.families = {family.name: family for family in parse(self.text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, /, **labels: str) -> float | None:
        """The number, or None when it is not there."""
        return self._values.get((name, frozenset(labels.items())))

    def has(self, name: str) -> bool:
        return any(known == name for known, _ in self._values)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels).get(label, "") for known, labels in self._values if known == name}


def scraped(metrics: Metrics) -> Scraped:
    return Scraped(metrics.render()[1])


def listening(bench: Bench) -> Metrics:
    metrics = Metrics(bench.engine)
    bench.engine.subscribe(metrics.listen)
    return metrics


# What is counted -----------------------------------------------------------------------------------------------------


def test_a_load_and_an_unload_are_counted(run: Run) -> None:
    """With how they ended, how long they took, and the state that the model is in."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            metrics = listening(bench)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            seen = scraped(metrics)
            assert seen("gpud_loads_total", model="a", result="loaded") == 1
            assert seen("gpud_loads_total", model="a", result="failed") == 0
            assert seen("gpud_loads_total", model="b", result="loaded") == 0
            assert seen("gpud_load_seconds_count", model="a") == 1
            assert 0 < (seen("gpud_load_seconds_sum", model="a") or 0) < 10
            assert seen("gpud_queue_wait_seconds_count") == 1
            assert seen("gpud_model_state", model="a", state="ready") == 1
            assert seen("gpud_model_state", model="a", state="cold") == 0
            assert seen("gpud_models_loaded") == 1
            assert seen("gpud_jobs_ended_total", kind="load", result="done") == 1

            await bench.engine.wait(bench.engine.unload("a", ALICE))
            seen = scraped(metrics)
            assert seen("gpud_unloads_total", model="a", reason="user") == 1
            assert seen("gpud_model_state", model="a", state="cold") == 1
            assert seen("gpud_notices_total", kind="model-loaded") == 1
            assert seen("gpud_notices_total", kind="engine-crashed") == 0

    run(work())


def test_a_load_that_fails_is_counted_as_such(run: Run) -> None:
    """As a start that failed, and as a wish that was not granted, by the error's code."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            bench.backend.failure = BackendFailed("it will not")
            await bench.engine.wait(bench.engine.load("a", ALICE))
            seen = scraped(metrics)
            assert seen("gpud_loads_total", model="a", result="failed") == 1
            assert seen("gpud_load_errors_total", code="backend-failed") == 1
            assert seen("gpud_load_seconds_count", model="a") is None

    run(work())


def test_a_load_that_is_canceled_is_no_unload(run: Run) -> None:
    """It never was loaded."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            bench.backend.gate = asyncio.Event()
            job = bench.engine.load("a", ALICE)
            await bench.backend.entered.wait()
            bench.engine.cancel(job, ALICE)
            await bench.engine.wait(job)
            await gone(bench, "a")
            seen = scraped(metrics)
            assert seen("gpud_loads_total", model="a", result="canceled") == 1
            assert not seen.has("gpud_unloads_total")

    run(work())


async def gone(bench: Bench, name: str) -> None:
    """Returns when the model has no engine any more."""
    cold = asyncio.Event()

    def look(_: object = ()) -> None:
        if next(m for m in bench.engine.snapshot().models if m.model.name == name).state is State.COLD:
            cold.set()

    stop = bench.engine.subscribe(look)
    look()
    await asyncio.wait_for(cold.wait(), 50)
    stop()


def test_a_crash_is_counted(run: Run) -> None:
    """Of an engine that was loaded; it is neither an unload nor a failed load."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            crashed = asyncio.Event()

            def look(outcomes: tuple[object, ...]) -> None:
                if any(isinstance(one, Notice) and one.kind is Kind.ENGINE_CRASHED for one in outcomes):
                    crashed.set()

            bench.engine.subscribe(look)
            bench.backend.runners["a"].end(1)
            await asyncio.wait_for(crashed.wait(), 50)
            seen = scraped(metrics)
            assert seen("gpud_engine_crashes_total", model="a") == 1
            assert seen("gpud_loads_total", model="a", result="failed") == 0

    run(work())


def test_who_goes_for_others_is_counted_by_why(run: Run) -> None:
    """For another model, or for other programs; a warning that nobody could go is not an eviction."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = Metrics(bench.engine)
            metrics.listen(
                (
                    Notice(Kind.EVICTED, "goes", "a"),
                    Notice(Kind.GAVE_WAY, "goes", "a"),
                    Notice(Kind.GAVE_WAY, "nobody can go"),
                    ModelChanged("a", State.STOPPING, State.KILLING, "budget"),
                )
            )
            seen = scraped(metrics)
            assert seen("gpud_evictions_total", model="a", reason="needed") == 1
            assert seen("gpud_evictions_total", model="a", reason="gave-way") == 1
            assert seen("gpud_notices_total", kind="gave-way") == 2
            assert seen("gpud_engine_kills_total", model="a") == 1

    run(work())


def test_claims_and_refusals_are_counted(run: Run) -> None:
    """Claims by how they ended, wishes for a model by why they were not granted."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            claim = bench.engine.claim(GIB, ALICE, who="blender", why="a scene")
            await asyncio.wait_for(bench.engine.claimed(claim), 50)
            seen = scraped(metrics)
            assert seen("gpud_claims", state="granted") == 1
            assert seen("gpud_claimed_bytes") == GIB
            assert seen("gpud_claims_granted_total") == 1
            bench.engine.drop_claim(claim, "done")
            refused: GpudError = QueueFull("too many wait")
            metrics.listen(
                (
                    ClaimGranted(8, "GPU-0", "nvidia"),
                    ClaimOver(9, refused, refused.code),
                    JobEnded(5, JobKind.LOAD, "a", JobResult.FAILED, "too many wait", ALICE, refused),
                )
            )
            seen = scraped(metrics)
            assert seen("gpud_claims_ended_total", result="given-back") == 1
            assert seen("gpud_claims_ended_total", result="queue-full") == 1
            assert seen("gpud_load_errors_total", code="queue-full") == 1
            assert seen("gpud_claims", state="granted") == 0

    run(work())


def test_who_waits_is_shown_with_its_priority(run: Run) -> None:
    """A model that no memory is left for waits in the queue, and how long it waits can be seen."""

    async def work() -> None:
        async with Bench(A, replace(B, size_bytes=7 * GIB)) as bench:
            metrics = listening(bench)
            waits = asyncio.Event()

            def look(outcomes: tuple[object, ...]) -> None:
                if any(isinstance(one, Notice) and one.kind is Kind.LOAD_WAITS for one in outcomes):
                    waits.set()

            bench.engine.subscribe(look)
            async with bench.engine.use("a", ALICE):
                job = bench.engine.load("b", ALICE)
                await asyncio.wait_for(waits.wait(), 50)
                seen = scraped(metrics)
                assert seen("gpud_queue_depth", priority="high") == 1
                assert seen("gpud_queue_depth", priority="low") == 0
                assert (seen("gpud_queue_oldest_seconds") or 0) > 0
                assert seen("gpud_model_waiting", model="b") == 1
            assert (await bench.engine.wait(job)).result is JobResult.DONE
            seen = scraped(metrics)
            assert seen("gpud_queue_depth", priority="high") == 0
            assert seen("gpud_queue_oldest_seconds") == 0
            assert seen("gpud_queue_wait_seconds_count") == 2
            assert (seen("gpud_queue_wait_seconds_sum") or 0) > 0
            assert seen("gpud_evictions_total", model="a", reason="needed") == 1
            assert seen("gpud_unloads_total", model="a", reason="budget") == 1

    run(work())


def test_requests_are_counted_with_their_times_and_tokens(run: Run) -> None:
    """By door, route, model and status; what an engine did not count is not counted."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = Metrics(bench.engine)
            metrics.observe(RequestSeen("front", CHAT, "a", 200, 1.5, 0.25, 10, 20))
            metrics.observe(RequestSeen("front", CHAT, "a", 200, 0.5))
            metrics.observe(RequestSeen("manage", "/models/{name}", "", 200, 0.001, 0.001))
            seen = scraped(metrics)
            assert seen("gpud_requests_total", door="front", route=CHAT, model="a", status="200") == 2
            assert seen("gpud_requests_total", door="manage", route="/models/{name}", model="", status="200") == 1
            assert seen("gpud_request_duration_seconds_sum", route=CHAT, model="a") == 2
            assert seen("gpud_request_duration_seconds_bucket", route=CHAT, model="a", le="0.5") == 1
            assert seen("gpud_request_duration_seconds_bucket", route=CHAT, model="a", le="+Inf") == 2
            assert seen("gpud_request_first_byte_seconds_count", route=CHAT, model="a") == 1
            assert seen("gpud_prompt_tokens_total", model="a") == 10
            assert seen("gpud_generated_tokens_total", model="a") == 20

    run(work())


def test_requests_in_flight_are_shown(run: Run) -> None:
    """While an engine is in use, and no longer."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            async with bench.engine.use("first", ALICE):
                assert scraped(metrics)("gpud_model_in_flight", model="a") == 1
            assert scraped(metrics)("gpud_model_in_flight", model="a") == 0

    run(work())


# Bounds --------------------------------------------------------------------------------------------------------------


def test_unknown_models_never_become_labels(run: Run) -> None:
    """Whatever clients ask for: only what is configured has a name here."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = Metrics(bench.engine)
            for number in range(2000):
                metrics.observe(RequestSeen("front", CHAT, f"made-up-{number}", 404, 0.001))
            metrics.observe(RequestSeen("front", CHAT, "a", 200, 0.001))
            seen = scraped(metrics)
            assert seen.labels("gpud_requests_total", "model") == {"", "a"}
            assert seen("gpud_requests_total", door="front", route=CHAT, model="", status="404") == 2000

    run(work())


def test_paths_and_made_up_statuses_do_not_add_up(run: Run) -> None:
    """One who hands in paths instead of routes fills one label and not the memory."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = Metrics(bench.engine)
            for number in range(ROUTES * 3):
                metrics.observe(RequestSeen("front", f"/{number}", "", number * 7, 0.001))
            seen = scraped(metrics)
            routes = seen.labels("gpud_requests_total", "route")
            assert len(routes) <= ROUTES + 1
            assert "other" in routes
            assert all(s == "other" or 100 <= int(s) <= 599 for s in seen.labels("gpud_requests_total", "status"))

    run(work())


def test_a_model_that_is_configured_no_longer_is_shown_no_longer(run: Run) -> None:
    """With a reload its numbers go; those of the others stay, and a new one is there at once."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            metrics = listening(bench)
            metrics.observe(RequestSeen("front", CHAT, "a", 200, 0.1))
            metrics.observe(RequestSeen("front", CHAT, "b", 200, 0.1))
            assert scraped(metrics).labels("gpud_requests_total", "model") == {"a", "b"}
            c = Model("c", "fake")
            await bench.engine.apply(
                shelf=configured({"b": B, "c": c}),
                limits=bench.limits,
                idle_timeout_s=300,
                backends={"fake": bench.backend},
            )
            metrics.observe(RequestSeen("front", CHAT, "c", 200, 0.1))
            seen = scraped(metrics)
            assert seen.labels("gpud_requests_total", "model") == {"b", "c"}
            assert seen.labels("gpud_model_state", "model") == {"b", "c"}
            assert seen.labels("gpud_loads_total", "model") == {"b", "c"}

    run(work())


# Devices -------------------------------------------------------------------------------------------------------------


class Gauged(OneGpu):
    """A GPU that says all, or nothing because it sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.used = GIB
        self.asleep = False

    async def sample(self, own: frozenset[int], *, wake: bool) -> tuple[GpuSample, ...]:
        gpu, host = await super().sample(own, wake=wake)
        if self.asleep:
            return GpuSample("GPU-0", "Test GPU", 0, "nvidia", total_bytes=8 * GIB, asleep=True), host
        return (
            replace(
                gpu,
                used_bytes=self.used,
                free_bytes=8 * GIB - self.used,
                temperature_c=51,
                utilization_percent=40,
                power_mw=61_500,
                driver="570.1",
            ),
            host,
        )


class GaugedBench(Bench):
    """With that GPU."""

    def __init__(self, *models: Model) -> None:
        super().__init__(*models)
        self.gauged = Gauged()
        self.engine = Engine(
            shelf=configured(self.models),
            library=nothing_found(),
            limits=self.limits,
            idle_timeout_s=300.0,
            backends={"fake": self.backend},
            gpus=self.gauged,
            store=self.store,
            launcher=self.launcher,
            files=self.files,
            version="0",
        )


def test_the_last_look_is_shown_and_no_new_one_is_taken(run: Run) -> None:
    """A scrape shows what was measured, and how long ago; it neither looks at a device nor wakes one."""

    async def work() -> None:
        async with GaugedBench(A) as bench:
            await bench.engine.refresh()
            metrics = Metrics(bench.engine)
            looks = bench.gauged.looks
            for _ in range(5):
                seen = scraped(metrics)
            assert (bench.gauged.looks, bench.gauged.woken) == (looks, 0)
            age_s = seen("gpud_look_age_seconds")
            assert age_s is not None and 0 <= age_s < 10
            assert seen("gpud_vram_total_bytes", gpu="0") == 8 * GIB
            assert seen("gpud_vram_used_bytes", gpu="0") == GIB
            assert seen("gpud_vram_foreign_bytes", gpu="0") == GIB
            assert seen("gpud_gpu_temperature_celsius", gpu="0") == 51
            assert seen("gpud_gpu_utilization_ratio", gpu="0") == 0.4
            assert seen("gpud_gpu_power_watts", gpu="0") == 61.5
            assert seen("gpud_host_memory_total_bytes") == 16 * GIB
            info = {"gpu": "0", "uuid": "GPU-0", "name": "Test GPU", "vendor": "nvidia", "driver": "570.1"}
            assert seen("gpud_gpu_info", **info) == 1
            bench.gauged.used = 3 * GIB
            assert scraped(metrics)("gpud_vram_used_bytes", gpu="0") == GIB
            await bench.engine.refresh()
            assert scraped(metrics)("gpud_vram_used_bytes", gpu="0") == 3 * GIB

    run(work())


def test_what_is_not_known_is_left_out(run: Run) -> None:
    """A sleeping GPU has no temperature: not zero degrees, but none."""

    async def work() -> None:
        async with GaugedBench(A) as bench:
            bench.gauged.asleep = True
            await bench.engine.refresh()
            seen = scraped(Metrics(bench.engine))
            assert seen("gpud_gpu_asleep", gpu="0") == 1
            assert seen("gpud_vram_total_bytes", gpu="0") == 8 * GIB
            for name in (
                "gpud_vram_used_bytes",
                "gpud_gpu_temperature_celsius",
                "gpud_gpu_utilization_ratio",
                "gpud_gpu_power_watts",
                "gpud_model_used_bytes",
            ):
                assert not seen.has(name), name

    run(work())


# The text ------------------------------------------------------------------------------------------------------------


async def everything(bench: Bench) -> Metrics:
    """Metrics in which every family has at least one number."""
    metrics = listening(bench)
    await bench.engine.wait(bench.engine.load("a", ALICE))
    await bench.engine.refresh()
    metrics.observe(RequestSeen("front", CHAT, "a", 200, 1.5, 0.25, 10, 20))
    metrics.listen(
        (
            ClaimOver(1, None, "done"),
            ModelChanged("b", State.STOPPING, State.COLD, "idle"),
            JobEnded(5, JobKind.LOAD, "a", JobResult.FAILED, "no", ALICE, QueueFull("no")),
        )
    )
    return metrics


def test_every_family_has_numbers_names_and_words(run: Run) -> None:
    """The rules for names: counters end in _total and nothing else does, base units, a help text; all is documented."""

    async def work() -> Scraped:
        async with GaugedBench(A, B) as bench:
            return scraped(await everything(bench))

    seen = run(work())
    page = (TOP / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(gpud_\w+)`", page, re.MULTILINE))
    told = set()
    for name, family in seen.families.items():
        shown = f"{name}_total" if family.type == "counter" else name
        assert family.documentation.endswith(".") or name.startswith("process_"), name
        assert family.samples, f"{name} has no number although everything has happened"
        assert re.fullmatch(r"(gpud|process)_[a-z]+(_[a-z]+)*", shown), name
        assert not re.search(r"_(count|sum|bucket|info_total|milliseconds|percent|gib|mib|gauge|counter)$", name), name
        assert family.type == "counter" or not name.endswith("_total"), name
        if name.startswith("gpud_"):
            told.add(shown)
    assert told == documented


def promtool() -> str | None:
    found = shutil.which("promtool")
    if found or not shutil.which("apt-get"):
        return found
    made = subprocess.run([TOP / "tests" / "provision", "promtool"], capture_output=True, text=True)
    if made.returncode:
        pytest.fail(f"tests/provision promtool: {made.stderr}")
    return made.stdout.strip() + "/promtool"


@pytest.fixture(scope="session")
def promtool_path() -> str:
    path = promtool()
    if path is None:
        pytest.skip("promtool is not here, and Debian's package cannot be had: the rules for names are tested above")
    return path


def test_promtool_finds_nothing(run: Run, promtool_path: str) -> None:
    """``promtool check metrics`` has no complaint."""

    async def work() -> bytes:
        async with GaugedBench(A, B) as bench:
            return (await (await everything(bench)).scrape())[1]

    done = subprocess.run([promtool_path, "check", "metrics"], input=run(work()), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_alert_rules_are_sound(promtool_path: str) -> None:
    """``promtool check rules`` takes them."""
    done = subprocess.run(
        [promtool_path, "check", "rules", TOP / "docs" / "alerts.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_dashboard_asks_what_prometheus_understands(promtool_path: str, tmp_path: Path) -> None:
    """``promtool`` can read every expression, with the dashboard's variables filled in as Grafana does."""
    dashboard = json.loads((TOP / "docs" / "grafana-dashboard.json").read_text())
    rules = [
        {"record": f"panel:{panel['id']}:{target['refId']}", "expr": filled_in(target["expr"])}
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(rules) > 20
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool_path, "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def filled_in(expression: str) -> str:
    for name, value in (("$__rate_interval", "1m"), ("$instance", ".*"), ("$model", ".*")):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:gpud|process)_[a-z_]+", expression))


def known_names(run: Run) -> set[str]:
    async def work() -> set[str]:
        async with GaugedBench(A, B) as bench:
            families = scraped(await everything(bench)).families.values()
            return {sample.name for family in families for sample in family.samples}

    names: set[str] = run(work())
    return names


def test_rules_and_dashboard_speak_of_metrics_that_exist(run: Run) -> None:
    """Every name in an expression is one that a scrape has; every rule says what to do, every panel shows something."""
    known = known_names(run)
    rules = [
        rule for group in yaml.safe_load((TOP / "docs" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    assert rules
    for rule in rules:
        assert names_in(rule["expr"]) and names_in(rule["expr"]) <= known, rule["alert"]
        assert rule["annotations"]["summary"] and rule["annotations"]["description"], rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    dashboard = json.loads((TOP / "docs" / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    used = set()
    for panel in panels:
        assert panel["title"] and panel["targets"], panel["id"]
        for target in panel["targets"]:
            assert names_in(target["expr"]) and names_in(target["expr"]) <= known, (panel["title"], target["expr"])
            used |= names_in(target["expr"])
    assert {"gpud_vram_used_bytes", "gpud_model_state", "gpud_queue_depth", "gpud_requests_total"} <= used
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            assert names_in(str(variable["query"])) <= known


def test_the_client_chooses_the_form(run: Run) -> None:
    """OpenMetrics where it is asked for, else the text that every Prometheus reads."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            await bench.engine.wait(bench.engine.load("a", ALICE))
            for accept in ("", "*/*", "text/plain", "application/openmetrics-text; version=0.0.1"):
                content_type, text = metrics.render(accept)
                assert content_type == "text/plain; version=0.0.4; charset=utf-8"
                assert not text.endswith(b"# EOF\n")
            prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
            content_type, text = await metrics.scrape(prometheus)
            assert content_type.startswith("application/openmetrics-text; version=1.0.0")
            families = {family.name: family for family in parse_openmetrics(text.decode())}
            assert families["gpud_loads"].type == "counter"
            assert families["gpud_load_seconds"].type == "histogram"

    run(work())


def test_odd_names_are_written_so_that_they_can_be_read(run: Run) -> None:
    """A model's name with quotes, line breaks and other scripts comes back as it was."""
    name = 'qwen "3"\\\n语言'

    async def work() -> None:
        async with Bench(Model(name, "fake")) as bench:
            metrics = listening(bench)
            metrics.observe(RequestSeen("front", CHAT, name, 200, 0.1))
            seen = scraped(metrics)
            assert seen("gpud_requests_total", door="front", route=CHAT, model=name, status="200") == 1

    run(work())


ENGINE_TEXT = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 12
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {}
"""


def test_what_engines_tell_follows_with_the_model_as_a_label(run: Run) -> None:
    """The same name of two engines is one family; what cannot be read, or claims to be gpud's, is left out."""

    async def work() -> None:
        async with Bench(A, B) as bench:
            metrics = listening(bench)
            engines = {
                "a": ENGINE_TEXT.format(1),
                "b": ENGINE_TEXT.format(3) + "# TYPE gpud_yielded gauge\ngpud_yielded 1\n",
                "c": "this { is no metric",
                "d": "x 1\n" * 100_000,
            }
            seen = Scraped(metrics.render("", engines)[1])
            assert seen("llamacpp:prompt_tokens_total", model="a") == 12
            assert seen("llamacpp:requests_processing", model="a") == 1
            assert seen("llamacpp:requests_processing", model="b") == 3
            assert seen.labels("llamacpp:requests_processing", "model") == {"a", "b"}
            assert seen("gpud_yielded") == 0
            assert seen.text.count("# TYPE llamacpp:requests_processing ") == 1
            assert not seen.has("x")

    run(work())


def test_scrapes_at_the_same_time_do_not_disturb_each_other(run: Run) -> None:
    """Each is written from a picture of its own, while the counting goes on."""

    async def work() -> None:
        async with Bench(A) as bench:
            metrics = listening(bench)
            scrapes = []
            for number in range(1, 9):
                metrics.observe(RequestSeen("front", CHAT, "a", 200, 0.1))
                scrapes.append(asyncio.ensure_future(metrics.scrape()))
                await asyncio.sleep(0)
                assert number == len(scrapes)
            labels = {"door": "front", "route": CHAT, "model": "a", "status": "200"}
            values = [Scraped(text)("gpud_requests_total", **labels) for _, text in await asyncio.gather(*scrapes)]
            assert values == [1, 2, 3, 4, 5, 6, 7, 8]

    run(work())


def test_the_library_is_loaded_with_the_first_scrape() -> None:
    """Who is never scraped pays for nothing: the counting needs none of it."""
    program = """
import sys
import gpud.http.metrics, gpud.http.feed, gpud.http.lines
assert not [name for name in sys.modules if name.startswith("prometheus_client")]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0, done.stderr
