"""Each mistake gets one message (file, line, key, value, what is allowed, the nearest key), and all of them at once."""

from collections.abc import Iterator

import pytest

from gpud import config
from gpud.config.schema import BUS
from gpud.core.errors import ConfigInvalid

ENGINES = ("embedded", "llama_server", "llama_cpp", "ollama", "custom")


def problems(text: str, **more: object) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        config.parse(text, "gpud.yaml", known_engines=ENGINES, **more)  # type: ignore[arg-type]
    return list(caught.value.problems)


def problem(text: str) -> str:
    (one,) = problems(text)
    return one


def test_many_mistakes_are_told_at_once() -> None:
    """One pass finds everything that is wrong, in the order of the lines, each thing once."""
    text = """\
idel: 5
models:
  a:
    engine: embedded
    file: /a.gguf
    contxt: 8192
    context: lots
    priority: urgent
  b:
    engine: embeded
    file: /b.gguf
  b: {engine: embedded}
gpu: {reserve: -1}
"""
    told = problems(text)
    assert [line.split(":")[1] for line in told] == ["1", "6", "7", "8", "10", "12", "13"]
    assert told[0] == 'gpud.yaml:1: idel: 5: unknown key; did you mean "idle"?'
    assert told[1] == 'gpud.yaml:6: models.a.contxt: 8192: unknown key; did you mean "context"?'
    assert told[2] == (
        'gpud.yaml:7: models.a.context: "lots": is not a whole number; '
        "allowed: a whole number from 16 to 16777216 (default 4096)"
    )
    assert told[3].endswith("allowed: low normal high critical (default normal)")
    assert 'did you mean "embedded"?' in told[4]
    assert told[5] == "gpud.yaml:12: models.b: a map: given twice, first in line 9; keep one of them"
    assert told[6].startswith("gpud.yaml:13: gpu.reserve: -1: is out of range; allowed: bytes, or a size like 300MiB")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("n_ctx", "context"),
        ("n_gpu_layers", "layers"),
        ("ngl", "layers"),
        ("n-threads", "threads"),
        ("ttl", "idle_timeout"),
        ("cmd", "command"),
        ("path", "file"),
        ("cont_batching", "continuous_batching"),
        ("min_context", "least_context"),
    ],
)
def test_a_name_that_other_programs_use_leads_to_ours(key: str, meant: str) -> None:
    """What llama.cpp and others call it is not accepted, but answered with the name here."""
    told = problem(f"models: {{a: {{engine: embedded, file: /a, {key}: 1}}}}")
    assert f'{key}: 1: unknown key; did you mean "{meant}"?' in told


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one() -> None:
    """A key that exists elsewhere is answered with where it belongs."""
    assert problem("context: 4096") == 'gpud.yaml:1: context: 4096: unknown key; "context" belongs in models.NAME'


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("queue: {max_queue_size: 3}", "size"),
        ("queue: {timeout_seconds: 3}", "timeout"),
        ("eviction: {eviction_policy: lru}", "policy"),
        ("eviction: {threshold: 85}", "above"),
        ("eviction: {auto_scaling_threshold: 85}", "above"),
        ("gpu: {high_usage_threshold: 90}", "alert_percent"),
        ("gpu: {monitoring_interval: 5}", "watch"),
        ("gpu: {safety_margin: 10}", "reserve"),
        ("alerts: {webhookUrl: x}", "webhook"),
        ("alerts: {high_usage_threshold: 90}", "gpu.alert_percent"),
        ("scheduler: {max_queue: 10}", "queue.size"),
        ("scheduler: {eviction_policy: lru}", "eviction.policy"),
    ],
)
def test_the_old_names_of_limits_lead_to_ours(text: str, meant: str) -> None:
    """Also where they stood in another section than here."""
    assert f'did you mean "{meant}"?' in problem(text)


def test_an_unknown_key_like_no_other_lists_what_is_allowed() -> None:
    """Where nothing is near, the keys of that section are listed."""
    names = " ".join(key.name for key in BUS.keys)
    assert problem("bus: {xyzzy: 1}").endswith(f"bus.xyzzy: 1: unknown key; allowed: {names}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("context: 4096.5", "is not a whole number"),
        ("context: '4096'", "is text; write the number without quotes"),
        ("context: 0x1000", "is not a whole number"),
        ("context: 1_000", "is not a whole number"),
        ("context: 010", "is not a whole number"),
        ("context: 15", "is out of range"),
        ("context: 99999999999999999999999", "is not a whole number"),
        ("context: [1]", "a list: is a list, one value is expected"),
        ("context: ", "has no value; write one or remove the line (default 4096)"),
        ("context: ~", "has no value"),
        ("pinned: yes", "yes: is neither true nor false; allowed: true or false"),
        ("pinned: 'true'", "is neither true nor false"),
        ("pinned: 1", "is neither true nor false"),
        ("layers: -2", "is not a number of layers; allowed: auto, all (or -1), or a whole number from 0 to 999"),
        ("layers: 1000", "is not a number of layers"),
        ("flash_attention: maybe", "is none of the allowed words; allowed: on off auto (default auto)"),
        ("cache_type_k: q8", 'did you mean "q8_0"?'),
        ("size: 1.5", "is a fraction without a unit"),
        ("size: 3 bananas", "is not a size"),
        ("size: 50%", "is a share; this key takes a size"),
        ("size: 9999999TiB", "is out of range"),
        ("idle_timeout: -1", "is negative"),
        ("idle_timeout: soon", "is not a time"),
        ("idle_timeout: 400d", "is out of range"),
        ("idle_timeout: .inf", "is not a time"),
        ("load_timeout: 0", "is out of range"),
        ("least_context: 8192", "is more than its context, 4096; lower it, or raise context"),
        ("least_context: 8", "is out of range"),
        ("extra_flags: --temp", "is not a list"),
        ("extra_flags: [[a]]", "extra_flags[0]: a list: is a list, one value is expected"),
        ("extra_flags: [a, ~]", "extra_flags[1]: nothing: is empty"),
        ("environment: [A]", "is not a map"),
        ("environment: {A: }", 'environment.A: has no value; write "" if that is meant'),
        ("environment: {1A: x}", "environment.1A: is not the name of a variable"),
        ("chat_template: 5", "is a number; put it in quotes if it is meant as text"),
        ("mmproj: ''", "is empty"),
        ('mmproj: "a\\0b"', "holds a NUL character"),
        ("mmproj: ~other/x", 'begins with the home directory of another user ("~name")'),
        ("gpu: ''", "is empty"),
        ("gpu: [0, 1]", "one value is expected"),
        ("stop: {drian: 5}", 'stop.drian: 5: unknown key; did you mean "drain"?'),
        ("stop: 5", "is not a map; its keys are: drain term second_term"),
        ("override_tensor: nonsense", "is not allowed; allowed: pattern=device"),
    ],
)
def test_a_wrong_value_is_refused_with_the_reason(line: str, said: str) -> None:
    """The message names the line and the key, and says what is wrong with the value."""
    told = problem(f"models:\n  a:\n    engine: embedded\n    file: /a\n    {line}\n")
    assert told.startswith(f"gpud.yaml:5: models.a.{line.partition(':')[0]}")
    assert said in told


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("-m", 'use the key "file"'),
        ("--model=x", 'use the key "file"'),
        ("-c", 'use the key "context"'),
        ("--ctx_size", 'use the key "context"'),
        ("-a", 'use the key "aliases"'),
        ("--port", "may not be given here: gpud listens for the engine on a private address"),
        ("--host", "private address"),
        ("--api-key", "a key of its own"),
        ("--api-key-file", "a key of its own"),
        ("--log-jsonl", "reads the engine's log"),
        ("--fit", "gpud places models itself"),
        ("-fit", "gpud places models itself"),
        ("--slot-save-path", "gpud never allows it"),
        ("--tools", "gpud never allows it"),
        ("--agent", "gpud never allows it"),
        ("--media-path=/", "gpud never allows it"),
        ("--mcp-servers-config", "gpud never allows it"),
        ("--ui-mcp-proxy", "gpud never allows it"),
    ],
)
def test_flags_that_gpud_owns_are_refused(flag: str, said: str) -> None:
    """extra_flags may not say what gpud says itself, nor open the machine."""
    told = problem(f"models:\n  a: {{engine: llama_server, file: /a, extra_flags: [--temp, 1, '{flag}']}}")
    assert told.startswith("gpud.yaml:2: models.a.extra_flags[2]")
    assert said in told


@pytest.mark.parametrize(
    "name",
    [
        "LLAMA_API_KEY",
        "LLAMA_API_KEY_FILE",
        "LLAMA_SERVER_ROUTER_PORT",
        "LLAMA_ARG_LOG_JSONL",
        "LLAMA_ARG_TOOLS",
        "LLAMA_ARG_AGENT",
        "LLAMA_ARG_MCP_SERVERS",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "LISTEN_FDS",
        "CUDA_VISIBLE_DEVICES",
    ],
)
def test_variables_that_gpud_owns_are_refused_and_their_values_not_shown(name: str) -> None:
    """A message about a variable never shows its value: it may be a secret."""
    for text in (
        f"models: {{a: {{engine: embedded, file: /a, environment: {{{name}: hush}}}}}}",
        f"engines: {{embedded: {{environment: {{{name}: hush}}}}}}",
        f"defaults: {{environment: {{{name}: hush}}}}",
    ):
        told = problem(text)
        assert f"environment.{name}: may not be set here" in told
        assert "hush" not in told


def test_a_model_without_what_its_engine_needs_is_refused() -> None:
    """The llama engines need a file, custom ones a size and a command or a url."""
    assert 'models.a: has no "file", which the engine "embedded" needs' in problem("models: {a: {engine: embedded}}")
    assert 'has no "engine"; add one of: embedded llama_server' in problem("models: {a: {file: /a}}")
    told = problems("models: {a: {engine: custom}}")
    assert any('has no "size"' in one for one in told)
    assert any('has neither "command" nor "url"' in one for one in told)
    assert "has no settings; write its keys below it" in problem("models:\n  a:\n")


def test_a_refused_value_is_not_called_missing() -> None:
    """Each mistake has one message, not a second one that follows from it."""
    assert "models.a.file" in problem("models: {a: {engine: embedded, file: [x]}}")
    assert "models.a.size" in problem("models: {a: {engine: custom, size: big, url: 'http://h:1'}}")
    assert "models.a.engine" in problem("models: {a: {engine: 5x}}")


def test_command_and_url_exclude_each_other() -> None:
    """A custom engine is either started or attached to."""
    told = problem("models: {a: {engine: custom, size: 0, command: [x], url: 'http://127.0.0.1:1'}}")
    assert "models.a.command: a list: a server that gpud starts has no url" in told


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://h:1", "asks for TLS"),
        ("http://me:pw@h:1", "holds a user name"),
        ("h:1", "is not an address"),
        ("http://h:70000", "has the port 70000"),
        ("http://h:1/x?y", "has a query"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    """Engines are reached over plain HTTP at a host and a port."""
    assert said in problem(f"models: {{a: {{engine: custom, size: 0, url: '{url}'}}}}")


def test_keys_that_mean_nothing_to_the_engine_are_refused() -> None:
    """A key without effect would be a promise that is not kept."""
    told = problems(
        "models:\n"
        "  a: {engine: custom, size: 0, url: 'http://h:1', context: 4096}\n"
        "  b: {engine: ollama, file: /x}\n"
        "  c: {engine: embedded, file: /x, command: [x]}\n"
        "engines: {custom: {binary: x}, ollama: {defaults: {batch: 2}}}\n"
    )
    assert len(told) == 5
    assert 'models.a.context: 4096: means nothing to the engine "custom"' in told[0]
    assert 'name the model in Ollama\'s store with "model"' in told[1]
    assert 'models.c.command: a list: means nothing to the engine "embedded" (only to: custom)' in told[2]
    assert "engines.custom.binary" in told[3]
    assert "engines.ollama.defaults.batch: 2" in told[4]


def test_an_attached_ollama_is_not_also_configured() -> None:
    """What runs at a url is somebody else's: gpud cannot choose its program."""
    told = problem("engines: {ollama: {url: 'http://127.0.0.1:11434', binary: ollama}}")
    assert "gpud does not start a server that runs at a url" in told


@pytest.mark.parametrize(
    "name", ["all", "default", "status", "scan", "load", "unload", "-a", "a b", "a" * 129, "é", ""]
)
def test_names_that_cannot_be_used_are_refused(name: str) -> None:
    """Commands use some words themselves; the others are limited to what every surface can carry."""
    assert "the name" in problem(f"models: {{'{name}': {{engine: embedded, file: /a}}}}")
    if name:
        assert "aliases[0]" in problem(f"models: {{m: {{engine: embedded, file: /a, aliases: ['{name}']}}}}")


def test_every_name_leads_to_one_model() -> None:
    """An alias may not be another model's name or alias, nor stand twice."""
    told = problems(
        "models:\n"
        "  a: {engine: embedded, file: /a, aliases: [x, b, a]}\n"
        "  b: {engine: embedded, file: /b, aliases: [x, y, y]}\n"
    )
    assert {one.split("aliases: ")[1].split(";")[0] for one in told} == {
        '"b": is the name of another model',
        '"a": is the name of the model itself',
        '"x": is an alias of "a" already',
        '"y": stands here twice',
    }


def test_placeholders_are_checked() -> None:
    """A mistyped ${port} is told; $$ is a dollar sign; a key does not belong on a command line."""
    told = problems("models: {a: {engine: custom, size: 0, command: [x, '${prot}', '${HOME}', '${key}', '$${HOME}']}}")
    assert len(told) == 3
    assert 'command[1]: "${prot}": has the placeholder ${prot}' in told[0]
    assert 'did you mean "port"?' in told[0]
    assert "write $$ for a dollar sign" in told[1]
    assert "has ${key}, and everybody may read command lines" in told[2]


def test_an_engine_that_nobody_could_reach_is_refused() -> None:
    """Its command or its variables say where it is to listen."""
    text = "models: {a: {engine: custom, size: 0, command: [x]MORE}}"
    assert "models.a.command: a list: neither it nor environment mentions ${port}" in problem(text.replace("MORE", ""))
    config.parse(text.replace("MORE", ", environment: {PORT: '${port}'}"), "x")
    engines = "engines: {custom: {environment: {PORT: '${port}'}}}\n"
    config.parse(engines + text.replace("MORE", ""), "x")


def test_what_is_installed_is_looked_up_only_for_a_message() -> None:
    """To list all engines means to look at all installed packages: a right configuration does not cause it."""

    class Engines(tuple[str, ...]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("the engines were listed")

    config.parse("models: {a: {engine: embedded, file: /a}}", "x", known_engines=Engines(ENGINES))


def test_an_engine_that_nobody_installed_is_refused_only_when_the_engines_are_known() -> None:
    """Outside packages add engines: without the list of those here, any well-formed name passes."""
    text = "models: {a: {engine: turbo, file: /a, context: 100, url: 'http://h:1'}}\nengines: {turbo: {binary: turbo}}"
    assert len(problems(text)) == 2
    model = config.parse(text, "x").models["a"]
    assert (model.engine, model.settings.context, model.settings.url) == ("turbo", 100, "http://h:1")
    assert 'did you mean "llama_server"?' in problem("models: {a: {engine: llama-servr, file: /a}}")
    assert 'did you mean "llama_server"?' in problem("engines: {llamacpp: {binary: /x}}")


def test_doors_do_not_share_an_address() -> None:
    """Two enabled doors on one port could not both be opened."""
    told = problem("http:\n  front: {port: 9000}\n")
    assert (
        told
        == "gpud.yaml:2: http.management.port: 9000: http.front listens on 127.0.0.1:9000 already; choose another port"
    )
    config.parse("http: {front: {port: 9000}, management: {enable: false}}", "x")


def test_waits_between_restarts_are_in_order() -> None:
    """The longest wait is not shorter than the first."""
    assert "restart.max: 60 s: is less than restart.first, 100 s" in problem("restart: {first: 100}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "queue: {timeout: 5, turn: 6}",
            "queue.turn: 6 s: is more than queue.timeout, 5 s, so that nobody would live to see its turn",
        ),
        ("eviction: {above: 80}", "eviction.below: 80%: is not below eviction.above, 80%; lower it"),
        ("eviction: {above: 50, below: 70%}", "eviction.below: 70%: is not below eviction.above, 50%; lower it"),
        ("queue: {size: 0}", "queue.size: 0: is out of range; allowed: a whole number from 1 to 10000 (default 10)"),
        ("queue: {timeout: never}", 'queue.timeout: "never": is not a time'),
        ("queue: {aging: 0}", "queue.aging: 0: is out of range"),
        ("eviction: {policy: lfu}", 'eviction.policy: "lfu": is none of the allowed words; did you mean "lru"?'),
        ("eviction: {above: 0}", "eviction.above: 0: is out of range; allowed: a share like 85%"),
        ("eviction: {below: never}", 'eviction.below: "never": is not a share'),
        ("gpu: {alert_percent: 101}", "gpu.alert_percent: 101: is out of range"),
        ("gpu: {alert_percent: 90MiB}", 'gpu.alert_percent: "90MiB": is not a share'),
        ("gpu: {watch: 500ms}", 'gpu.watch: "500ms": is out of range; allowed: 0 or never, or seconds'),
        ("gpu: {external_busy_mib: 6GiB}", 'gpu.external_busy_mib: "6GiB": is not a whole number'),
        ("gpu: {external_busy_mib: 0}", "gpu.external_busy_mib: 0: is out of range"),
        ("prefetch: {page_cache: yes}", "prefetch.page_cache: yes: is neither true nor false"),
        ("models: {a: {engine: ollama, least_context: 2048}}", "least_context: 2048: has no effect without a context"),
    ],
)
def test_limits_that_cannot_be_or_contradict_each_other_are_refused(text: str, said: str) -> None:
    """With both values, where they come from two keys."""
    assert said in problem(text)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://h/hush", "is not an address on the web"),
        ("https://me:hush@", "is not an address on the web"),
        ("https://h:70000/hush", "has the port 70000, which is not from 1 to 65535"),
        ("https://h/hush#x", 'has a fragment ("#"), which is never sent'),
        ("https://h/hush hush", "is not an address on the web"),
        ("https://[:::1]/hush", "has a host in brackets that is no IPv6 address"),
    ],
)
def test_an_address_of_a_webhook_is_checked_and_not_shown(address: str, said: str) -> None:
    """Many receivers have their only secret in the path."""
    told = problem(f"alerts: {{webhook: '{address}'}}")
    assert told.startswith(f"gpud.yaml:1: alerts.webhook: a secret: {said}; allowed: http://")
    assert "hush" not in told


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("[]", "models.a.engine: a list: is empty"),
        ("{}", "models.a.engine: a map: is empty"),
        ("[llama_server, olama]", 'models.a.engine[1]: "olama": is not an engine that is installed here'),
        ("[llama_server, llamacpp]", 'models.a.engine[1]: "llamacpp": stands here twice'),
        ("[[ollama]]", "models.a.engine[0]: a list: is a list, one value is expected"),
        ("[auto]", 'models.a.engine[0]: "auto": is not an engine that is installed here'),
        ("{llama_servr: {}}", "models.a.engine.llama_servr: is not an engine that is installed here"),
        ("{ollama: {}, embedded: 5}", "models.a.engine.embedded: is not a map; its keys are: file model"),
        ("{llama_server: {contxt: 5}}", 'models.a.engine.llama_server.contxt: 5: unknown key; did you mean "context"?'),
        (
            "{llama_server: {keep_alive: 5}, ollama: {batch: 3}}",
            'models.a.engine.llama_server.keep_alive: 5: unknown key; did you mean "idle_timeout"?',
        ),
        ("{llama_server: {}, ollama: {batch: 3}}", 'ollama.batch: 3: means nothing to the engine "ollama"'),
        ("{llama_server: {least_context: 9999}}", "models.a.engine.llama_server.least_context: 9999: is more than its"),
        ("{custom: {size: 0, url: 'http://h:1', directory: /x}}", 'models.a.engine.custom.directory: "/x": gpud does'),
    ],
)
def test_a_choice_of_engines_is_checked(engine: str, said: str) -> None:
    """Each name and each key of it, where it stands."""
    told = problems(f"models: {{a: {{file: /a.gguf, engine: {engine}}}}}")
    assert any(said in one for one in told), told


def test_a_key_that_none_of_several_engines_takes_is_refused() -> None:
    """While one that some of them take is theirs."""
    told = problem("models: {a: {engine: [llama_cpp, ollama], file: /a.gguf, reranking: true, context: 99}}")
    assert 'models.a.reranking: true: means nothing to the engine "llama_cpp" or "ollama" (only to: ' in told
    assert told.endswith("; remove it")


def test_no_engine_is_left_for_what_nobody_can_serve() -> None:
    """``auto`` says what is in the way."""
    order = "scheduler: {backend_order: [llama_server, ollama]}\n"
    told = problem(order + "models: {a: {engine: auto, file: /x/model.safetensors}}")
    assert told == (
        'gpud.yaml:2: models.a.file: "/x/model.safetensors": is no .gguf file, and llama engines read nothing else; no '
        "other engine of scheduler.backend_order (llama_server ollama) takes it; convert it, or name one that does"
    )
    told = problem("scheduler: {backend_order: [ollama]}\nmodels: {a: {engine: auto, file: /x.gguf}}")
    assert "models.a.engine: auto: no engine of scheduler.backend_order (ollama) can serve this model" in told
    assert "models.a.file" in problem("models: {a: {engine: auto, file: [x]}}")


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (
            "ollama",
            'backend_order: "ollama": is not a list; allowed: a list of engines, each once (default [llama_server',
        ),
        ("[]", "backend_order: a list: is empty"),
        ("[ollama, llama_servr]", 'backend_order[1]: "llama_servr": is not an engine that is installed here'),
        ("[ollama, ollama]", 'backend_order[1]: "ollama": stands here twice'),
    ],
)
def test_the_order_of_engines_is_checked(order: str, said: str) -> None:
    """Unknown engines are told with the nearest, as everywhere."""
    assert said in problem(f"scheduler: {{backend_order: {order}}}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("queue: {timeout: x, turn: 900}", "queue.timeout"),
        ("eviction: {above: x, below: 90}", "eviction.above"),
        ("restart: {first: 0, max: 2}", "restart.first"),
        ("restart: {first: 100, max: 1000d}", "restart.max"),
        ("http: {front: {port: 99999}, management: {port: 8080}}", "http.front.port"),
        ("http: {front: {enable: maybe, port: 9000}}", "http.front.enable"),
    ],
)
def test_what_was_refused_is_not_compared_with_anything(text: str, key: str) -> None:
    """The default that stands in for it would be told of as if somebody had written it."""
    assert problem(text).startswith(f"gpud.yaml:1: {key}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "gpud.yaml:1: the file holds a list; a configuration is a map, like models:"),
        ("just text", 'the file holds "just text"'),
        ("\tidle: 5", "gpud.yaml:1: column 1: found character that cannot start any token"),
        ("idle:\n\ttimeout: 5", "indent with spaces, not with tabs"),
        ("a: b: c", "gpud.yaml:1: column 5: mapping values are not allowed"),
        ("idle: {timeout: 5", "gpud.yaml:1:"),
        ("idle: {}\n---\ngpu: {}\n", "gpud.yaml:2: a second document begins here"),
        ("a: *b", '"*b" refers to an anchor that does not exist'),
        ("gpu: &a\n  budget: *a", 'gpud.yaml:2: "*a" stands inside of what it stands for'),
        ("? [a]\n: b", "a list or a map stands where a key is expected"),
        ("models: !ruby/object {}", 'the YAML tag "!ruby/object" means nothing to gpud'),
        ("a: !!python/name:os.system x", "the YAML tag"),
        ("idle: \x01", "gpud.yaml:1: holds the control character U+0001"),
        ("idle: a\0b", "holds the control character U+0000"),
        ("models: " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("models: " + "[" * 100_000, "gpud.yaml:1:"),
        ("gpu: {<<: 5}", '"<<" takes a map or a list of maps, not 5'),
    ],
)
def test_what_is_not_usable_yaml_is_told_with_its_line(text: str, said: str) -> None:
    """The reader says where and what, in one message."""
    assert any(said in one for one in problems(text)), problems(text)


def test_a_message_is_one_line_and_harmless() -> None:
    """Keys and values are quoted, but a terminal is not made to obey them, and long ones are cut."""
    told = problem('bus: {"a\\e[31mb\\nc": "x\\e[0my"}')
    assert told.isprintable()
    assert told.startswith('gpud.yaml:1: bus.a\\x1b[31mb\\nc: "x\\x1b[0my": unknown key')
    assert len(problem(f"bus: {{{'k' * 5000}: {'v' * 5000}}}")) < 500


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: {engine: embedded, file: /a, HF_TOKEN: hush}}",
        "models: {a: {engine: embedded, file: /a, extra_flags: ['--api-key=hush']}}",
        "models: {a: {engine: custom, size: 0, url: 'http://me:hush@h:1'}}",
        "engines: {embedded: {environment: {MY_KEY: 1, MY_KEY: hush}}}",
        "api_key: hush",
    ],
)
def test_a_message_shows_no_secret(text: str) -> None:
    """Messages go to the journal and to every terminal."""
    assert "hush" not in problem(text)


def test_a_billion_laughs_is_refused_at_once() -> None:
    """Aliases that would grow without a bound are counted, not written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "holds more than 50,000 values once its aliases are written out" in problem("\n".join(lines))


def test_thousands_of_mistakes_are_bounded() -> None:
    """A file of garbage yields a readable answer that says how much more there is."""
    told = problems("\n".join(f"k{n}: {n}" for n in range(2000)))
    assert len(told) == 501
    assert told[-1] == "… and 1500 more problems; mend these first"
