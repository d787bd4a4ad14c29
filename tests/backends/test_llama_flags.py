"""The command line for one model, for the flags that an old and a new build of llama-server know."""

import place
import pytest

from gpud.backends.llama_flags import Flags, Place, check_environment, check_settings, command_line
from gpud.core.errors import BackendFailed
from gpud.core.facts import EngineSettings, Model
from gpud.core.record import replace

OLD = Flags.parse(place.HELP_OLD.read_text())
NEW = Flags.parse(place.HELP_NEW.read_text())
SOCKET = Place(socket="/run/gpud/tiny-1.sock")
PORT = Place(port=40123)
HOST_SOCKET = Place(socket="/run/gpud/tiny-1.sock", on_gpu=False)

EVERYTHING = EngineSettings(
    file="/m/tiny.gguf",
    context=8192,
    layers="35",
    threads=6,
    parallel=2,
    batch=1024,
    micro_batch=256,
    cache_type_k="q8_0",
    cache_type_v="q4_0",
    flash_attention="on",
    continuous_batching=False,
    cpu_moe=12,
    override_tensor=r"blk\.1\..*=CPU",
    mmproj="/m/projector.gguf",
    draft_file="/m/draft.gguf",
    chat_template="chatml",
    extra_flags=("--temp", "1.2"),
)


def line(settings: EngineSettings, flags: Flags, where: Place) -> list[str]:
    model = Model("tiny", "llama_server", settings, aliases=("small",))
    return list(command_line(("llama-server",), model, settings.file, where, flags))


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_a_new_build_gets_every_setting_by_its_own_name() -> None:
    """Golden: all per-model settings, on a GPU, over a Unix socket."""
    assert line(EVERYTHING, NEW, SOCKET) == [
        "llama-server",
        *("--model", "/m/tiny.gguf"),
        *("--alias", "tiny"),
        *("--host", "/run/gpud/tiny-1.sock"),
        *("--ctx-size", "8192"),
        *("--fit", "off"),
        *("--gpu-layers", "35"),
        *("--n-cpu-moe", "12"),
        *("--override-tensor", r"blk\.1\..*=CPU"),
        *("--threads", "6"),
        *("--parallel", "2"),
        *("--batch-size", "1024"),
        *("--ubatch-size", "256"),
        "--no-cont-batching",
        *("--cache-type-k", "q8_0"),
        *("--cache-type-v", "q4_0"),
        *("--flash-attn", "on"),
        *("--mmproj", "/m/projector.gguf"),
        *("--model-draft", "/m/draft.gguf"),
        *("--spec-type", "draft-simple"),
        *("--chat-template", "chatml"),
        "--offline",
        "--no-ui",
        "--metrics",
        "--slots",
        *("--cache-ram", "512"),
        *("--temp", "1.2"),
    ]


def test_an_old_build_gets_the_same_in_its_own_way() -> None:
    """Golden: a bare -fa, no --fit, no socket, no levels of verbosity."""
    settings = replace(EVERYTHING, cpu_moe=None, override_tensor=None, mmproj="")
    assert line(settings, OLD, PORT) == [
        "llama-server",
        *("--model", "/m/tiny.gguf"),
        *("--alias", "tiny"),
        *("--host", "127.0.0.1"),
        *("--port", "40123"),
        *("--ctx-size", "8192"),
        *("--gpu-layers", "35"),
        *("--threads", "6"),
        *("--parallel", "2"),
        *("--batch-size", "1024"),
        *("--ubatch-size", "256"),
        "--no-cont-batching",
        *("--cache-type-k", "q8_0"),
        *("--cache-type-v", "q4_0"),
        "--flash-attn",
        *("--model-draft", "/m/draft.gguf"),
        *("--chat-template", "chatml"),
        "--no-webui",
        "--metrics",
        *("--temp", "1.2"),
    ]


def test_a_model_without_settings_has_its_context_and_layers_pinned() -> None:
    """Nothing is left to the engine's own idea of what fits."""
    argv = line(EngineSettings(file="/m/tiny.gguf"), NEW, SOCKET)
    assert after(argv, "--ctx-size") == "4096"
    assert after(argv, "--fit") == "off"
    assert after(argv, "--gpu-layers") == "auto"


@pytest.mark.parametrize(
    ("layers", "flags", "expected"),
    [
        (None, NEW, "auto"),
        ("auto", NEW, "auto"),
        ("all", NEW, "all"),
        ("-1", NEW, "all"),
        ("99", NEW, "99"),
        ("0", NEW, "0"),
        (None, OLD, "999"),
        ("all", OLD, "999"),
        ("22", OLD, "22"),
    ],
)
def test_layers_follow_the_build(layers: str | None, flags: Flags, expected: str) -> None:
    """Old builds know numbers only."""
    assert after(line(EngineSettings(file="/m/a.gguf", layers=layers), flags, PORT), "--gpu-layers") == expected


def test_a_model_on_the_host_keeps_off_the_gpu() -> None:
    """No layer and no device, whatever was configured for a GPU."""
    argv = line(EVERYTHING, NEW, HOST_SOCKET)
    assert after(argv, "--gpu-layers") == "0"
    assert after(argv, "--device") == "none"
    assert "--n-cpu-moe" not in argv
    assert "--override-tensor" not in argv


@pytest.mark.parametrize(
    ("wanted", "flags", "expected"),
    [
        ("on", NEW, ["--flash-attn", "on"]),
        ("off", NEW, ["--flash-attn", "off"]),
        ("auto", NEW, ["--flash-attn", "auto"]),
        ("on", OLD, ["--flash-attn"]),
        ("off", OLD, []),
        ("auto", OLD, []),
    ],
)
def test_flash_attention_has_a_value_or_is_a_switch(wanted: str, flags: Flags, expected: list[str]) -> None:
    """The same flag changed its shape between builds."""
    with_it = line(EngineSettings(file="/m/a.gguf", flash_attention=wanted), flags, PORT)
    without = line(EngineSettings(file="/m/a.gguf"), flags, PORT)
    assert len(with_it) - len(without) == len(expected)
    assert " ".join(expected) in " ".join(with_it)


def test_extra_flags_come_last_and_unchanged() -> None:
    """They are arguments, not a shell's words."""
    flags = ("--temp", "1.2", "--grammar", "root ::= [a-z ]+; $(id)")
    argv = line(EngineSettings(file="/m/a.gguf", extra_flags=flags), NEW, SOCKET)
    assert tuple(argv[-4:]) == flags


@pytest.mark.parametrize(("template", "flag"), [("chatml", "--chat-template"), ("/m/a.jinja", "--chat-template-file")])
def test_a_chat_template_is_a_name_or_a_file(template: str, flag: str) -> None:
    """An absolute path names a file."""
    assert after(line(EngineSettings(file="/m/a.gguf", chat_template=template), NEW, SOCKET), flag) == template


@pytest.mark.parametrize(
    ("settings", "name", "flag"),
    [
        (EngineSettings(file="/m/a.gguf", cpu_moe=3), "n_cpu_moe", "--n-cpu-moe"),
        (EngineSettings(file="/m/a.gguf", override_tensor="x=CPU"), "override_tensor", "--override-tensor"),
        (EngineSettings(file="/m/a.gguf", mmproj="/m/p.gguf"), "mmproj", "--mmproj"),
        (EngineSettings(file="/m/a.gguf", chat_template="/m/t"), "chat_template", "--chat-template-file"),
    ],
)
def test_a_setting_that_the_build_cannot_follow_is_an_error(settings: EngineSettings, name: str, flag: str) -> None:
    """Leaving it out in silence would load something else than was asked for."""
    with pytest.raises(BackendFailed) as failure:
        line(settings, OLD, PORT)
    assert failure.value.kind == "bad-flag"
    assert failure.value.preflight
    assert failure.value.message == f'cannot load "tiny": llama-server does not know {flag}, which {name} asks for'


@pytest.mark.parametrize("flag", ["--port", "--host", "--model", "-m", "--api-key=x", "--alias", "--tools", "--rpc"])
def test_flags_that_are_not_the_users_are_refused(flag: str) -> None:
    """Those that gpud sets, and those that let clients reach the machine."""
    with pytest.raises(BackendFailed) as failure:
        check_settings(Model("tiny", "llama_server", EngineSettings(file="/m/a.gguf", extra_flags=(flag, "1"))))
    assert failure.value.preflight
    assert flag.partition("=")[0] in failure.value.message


@pytest.mark.parametrize("name", ["LLAMA_API_KEY", "LLAMA_ARG_TOOLS", "LLAMA_ARG_MCP_SERVERS_CONFIG", "LLAMA_ARG_HOST"])
def test_variables_that_do_the_same_are_refused(name: str) -> None:
    """Every flag of llama-server has a variable."""
    with pytest.raises(BackendFailed, match=name):
        check_environment(Model("tiny", "llama_server"), ((name, "1"),))


def test_other_variables_are_the_users() -> None:
    """TF32, backends' own switches, threads."""
    model, own = Model("tiny", "llama_server"), (("CUDA_ALLOW_TF32", "1"), ("LLAMA_ARG_TOP_K", "3"))
    check_environment(model, own)
    with pytest.raises(BackendFailed, match="LLAMA_ARG_PORT"):
        check_environment(model, (*own, ("LLAMA_ARG_PORT", "1")))


def test_every_name_of_a_flag_is_found() -> None:
    """Names may share a line with others, with a placeholder, or with nothing."""
    assert NEW.first("-nocb") == "-nocb"
    assert NEW.by_name["--no-webui"].names == ("--ui", "--webui", "--no-ui", "--no-webui")
    assert NEW.by_name["-md"].value == "FNAME"
    assert NEW.by_name["-ot"].value == "<tensor name pattern>=<buffer type>,..."
    assert not OLD.takes_value("-fa")
    assert NEW.takes_value("-fa")
    assert not Flags.parse("Segmentation fault\n")


def test_embeddings_and_reranking_are_switches() -> None:
    """Under whichever name the build knows."""
    argv = line(EngineSettings(file="/m/a.gguf", embeddings=True, reranking=True), OLD, PORT)
    assert "--embeddings" in argv
    assert "--reranking" in argv


def test_several_gpus_get_their_shares() -> None:
    """One GPU has no share, and the host none; what the user says comes last and wins."""
    where = Place(port=1, split=(3.0, 1.0))
    settings = EngineSettings(file="/m/tiny.gguf", extra_flags=("-ts", "1,1"))
    argv = line(settings, NEW, where)
    assert argv[argv.index("--tensor-split") + 1] == "3,1"
    assert argv[-2:] == ["-ts", "1,1"]
    for other in (replace(where, split=(1.0,)), replace(where, on_gpu=False)):
        assert "--tensor-split" not in line(settings, NEW, other)


def test_an_engine_that_shall_tell_has_nothing_left_to_fit() -> None:
    """Fitting is what tells; with context and layers pinned it changes nothing. Without it both are the engine's."""
    settings = EngineSettings(file="/m/tiny.gguf")
    argv = line(settings, NEW, replace(PORT, tells=True))
    assert argv[argv.index("--fit") + 1] == "on"
    assert argv[argv.index("--gpu-layers") + 1] == "all"
    assert "--ctx-size" in argv
    argv = line(settings, NEW, PORT)
    assert argv[argv.index("--fit") + 1] == "off"
    assert argv[argv.index("--gpu-layers") + 1] == "auto"
    assert "--fit" not in line(settings, OLD, replace(PORT, tells=True))
