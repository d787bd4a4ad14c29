"""What a right configuration becomes: every default applied, in the right order, and values read as they were meant."""

from pathlib import Path

import pytest

from gpud import config
from gpud.core.engines import Family, of_family
from gpud.core.errors import ConfigInvalid
from gpud.core.facts import (
    AUTO_IDLE,
    BudgetLimits,
    BusyProbe,
    EvictionLimits,
    EvictionPolicy,
    HttpCall,
    Limits,
    LoadsMeanwhile,
    Model,
    Priority,
    QueueLimits,
    StopTimes,
)
from gpud.core.record import replace


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
    assert replace(config.parse(text, "x"), sources=()) == config.Config()


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
    assert parsed.http.management == config.Door(False, ("127.0.0.1",), 9000)


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


def test_limits_of_waiting_evicting_and_watching() -> None:
    """The sections queue, eviction and the rest of gpu become the scheduler's limits, too."""
    parsed = config.parse(
        "queue: {size: 3, timeout: 1m, turn: 2, aging: 30}\n"
        "eviction: {policy: lru, residence: 20, above: 85, below: 75.5%}\n"
        "gpu: {watch: never, external_busy_mib: 6144, alert_percent: never}\n",
        "x",
    )
    assert parsed.limits == Limits(
        queue=QueueLimits(size=3, timeout_s=60, turn_s=2, aging_s=30),
        eviction=EvictionLimits(EvictionPolicy.LRU, residence_s=20, above_percent=85, below_percent=75.5),
        watch_s=0,
        external_busy_bytes=6 << 30,
        alert_percent=None,
    )
    assert isinstance(parsed.limits.eviction.policy, EvictionPolicy)
    assert config.parse("gpu: {alert_percent: 95.5}", "x").limits.alert_percent == 95.5
    assert config.parse("eviction: {above: never}", "x").limits == Limits()


def test_a_turn_comes_before_the_end_of_the_wait() -> None:
    """Who shortens the wait need not think of the turn."""
    assert config.parse("queue: {timeout: 3}", "x").limits.queue == QueueLimits(timeout_s=3, turn_s=3)
    assert config.parse("queue: {timeout: 3, turn: null}", "x").limits.queue.turn_s == 3


def test_what_happens_when_the_machine_sleeps_or_a_game_runs() -> None:
    """Each as it is written, and as it is without a word."""
    text = "idle: {timeout_on_battery: 1m, sessions_idle: 10m, locked: true, logged_out: true}\n"
    text += "suspend: {policy: keep, restore: false}\ngive_way: {programs: [doom, steam_app_*], loads: cpu}"
    parsed = config.parse(text, "x")
    assert parsed.limits.battery_idle_s == 60
    assert parsed.idle == config.IdleConfig(600, locked=True, logged_out=True)
    assert parsed.suspend == config.SuspendConfig("keep", restore=False)
    assert parsed.give_way.programs == ("doom", "steam_app_*")
    assert parsed.limits.loads_during_game is LoadsMeanwhile.CPU
    plain = config.parse("{}", "x")
    assert (plain.limits.battery_idle_s, plain.limits.loads_during_game) == (None, LoadsMeanwhile.WAIT)
    assert plain.idle == config.IdleConfig()
    assert plain.suspend == config.SuspendConfig("unload", restore=True)
    with pytest.raises(ConfigInvalid, match="is not the name of a program without its folder"):
        config.parse("give_way: {programs: [/usr/bin/doom]}", "x")
    assert config.parse(config.to_yaml(parsed), "x").limits == parsed.limits


def test_alerts_and_prefetching() -> None:
    """Where alerts go, and what is done ahead of time."""
    parsed = config.parse("alerts: {webhook: 'https://h/x?y=z'}\nprefetch: {page_cache: false, on_battery: true}", "x")
    assert parsed.alerts == config.AlertsConfig("https://h/x?y=z")
    assert parsed.prefetch == config.PrefetchConfig(page_cache=False, on_battery=True)
    assert "https" not in repr(parsed)


def test_an_idle_time_that_follows_from_the_load() -> None:
    """For all models, or for one."""
    parsed = config.parse(
        "idle: {timeout: auto}\nmodels: {m: {engine: ollama}, n: {engine: ollama, ttl: 5}}".replace(
            "ttl", "idle_timeout"
        ),
        "x",
    )
    assert (parsed.idle_timeout_s, parsed.models["m"].idle_timeout_s) == (AUTO_IDLE, AUTO_IDLE)
    assert parsed.models["n"].idle_timeout_s == 5
    assert llama("idle_timeout: auto").idle_timeout_s == AUTO_IDLE


def test_the_least_context() -> None:
    """Where there is a context to lower, it is how low that may be; a default that lowers nothing says nothing."""
    assert llama("context: 8192, least_context: 2048").least_context == 2048
    assert llama("least_context: 4096").least_context == 4096
    before = "defaults: {least_context: 4096}"
    assert llama("context: 2048", before).least_context is None
    assert llama("context: 8192", before).least_context == 4096
    assert model("engine: ollama", before).least_context is None
    assert model("engine: ollama, context: 8192", before).least_context == 4096


def test_several_engines_for_one_model() -> None:
    """The first is the model's, the others are its alternatives, each with the settings that it takes."""
    one = model(
        "engine: [llama_server, ollama], file: /m.gguf, model: m:1b, context: 999, cpu_moe: 3, priority: high,"
        "aliases: [x], least_context: 99"
    )
    (other,) = one.alternatives
    assert (one.engine, one.settings.file, one.settings.cpu_moe, one.settings.ollama_name) == (
        "llama_server",
        "/m.gguf",
        3,
        "",
    )
    assert (other.engine, other.settings.file, other.settings.cpu_moe, other.settings.ollama_name) == (
        "ollama",
        "",
        None,
        "m:1b",
    )
    for each in (one, other):
        assert (each.name, each.aliases, each.priority) == ("m", ("x",), Priority.HIGH)
        assert (each.settings.context, each.least_context) == (999, 99)
    assert other.alternatives == ()
    assert (one.settings.batch, other.settings.batch) == (2048, None)


def test_engines_with_settings_of_their_own() -> None:
    """What stands below an engine holds for it alone, before what the model says; then come its defaults."""
    one = model(
        "engine: {llama_server: {layers: all}, ollama: {context: 8192}, embedded: }, file: /m.gguf, context: 99",
        "engines: {ollama: {defaults: {context: 55, parallel: 7}}}",
    )
    assert [each.engine for each in (one, *one.alternatives)] == ["llama_server", "ollama", "embedded"]
    assert [each.settings.layers for each in (one, *one.alternatives)] == ["all", None, "auto"]
    assert [each.settings.context for each in (one, *one.alternatives)] == [99, 8192, 99]
    assert [each.settings.parallel for each in (one, *one.alternatives)] == [1, 7, 1]


@pytest.mark.parametrize(
    ("settings", "families"),
    [
        ("file: /m.gguf", [Family.LLAMA_CPP]),
        ("file: /m.GGUF, model: m", [Family.LLAMA_CPP, Family.OLLAMA]),
        ("model: m", [Family.OLLAMA]),
        ("model: owner/m", [Family.OLLAMA, Family.HUB]),
        ("file: /m, model: m", [Family.OLLAMA, Family.HUB]),
        ("file: /m.safetensors", [Family.HUB]),
    ],
)
def test_an_open_engine_is_chosen_by_what_the_model_is(settings: str, families: list[Family]) -> None:
    """A file for the llama engines is a GGUF file; SafeTensors never reach them."""
    one = model(f"engine: auto, {settings}")
    assert tuple(each.engine for each in (one, *one.alternatives)) == of_family(*families)


def test_a_file_in_safetensors_never_goes_to_llama_cpp() -> None:
    """Not even beside a name that Ollama could serve: without another engine the file would be without a meaning."""
    with pytest.raises(ConfigInvalid, match='safetensors": means nothing to the engine "ollama"'):
        model("engine: auto, file: /m.safetensors, model: m", "scheduler: {backend_order: [llama_server, ollama]}")
    other = model("engine: auto, file: /m.safetensors", "scheduler: {backend_order: [llama_server, vllm]}")
    assert (other.engine, other.alternatives) == ("vllm", ())


def test_the_order_of_engines_is_configured() -> None:
    """By their names here, or those that others use; engines of other packages take a file."""
    before = "scheduler: {backend_order: [ollama, turbo, custom, llamacpp]}\ndefaults: {engine: auto}"
    assert config.parse(before, "x").backend_order == ("ollama", "turbo", "custom", "llama_server")
    one = model("file: /m.gguf, model: m", before)
    assert [each.engine for each in (one, *one.alternatives)] == ["ollama", "turbo", "llama_server"]
    assert model("file: /m.safetensors", before).engine == "turbo"
    assert model("url: 'http://h:1', size: 0", before).engine == "custom"
    assert model("engine: llama.cpp, file: /m").engine == "llama_server"


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
    with pytest.raises(AttributeError):
        parsed.idle_timeout_s = 5  # type: ignore[misc]
