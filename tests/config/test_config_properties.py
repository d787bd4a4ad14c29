"""Whatever a file holds, the answer is a configuration or ConfigInvalid; what is written back reads the same."""

import json

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpud import config
from gpud.config.engine_choice import EngineOrder
from gpud.config.kinds import Choice, Duration, Flag, Layers, PriorityName, Share, Size, Whole
from gpud.config.network import FileMode, RateOf, Several
from gpud.config.schema import DEFAULTS, ENGINE, EVICTION, HTTP, MODEL, QUEUE, ROOT, sections
from gpud.config.sections import Key, Section
from gpud.config.texts import Environment, FilePath, Folders, Json, Text, Texts, Url, WebAddress
from gpud.core.engines import BUILT_IN
from gpud.core.errors import ConfigInvalid
from gpud.core.record import replace

KEYS = sorted({key.name for _, section in sections() for key in section.keys})
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    ANY_TEXT,
    st.sampled_from(
        ["embedded", "custom", "ollama", "auto", "on", "80%", "5m", "1GiB", "~", "~/x", "http://h:1", "/x"]
    ),
    st.dates(),
    st.binary(max_size=5),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from(KEYS), ANY_TEXT, SCALARS.filter(lambda x: x == x)), inner, max_size=6
        ),
    ),
    max_leaves=25,
)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def accepted(text: str) -> None:
    try:
        config.parse(text, "x", known_engines=BUILT_IN)
    except ConfigInvalid as error:
        assert error.problems
        assert all(one.startswith("x") and one.isprintable() for one in error.problems)


@MANY
@given(st.text(max_size=200))
def test_random_text_is_answered(text: str) -> None:
    """Never another exception, and every sentence begins with the file and is one line."""
    accepted(text)


@MANY
@given(
    st.lists(
        st.sampled_from(
            [*"[]{}:,&*!|>'\"%@`#-? \n\t<~ab1", ": ", "- ", "&a ", "*a", "<<: ", "\n  ", "---\n", "!!int "]
        ),
        max_size=60,
    )
)
def test_random_yaml_signs_are_answered(parts: list[str]) -> None:
    """Syntax in every wrong order."""
    accepted("".join(parts))


@MANY
@given(TREES)
def test_random_structures_are_answered(tree: object) -> None:
    """Any structure under any key."""
    accepted(yaml.safe_dump(tree))


@MANY
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=8))
def test_random_values_under_real_keys_are_answered(tree: dict[str, object]) -> None:
    """Real keys with arbitrary values, for each engine."""
    models = {engine: {"engine": engine, **tree} for engine in BUILT_IN}
    accepted(yaml.safe_dump({**tree, "models": models, "engines": dict.fromkeys(BUILT_IN, tree), "defaults": tree}))


# A valid configuration, drawn from the table itself -----------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("all", "default", "status", "scan", "load", "unload")
)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)
ARGUMENTS = WORDS.filter(lambda word: not word.startswith("-") and "$" not in word)
PATHS = st.from_regex(r"/[A-Za-z0-9 ._é-]{1,12}(/[A-Za-z0-9]{1,5})?", fullmatch=True)
VARIABLES = st.dictionaries(st.from_regex(r"MY_[A-Z0-9_]{0,8}", fullmatch=True), WORDS, max_size=3)
JSON = st.dictionaries(
    WORDS,
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(-(10**9), 10**9), WORDS, st.floats(-1e9, 1e9, allow_subnormal=False)
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
        max_leaves=6,
    ),
    max_size=3,
)
TEXTS = {
    "gpu": st.sampled_from(["0", "7", "host", "auto", "GPU-12ab-34cd"]),
    "default_model": st.just("m"),
    "host": st.sampled_from(["127.0.0.1", "::1", "localhost", "box.lan"]),
    "health": st.sampled_from(["/", "/health", "/a/b?c=d"]),
    "post": st.just("/free"),
    "get": st.just("/queue"),
    "override_tensor": st.just(".ffn_.*=CPU"),
    "model": st.sampled_from(["llama3.2:3b", "hf.co/a/b:Q4_0"]),
    "chat_template": st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], include_characters="\n"), min_size=1
    ).filter(lambda text: text.strip() != ""),
}


SEVERAL = {
    "host": ["127.0.0.1", "::1", "0.0.0.0", "::", "box.lan", "LocalHost", "192.0.2.7"],
    "allowed_hosts": ["box.lan", "Box.Lan.", "10.0.0.1", "[::2]", "xn--mnchen-3ya"],
    "cors_origins": ["http://localhost:5000", "https://Chat.example:443/", "app://obsidian.md", "http://[::1]:80"],
}


def values(key: Key) -> st.SearchStrategy[object]:
    kind = key.kind
    if isinstance(kind, Whole):
        return st.integers(kind.low, kind.high)
    if isinstance(kind, Duration):
        times: st.SearchStrategy[object] = st.one_of(
            st.integers(int(kind.low) + 1, 600), st.floats(max(kind.low, 0.001), 600.0)
        )
        words = [word for word, known in (("auto", kind.auto), ("never", kind.never), (0, kind.never)) if known]
        return st.one_of(times, st.sampled_from(words)) if words else times
    if isinstance(kind, Share):
        shares = st.one_of(st.integers(1, 100), st.floats(0.01, 100.0).map(lambda share: f"{share:.3f}%"))
        return st.one_of(shares, st.just("never")) if kind.never else shares
    if isinstance(kind, EngineOrder):
        return st.lists(st.sampled_from(sorted(BUILT_IN)), min_size=1, unique=True)
    if isinstance(kind, WebAddress):
        return st.sampled_from(["https://hooks.example.org/a/b", "http://me:pw@127.0.0.1:9/x?y=z", "https://[::1]"])
    if isinstance(kind, Size):
        plain: st.SearchStrategy[object] = st.one_of(
            st.integers(kind.low, 1 << 40), st.integers(1, 4000).map(lambda number: f"{number}MiB")
        )
        return st.one_of(plain, st.integers(1, 100).map(lambda share: f"{share}%")) if kind.percent else plain
    if isinstance(kind, Flag):
        return st.booleans()
    if isinstance(kind, Choice):
        return st.sampled_from(kind.words)
    if isinstance(kind, PriorityName):
        return st.sampled_from(kind.allowed.split())
    if isinstance(kind, Layers):
        return st.one_of(st.sampled_from(["auto", "all", -1]), st.integers(0, 999))
    if isinstance(kind, Url):
        return st.sampled_from(["http://127.0.0.1:9", "http://[::1]:80/x", "http://box"])
    if isinstance(kind, FileMode):
        return st.integers(0, 0o77).map(lambda mode: f"06{mode:02o}")
    if isinstance(kind, RateOf):
        return st.tuples(st.integers(1, 9_999_999), st.sampled_from(["s", "min", "m", "h", "d"])).map("%d/%s".__mod__)
    if isinstance(kind, Several):
        several = st.lists(st.sampled_from(SEVERAL[key.name]), min_size=key.name == "host", max_size=3)
        return st.one_of(several, st.sampled_from(SEVERAL[key.name])) if key.name == "host" else several
    if isinstance(kind, FilePath):
        return PATHS
    if isinstance(kind, Folders):
        return st.one_of(st.just("auto"), PATHS, st.lists(PATHS, max_size=3))
    if isinstance(kind, Environment):
        return VARIABLES
    if isinstance(kind, Json):
        return JSON
    if isinstance(kind, Texts):
        if key.name == "any":
            return st.lists(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?", fullmatch=True), min_size=1, max_size=3)
        if key.name in ("include", "exclude"):
            return st.lists(st.from_regex(r"[a-z*?]{1,5}(/[a-z*]{1,5})?", fullmatch=True), min_size=1, max_size=3)
        if key.name == "programs":
            return st.lists(ARGUMENTS.filter(lambda word: word.strip() and "/" not in word), min_size=1, max_size=4)
        return st.lists(ARGUMENTS, min_size=1, max_size=4)
    if isinstance(kind, Section):
        return mapping(kind)
    assert isinstance(kind, Text), key.name
    return TEXTS[key.name]


def mapping(section: Section, without: tuple[str, ...] = (), engine: str = "") -> st.SearchStrategy[dict[str, object]]:
    keys = [key for key in section.keys if key.name not in without and (not engine or key.used_by(engine))]
    return st.fixed_dictionaries(
        {key.name: values(key) for key in keys if key.required},
        optional={key.name: values(key) for key in keys if not key.required},
    )


@st.composite
def models(draw: st.DrawFn) -> dict[str, object]:
    """One with an engine, or one with several that have keys of their own."""
    engines = draw(st.lists(st.sampled_from(sorted(BUILT_IN)), min_size=1, max_size=3, unique=True))
    if len(engines) == 1:
        return {"engine": engines[0], **draw(served_by(engines[0]))}
    if draw(st.booleans()):
        return {"engine": {engine: draw(served_by(engine)) for engine in engines}}
    files = [engine for engine in engines if engine not in ("custom", "ollama", "vllm", "tgi")] or ["embedded"]
    return {"engine": files, **draw(served_by(files[0], "llama_cpp"))}


@st.composite
def served_by(draw: st.DrawFn, *engines: str) -> dict[str, object]:
    """Keys that all of these take."""
    engine = engines[0]
    without: tuple[str, ...] = ("engine", "aliases", "least_context")
    without += tuple(key.name for key in MODEL.keys if not all(key.used_by(one) for one in engines))
    needs: dict[str, object] = {}
    if engine == "custom":
        needs["size"] = draw(st.integers(0, 1 << 40))
        if draw(st.booleans()):
            needs["url"] = "http://127.0.0.1:9"
            without += ("command", "directory", "environment")
        else:
            needs["command"] = [*draw(st.lists(ARGUMENTS, min_size=1, max_size=3)), "${port}"]
            without += ("url",)
    elif engine in ("vllm", "tgi") and draw(st.booleans()):
        needs["size"], needs["url"] = draw(st.integers(0, 1 << 40)), "http://127.0.0.1:9"
    elif engine != "ollama":
        needs["file"] = draw(PATHS)
        without += ("url",)
    found = {**draw(mapping(MODEL, without, engine)), **needs}
    takes_least = all(key.used_by(one) for key in MODEL.keys for one in engines if key.name == "least_context")
    if "context" in found and takes_least and draw(st.booleans()):
        assert isinstance(found["context"], int)
        found["least_context"] = draw(st.integers(16, found["context"]))
    return found


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, object]:
    top = draw(mapping(ROOT, ("models", "engines", "restart", "http", "defaults", "queue", "eviction")))
    top["queue"] = draw(mapping(QUEUE, ("turn",)))
    if draw(st.booleans()):
        top["queue"] = {"timeout": 600, "turn": draw(st.floats(0, 600))}
    low, high = sorted(draw(st.lists(st.integers(1, 100), min_size=2, max_size=2, unique=True)))
    top["eviction"] = draw(mapping(EVICTION, ("above", "below"))) | {"above": high, "below": f"{low}%"}
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    top["http"] = draw(doors(names))
    top["models"] = {name: draw(models()) for name in names}
    own = ("engine", "file", "model", "command", "url", "directory", "aliases", "unload", "busy", "environment")
    patterns = draw(st.lists(st.sampled_from(["*", "q?en*", "[a-c]*:8b"]), max_size=2, unique=True))
    top["models"] |= {pattern: draw(mapping(MODEL, own)) for pattern in patterns}
    top["defaults"] = draw(mapping(DEFAULTS, ("engine",)))
    engines = draw(st.lists(st.sampled_from(sorted(BUILT_IN)), max_size=3, unique=True))
    top["engines"] = {one: draw(mapping(ENGINE, ("defaults", "url"), one)) for one in engines}
    return top


@st.composite
def doors(draw: st.DrawFn, models: list[str]) -> dict[str, object]:
    """With keys, for some of the addresses are reached by others, and on ports of their own."""
    found = draw(mapping(HTTP, ("default_model", "tls")))
    found["api_keys_file"] = draw(PATHS)
    for number, name in enumerate(("front", "management", "ollama")):
        found[name] = draw(mapping(door(name), ("port", "socket"))) | {"port": 8000 + number, "socket": f"/s{number}"}
    if models and draw(st.booleans()):
        found["default_model"] = draw(st.sampled_from(models))
    if draw(st.booleans()):
        found["tls"] = {"certificate": draw(PATHS), "key": draw(PATHS)}
    return found


def door(name: str) -> Section:
    (kind,) = (key.kind for key in HTTP.keys if key.name == name)
    assert isinstance(kind, Section)
    return kind


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(configurations())
def test_a_configuration_reads_back_as_it_was_written(tree: dict[str, object]) -> None:
    """Valid ones are accepted (as JSON here), and the effective configuration written as YAML is the same."""
    text = json.dumps(tree, ensure_ascii=False)
    parsed = config.parse(text, "/srv/x.yaml", known_engines=BUILT_IN)
    again = config.parse(config.to_yaml(parsed, secrets=True), "/elsewhere/y.yaml", known_engines=BUILT_IN)
    assert replace(again, sources=parsed.sources) == parsed
    assert list(again.models) == list(parsed.models)
