"""What a right configuration becomes: every default applied, in the right order, and values read as they were meant."""

import dataclasses
from pathlib import Path

import pytest

from gpud import config
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import BudgetLimits, BusyProbe, HttpCall, Limits, Model, Priority, StopTimes


def model(settings: str, before: str = "") -> Model:
    return config.parse(f"{before}\nmodels: {{m: {{{settings}}}}}", "/srv/gpud.yaml").models["m"]


def llama(settings: str = "", before: str = "") -> Model:
    return model(f"engine: embedded, file: /m.gguf, {settings}", before)


def test_three_keys_are_enough_for_a_model() -> None:
    """Everything else has a default that works."""
    parsed = config.parse("models: {tiny: {engine: embedded, file: /x.gguf}}", "x")
    tiny = parsed.models["tiny"]
    assert (tiny.name, tiny.engine, tiny.settings.file) == ("tiny", "embedded", "/x.gguf")
    settings = tiny.settings
    assert (settings.context, settings.parallel, settings.batch, settings.layers) == (4096, 1, 2048, "auto")
    assert (settings.flash_attention, settings.threads) == ("auto", None)
    assert tiny.idle_timeout_s == 300


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "null", "models:\nidle:\nengines:\n"])
def test_nothing_means_all_defaults(text: str) -> None:
    """An empty file, and sections without content, are fine."""
    assert dataclasses.replace(config.parse(text, "x"), sources=()) == config.Config()


def test_the_smallest_configuration_of_each_kind_is_valid() -> None:
    """Embedded, started and attached engines in a few words."""
    parsed = config.parse(
        """
http: {front: {host: 127.0.0.1, port: 8080}, management: {enable: false}, ollama: {enable: false}}
idle: {timeout: 300}
models:
  tiny:  {engine: embedded, file: /path/tiny.gguf, context: 4096}
  sim:   {engine: custom, command: [./server, --port, "${port}"], health: /health, size: 300MiB}
  other: {engine: custom, url: "http://127.0.0.1:9999", size: 0}
  llama3.2:3b: {engine: ollama}
""",
        "/srv/gpud.yaml",
    )
    assert list(parsed.models) == ["tiny", "sim", "other", "llama3.2:3b"]
    sim, other, ollama = parsed.models["sim"], parsed.models["other"], parsed.models["llama3.2:3b"]
    assert sim.settings.command == ("./server", "--port", "${port}")
    assert (sim.size_bytes, sim.settings.health, sim.settings.directory) == (300 << 20, "/health", "/srv")
    assert (other.size_bytes, other.settings.url, other.settings.health) == (0, "http://127.0.0.1:9999", "")
    assert ollama.settings.ollama_name == "llama3.2:3b"
    for one in (sim, other, ollama):
        assert (one.settings.context, one.settings.layers, one.settings.parallel, one.settings.batch) == (None,) * 4
    assert parsed.http.management == config.Door(False, "127.0.0.1", 9000)


def test_json_is_accepted() -> None:
    """JSON is YAML."""
    assert config.parse('{"models": {"m": {"engine": "embedded", "file": "/m"}}}', "x.json").models["m"].name == "m"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("300MiB", 300 << 20),
        ("1.5GiB", 3 << 29),
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("8 GiB", 8 << 30),
        ("500MB", 500_000_000),
        ("2kB", 2000),
        ("2KiB", 2048),
        ("1TiB", 1 << 40),
        ("12B", 12),
        ("'4GiB'", 4 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Bytes, or binary and decimal units."""
    assert llama(f"size: {text}").size_bytes == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("never", 0),
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("'5m'", 300),
    ],
)
def test_times(text: str, seconds: float) -> None:
    """Seconds, or numbers with units."""
    assert llama(f"idle_timeout: {text}").idle_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on"), ("true", "on"), ("false", "off")],
)
def test_on_and_off_are_words_though_yaml_calls_them_flags(text: str, meant: str) -> None:
    """flash_attention keeps what was written."""
    assert llama(f"flash_attention: {text}").settings.flash_attention == meant


@pytest.mark.parametrize(
    ("text", "meant"), [("-1", "all"), ("all", "all"), ("auto", "auto"), ("0", "0"), ("35", "35"), ("'999'", "999")]
)
def test_layers(text: str, meant: str) -> None:
    """-1 is what others write for all."""
    assert llama(f"layers: {text}").settings.layers == meant


def test_arguments_and_variables_keep_what_was_written() -> None:
    """1.20 stays 1.20, on stays on, and 007 stays 007."""
    one = llama("extra_flags: [--temp, 1.20, --jinja, on], environment: {A: 007, B: yes, C: ''}")
    assert one.settings.extra_flags == ("--temp", "1.20", "--jinja", "on")
    assert one.settings.environment == (("A", "007"), ("B", "yes"), ("C", ""))


@pytest.mark.parametrize(
    ("text", "gpu"), [("0", "0"), ("auto", ""), ("host", "host"), ("GPU-1a2b-3c", "GPU-1a2b-3c"), ("0000:03:00.0",) * 2]
)
def test_gpus(text: str, gpu: str) -> None:
    """By number, uuid or bus address; host keeps the model off the GPU."""
    assert llama(f"gpu: {text}").gpu == gpu


def test_priorities() -> None:
    """The names of the contract."""
    for priority in Priority:
        assert llama(f"priority: {priority.name.lower()}").priority is priority


def test_what_is_nearest_to_the_model_wins() -> None:
    """Model before its engine's defaults before defaults before what is built in; variables add up."""
    before = """
idle: {timeout: 100}
stop: {drain: 10, term: 3}
defaults: {context: 1000, batch: 64, threads: 2, environment: {A: d, B: d, C: d}, stop: {second_term: 7}}
engines: {embedded: {defaults: {context: 2000, threads: 4, environment: {B: e, C: e}}}}
"""
    one = llama("context: 3000, environment: {C: m}, stop: {drain: 1}", before)
    assert (one.settings.context, one.settings.threads, one.settings.batch, one.settings.parallel) == (3000, 4, 64, 1)
    assert dict(one.settings.environment) == {"A": "d", "B": "e", "C": "m"}
    assert one.stop == StopTimes(1, 3, 7)
    assert one.idle_timeout_s == 100
    assert llama("idle_timeout: 5", before).idle_timeout_s == 5
    other = model("engine: llama_server, file: /m", before)
    assert (other.settings.context, other.settings.threads) == (1000, 2)


def test_defaults_reach_only_the_engines_that_use_them() -> None:
    """A custom engine is not troubled by a default context, and an attached one not by variables."""
    before = "defaults: {context: 1000, extra_flags: [--x], environment: {A: 1}, pinned: true}"
    one = model("engine: custom, size: 0, url: 'http://h:1'", before)
    assert (one.settings.context, one.settings.extra_flags, one.settings.environment) == (None, (), ())
    assert one.pinned
    assert model("engine: ollama", before).settings.context == 1000


def test_an_engine_may_come_from_the_defaults() -> None:
    """Then a model is its file."""
    assert model("file: /m", "defaults: {engine: embedded}").engine == "embedded"


def test_null_takes_back_what_defaults_said() -> None:
    """Where unset is the built-in default, null says it again."""
    before = "defaults: {threads: 4, idle_timeout: 5, environment: {A: 1}, cache_type_k: q8_0}"
    one = llama("threads: null, idle_timeout: ~, environment: null, cache_type_k: ", before)
    assert (one.settings.threads, one.settings.environment, one.settings.cache_type_k) == (None, (), None)
    assert one.idle_timeout_s == 300


def test_model_files_may_start_from_the_store_of_their_engine() -> None:
    """models_dir is where relative names of files are looked for; without it, it is beside the configuration."""
    before = "engines: {embedded: {models_dir: /store}}"
    one = model("engine: embedded, file: a/m.gguf, mmproj: /x/mm.gguf", before)
    assert (one.settings.file, one.settings.mmproj) == ("/store/a/m.gguf", "/x/mm.gguf")
    assert model("engine: llama_server, file: m.gguf", before).settings.file == "/srv/m.gguf"


def test_how_a_custom_engine_is_asked() -> None:
    """The calls that give memory back and say whether it works."""
    one = model(
        "engine: custom, size: 1GiB, command: [/x, '${socket}'],"
        "unload: {post: /free, body: {unload_models: true, n: [1, 2.5, null, yes]}}, busy: {get: /q, any: [a, b.c]}"
    )
    assert one.settings.unload == HttpCall("POST", "/free", {"unload_models": True, "n": [1, 2.5, None, "yes"]})
    assert one.settings.busy == BusyProbe("/q", ("a", "b.c"))
    assert one.settings.directory == ""
    assert model("engine: custom, size: 0, command: [/x, '${port}'], unload: {post: /f}").settings.unload == HttpCall(
        "POST", "/f"
    )


def test_limits() -> None:
    """The sections gpu and restart, and the two waits, become the scheduler's limits."""
    parsed = config.parse(
        "gpu: {budget: 80%, reserve: 1G, host_budget: 4GiB, host_reserve: 0}\n"
        "restart: {first: 1, max: 2m, attempts: 3, healthy_after: 10}\nmemory_wait: 500ms\nshutdown_drain: 0",
        "x",
    )
    assert parsed.limits == Limits(
        gpu=BudgetLimits(budget_percent=80.0, reserve_bytes=1 << 30),
        host=BudgetLimits(budget_bytes=4 << 30),
        backoff_first_s=1,
        backoff_max_s=120,
        backoff_attempts=3,
        healthy_after_s=10,
        memory_wait_s=0.5,
        shutdown_drain_s=0,
    )
    assert config.parse("", "x").limits == Limits()


def test_engines_logging_and_bus() -> None:
    """What is not a model's."""
    parsed = config.parse(
        "engines:\n"
        "  llama_server: {binary: bin/llama-server, environment: {LD_LIBRARY_PATH: /opt/lib}}\n"
        "  ollama: {binary: ollama, models_dir: ../store, port: 11500, keep_running: true}\n"
        "logging: {level: debug, engine_lines_per_second: 5}\nbus: {jobs: 1}\n",
        "/srv/conf/gpud.yaml",
    )
    assert parsed.engines == {
        "llama_server": config.EngineConfig(
            binary="/srv/conf/bin/llama-server", environment=(("LD_LIBRARY_PATH", "/opt/lib"),)
        ),
        "ollama": config.EngineConfig(binary="ollama", models_dir="/srv/store", port=11500, keep_running=True),
    }
    assert parsed.logging == config.LoggingConfig("debug", 5)
    assert parsed.bus == config.BusConfig(1, 16, 64)


def test_anchors_and_merge_keys_work() -> None:
    """What the map says itself wins, then the first of several."""
    parsed = config.parse(
        """
defaults: &base {threads: 3}
models:
  a: &a {engine: embedded, file: /a, context: 100}
  b: {<<: *a, file: /b}
  c: {file: /c, <<: [{threads: 9}, *a, *base]}
""",
        "x",
    )
    assert parsed.models["b"].settings.file == "/b"
    assert parsed.models["b"].settings.context == 100
    assert (parsed.models["c"].settings.threads, parsed.models["c"].settings.context) == (9, 100)


def test_home_is_that_of_the_user_and_not_of_the_system() -> None:
    """~/ works in a user's configuration; under /etc it is a mistake."""
    text = "models: {a: {engine: embedded, file: ~/m.gguf}}"
    assert config.parse(text, "/srv/x.yaml", home="/home/ada").models["a"].settings.file == "/home/ada/m.gguf"
    assert config.parse(text, "/srv/x.yaml").models["a"].settings.file == str(Path.home() / "m.gguf")
    with pytest.raises(ConfigInvalid, match='begins with "~"'):
        config.parse(text, "/etc/gpud/gpud.yaml")


def test_the_result_cannot_be_changed() -> None:
    """A configuration is a fact."""
    parsed = config.parse("models: {a: {engine: embedded, file: /a}}", "x")
    with pytest.raises(TypeError):
        parsed.models["b"] = parsed.models["a"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.idle_timeout_s = 5  # type: ignore[misc]
