"""What single settings become: options of NixOS, routers of llama-swap, addresses, devices, durations."""

import json
from typing import Any

import pytest
from import_cases import given as known

from gpud.config.source import Where
from gpud.core.errors import ConfigInvalid
from gpud.importing import containers, llama_swap, nixos, ollama_variables
from gpud.importing.nixos_offload import seconds_of
from gpud.importing.report import Draft, Fate, Report
from gpud.importing.settling import settle
from gpud.importing.values import go_seconds


def options(document: Any, prefix: str = "") -> Report:
    return settle(nixos.draft(json.dumps(document), known("input"), prefix))


def swap(document: Any) -> Report:
    return settle(llama_swap.draft(json.dumps(document), known("input")))


def test_what_is_switched_on_and_no_more_is_what_its_module_takes() -> None:
    """Its default is carried over, and the note stands where it was switched on."""
    offload = {"api": {"corsEnabled": True}, "backends": {"vllm": {"enable": True}}}
    report = options({"kernelcore.ml.offload": offload})
    assert report.config["http"]["cors_origins"] == ["http://localhost:3000"]
    assert report.config["engines"]["vllm"]["url"] == "http://127.0.0.1:8000"
    assert {note.setting.rpartition(".")[2] for note in report.of(Fate.CARRIED)} == {"corsEnabled", "enable"}
    nothing = options(
        {"kernelcore.ml.offload": {"api": {"corsEnabled": True, "corsOrigins": []}, "backends": {"vllm": {}}}}
    )
    assert nothing.config == {}


@pytest.mark.parametrize(
    ("environment", "folder", "instead"),
    [
        ([], "/var/lib/ml-models/llamacpp/models/", "gpudctl pull hf:org/repo-GGUF:Q8_0"),
        (
            ["HF_HOME=/srv/hf"],
            "/srv/hf/hub/models--org--repo-GGUF/snapshots/latest/",
            "where it is not there: gpudctl pull hf:org/repo-GGUF:Q8_0, and the path that this says",
        ),
    ],
)
def test_what_llama_server_downloaded_is_expected_where_it_is_put(
    environment: list[str], folder: str, instead: str
) -> None:
    """Where the command that is said would put it; or in the cache that it was told of, where it may be already."""
    command = "llama-server -hf org/repo-GGUF:Q8_0 --port ${PORT} -c 4096"
    report = swap({"models": {"m": {"cmd": command, "env": environment}}})
    assert report.config["models"]["m"]["file"] == f"{folder}repo-Q8_0.gguf"
    (note,) = [note for note in report.of(Fate.CHANGED) if note.setting.endswith("-hf")]
    assert note.instead == instead


# NixOS ----------------------------------------------------------------------------------------------------------------

MODEL = {"enable": True, "model": "/m/a.gguf", "n_ctx": 8192}
SHAPES = [
    {"services": {"llamacpp": MODEL}},
    {"services.llamacpp": MODEL},
    {"services.llamacpp.enable": True, "services.llamacpp.model": "/m/a.gguf", "services.llamacpp.n_ctx": 8192},
    {"config": {"services": {"llamacpp": MODEL}}},
    {"config.services.llamacpp": MODEL},
    {"services": {"llamacpp.enable": True, "llamacpp": {"model": "/m/a.gguf", "n_ctx": 8192}}},
    {
        f"services.llamacpp.{key}": {"value": value, "type": "x", "default": None, "declarations": []}
        for key, value in MODEL.items()
    },
]


@pytest.mark.parametrize("document", SHAPES, ids=range(len(SHAPES)))
def test_options_may_be_nested_dotted_or_described(document: Any) -> None:
    """They are the same options; what is not said is what the module takes."""
    assert options(document).config["models"]["a"] == {
        "engine": "llama_server",
        "file": "/m/a.gguf",
        "context": 8192,
        "layers": 22,
        "threads": 6,
        "parallel": 1,
        "batch": 2048,
    }


def test_a_service_that_is_not_enabled_is_not_carried_over() -> None:
    """Nor anything of it; and that is said."""
    report = options({"services.llamacpp": MODEL | {"enable": False}, "services.ollama": {"enable": False, "port": 1}})
    assert report.config == {}
    assert [(note.setting, note.fate) for note in report.notes] == [
        ("services.llamacpp", Fate.NEEDLESS),
        ("services.ollama", Fate.NEEDLESS),
    ]


@pytest.mark.parametrize("is_open", [True, False])
def test_the_firewall_is_not_gpuds(is_open: bool) -> None:
    """An option that opened it is said to do so no more; one that did not is nothing to speak of."""
    report = options({"services.llamacpp": MODEL | {"openFirewall": is_open}})
    said = [note.setting for note in report.of(Fate.DROPPED)]
    assert said == (["services.llamacpp.openFirewall"] if is_open else [])


def test_names_with_dots_stay_whole() -> None:
    """Where names are the user's own."""
    profiles = {"qwen3.5": {"modelPath": "/m/q.gguf"}, 'a"b': {"modelPath": "/m/b.gguf"}}
    report = options({"kernelcore.llama-swap.profiles": profiles})
    assert list(report.config["models"]) == ["qwen3.5", "a-b"]
    quoted = options({'kernelcore.llama-swap.profiles."qwen3.5".modelPath': "/m/q.gguf"})
    assert list(quoted.config["models"]) == ["qwen3.5"]


def test_an_option_that_is_given_twice_is_refused() -> None:
    """With the place of the second."""
    text = '{"services.llamacpp.n_ctx": 1,\n "services": {"llamacpp": {"n_ctx": 2}}}'
    with pytest.raises(ConfigInvalid, match=r"input:2:28: services.llamacpp.n_ctx: given twice, first in line 1"):
        nixos.draft(text, known("input"))


def test_the_module_of_llama_swap_has_its_configuration_in_it() -> None:
    """It is read as such, below its option."""
    settings = {"models": {"a": {"cmd": "llama-server --port ${PORT} -m /m/a.gguf"}}, "healthCheckTimeout": 60}
    report = options({"services.llama-swap": {"enable": True, "port": 8081, "settings": settings}})
    assert report.config["models"]["a"]["file"] == "/m/a.gguf"
    assert report.config["http"] == {"front": {"port": 8081}}
    assert "services.llama-swap.settings.models.a.cmd -m" in {note.setting for note in report.notes}


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("1h", 3600), ("90min", 5400), ("1h 30min", 5400), ("2 days", 172800), ("45", 45), ("soon", None), ("1y", None)],
)
def test_spans_of_systemd(span: str, seconds: int | None) -> None:
    """As systemd.time has them."""
    assert seconds_of(span) == seconds


# llama-swap -----------------------------------------------------------------------------------------------------------


def llama(file: str, program: str = "llama-server") -> dict[str, str]:
    return {"cmd": f"{program} --port ${{PORT}} -m {file} -c 4096"}


def test_the_program_that_most_models_had_is_the_engines() -> None:
    """And of others it is said that they are not used."""
    new, older = "/opt/new/llama-server", "/opt/old/llama-server"
    report = swap({"models": {"a": llama("/a.gguf", new), "b": llama("/b.gguf", older), "c": llama("/c.gguf", new)}})
    assert report.config["engines"]["llama_server"]["binary"] == new
    (note,) = report.of(Fate.DROPPED)
    assert note.setting == f"models.b.cmd {older}"


def test_groups_pin_what_was_persistent_and_nothing_else() -> None:
    """Members of others share the budget."""
    groups = {"x": {"persistent": True, "members": ["a"]}, "y": {"swap": True, "members": ["b", "nobody"]}}
    report = swap({"models": {"a": llama("/a.gguf"), "b": llama("/b.gguf")}, "groups": groups})
    assert report.config["models"]["a"]["pinned"] is True
    assert "pinned" not in report.config["models"]["b"]
    assert [note.setting for note in report.of(Fate.DROPPED)] == ["groups.y.members nobody"]


def test_a_context_that_nobody_named_is_spoken_of() -> None:
    """llama-server and gpud differ about what that means, so that nobody is surprised."""
    cmd = "llama-server --port ${PORT} -m /a.gguf"
    said = [note.setting for note in swap({"models": {"a": {"cmd": cmd}}}).of(Fate.DROPPED)]
    assert said == ["models.a.cmd without a context"]
    env = {"cmd": cmd, "env": ["LLAMA_ARG_CTX_SIZE=512"]}
    assert swap({"models": {"a": env}}).of(Fate.DROPPED) == ()


@pytest.mark.parametrize(
    ("ttl", "globally", "model", "idle"),
    [(None, None, None, "never"), (0, 60, "never", 60), (-1, 60, None, 60), (30, 0, 30, "never")],
)
def test_timers(ttl: int | None, globally: int | None, model: object, idle: object) -> None:
    """A model's own, everybody's, and that llama-swap unloads nothing by itself."""
    document: dict[str, Any] = {"models": {"a": llama("/a.gguf") | ({} if ttl is None else {"ttl": ttl})}}
    if globally is not None:
        document["globalTTL"] = globally
    config = swap(document).config
    assert config["models"]["a"].get("idle_timeout") == model
    assert config["idle"]["timeout"] == idle


def test_a_fixed_port_becomes_the_one_that_gpud_chooses() -> None:
    """Wherever it stands in the command of a program of one's own, and nowhere else."""
    model = {"cmd": "serve --listen 127.0.0.1:9233 -p 9233:8080 --seed 92330", "proxy": "http://localhost:9233"}
    command = swap({"models": {"a": model}}).config["models"]["a"]["command"]
    assert command == ["serve", "--listen", "127.0.0.1:${port}", "-p", "${port}:8080", "--seed", "92330"]


def test_names_that_gpud_does_not_allow_are_mended_and_said() -> None:
    """Each stays a name of its own."""
    report = swap({"models": {"a b": llama("/1.gguf"), "a-b": llama("/2.gguf"), "all": llama("/3.gguf")}})
    assert list(report.config["models"]) == ["a-b", "a-b-2", "all-model"]
    assert len([note for note in report.of(Fate.CHANGED) if "its name is" in note.why]) == 3


# Ollama and containers ------------------------------------------------------------------------------------------------

DURATIONS = [
    ("5m", 300),
    ("1h30m", 5400),
    ("90", 90),
    ("-1", -1),
    ("-1s", -1),
    ("1.5h", 5400),
    ("500ms", 0.5),
    ("x", None),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_durations_of_go(text: str, seconds: float | None) -> None:
    """And plain seconds."""
    assert go_seconds(text) == seconds


KEPT = [("10m", 600), ("-1", "never"), ("-5m", "never"), ("0", 1), ("24h", 86400), ("long", None)]


@pytest.mark.parametrize(("text", "kept"), KEPT)
def test_how_long_ollama_kept_a_model(text: str, kept: object) -> None:
    """Never and at once are said in gpud's words: 0 means never here."""
    draft = Draft("test", known("input"))
    ollama_variables.put(draft, [(Where("input", 1), "OLLAMA_KEEP_ALIVE", text)], "")
    assert draft.get(("engines", "ollama", "defaults", "idle_timeout")) == kept
    settle(draft)


HOSTS = [
    ("127.0.0.1:11434", None, None),
    ("0.0.0.0", None, None),
    (":8000", None, 8000),
    ("http://localhost:8000/", None, 8000),
    ("[::1]:8000", "::1", 8000),
    ("a:b:c", None, None),
]


@pytest.mark.parametrize(("text", "host", "port"), HOSTS)
def test_where_ollama_listened(text: str, host: str | None, port: int | None) -> None:
    """That is where its clients will find gpud."""
    report = settle(containers.draft(f"OLLAMA_HOST={text}\n", known("input")))
    door = report.config.get("http", {}).get("ollama", {})
    assert (door.get("host"), door.get("port")) == (host, port)
    assert report.notes


def test_what_the_image_takes_is_said_where_its_variables_say_nothing() -> None:
    """Its own model, its context and all layers."""
    model = settle(containers.draft("CONTEXT_SIZE=\nN_GPU_LAYERS=40\n", known("input"))).config["models"]
    assert model["qwen3-vl-30b-a3b-instruct-q4_k_m"]["layers"] == 40
    assert model["qwen3-vl-30b-a3b-instruct-q4_k_m"]["context"] == 8192


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("${X:-/d.gguf}", "/d.gguf"),
        ("${MODELS}/a.gguf", "/mnt/models/a.gguf"),
        ("$MODELS/a.gguf", "/mnt/models/a.gguf"),
        ("${X-/d.gguf}", "/d.gguf"),
        ("/a${MODELS:+b}.gguf", "/ab.gguf"),
        ("/a$$b.gguf", "/a$b.gguf"),
    ],
)
def test_what_compose_fills_in(text: str, file: str) -> None:
    """As compose does it."""
    document = {"services": {"s": {"image": "llama.cpp", "environment": {"LLAMA_ARG_MODEL": text}}}}
    (model,) = settle(containers.draft(json.dumps(document), known("input"))).config["models"].values()
    assert model["file"] == file


def test_what_compose_cannot_fill_in_is_refused() -> None:
    """With the variable's name and its place."""
    document = json.dumps({"services": {"s": {"image": "llama.cpp", "environment": ["LLAMA_ARG_MODEL=${X}"]}}})
    with pytest.raises(ConfigInvalid, match=r"input:1:\d+: services.s.LLAMA_ARG_MODEL: the variable X is not set here"):
        containers.draft(document, known("input"))
