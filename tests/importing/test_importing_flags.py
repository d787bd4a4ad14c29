"""What each flag of an engine is here, in all its spellings; and how commands are taken apart."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_cases import given as known

from gpud.backends.llama_flags import Flags
from gpud.config.forbidden import check_flag
from gpud.config.source import Where
from gpud.core.errors import ConfigInvalid
from gpud.importing import hub_flags
from gpud.importing.commands import Program, split, understand, words_of
from gpud.importing.llama_flags import Part, translate
from gpud.importing.llama_variables import as_flags
from gpud.importing.report import Draft, Fate
from gpud.importing.settling import settle

HERE = Where("input", 1, 1)
HELP = Path(__file__).resolve().parent.parent / "backends"


def llama(arguments: str) -> tuple[dict[str, Any], Draft]:
    draft = Draft("test", known("input"))
    path = draft.model("m", HERE, "m")
    draft.put((*path, "engine"), "llama_server", HERE, "m")
    translate(draft, path, [Part(HERE, "cmd", shlex.split(arguments))])
    model = dict(draft.get(path) or {})
    model.pop("engine", None)
    return model, draft


SPELLINGS = [
    ("-m /m/a.gguf", {"file": "/m/a.gguf"}),
    ("--model /m/../m/a.gguf", {"file": "/m/a.gguf"}),
    ("--model=/m/a.gguf", {"file": "/m/a.gguf"}),
    ("-m a.gguf", {"file": "/srv/old/a.gguf"}),
    ("-m ~/a.gguf", {"file": "/home/ada/a.gguf"}),
    ("-c 8192", {"context": 8192}),
    ("--ctx-size 8192", {"context": 8192}),
    ("--ctx_size 8192", {"context": 8192}),
    ("-c 4096 -c 8192", {"context": 8192}),
    ("-c 0", {}),
    ("-ngl 20", {"layers": 20}),
    ("--n-gpu-layers 98", {"layers": 98}),
    ("--gpu-layers 99", {"layers": "all"}),
    ("--n_gpu_layers 9999", {"layers": "all"}),
    ("-ngl -1", {"layers": "all"}),
    ("-ngl auto", {"layers": "auto"}),
    ("-ngl many", {}),
    ("-t 6", {"threads": 6}),
    ("--threads -1", {}),
    ("-np 4", {"parallel": 4}),
    ("--parallel -1", {}),
    ("-b 4096 -ub 1024", {"batch": 4096, "micro_batch": 1024}),
    ("--batch-size 4096 --ubatch-size 1024", {"batch": 4096, "micro_batch": 1024}),
    ("-ctk q8_0 -ctv Q4_0", {"cache_type_k": "q8_0", "cache_type_v": "q4_0"}),
    ("--cache-type-k f16", {"cache_type_k": "f16"}),
    ("-fa", {"flash_attention": "on"}),
    ("-fa --metrics", {"flash_attention": "on"}),
    ("-fa on", {"flash_attention": "on"}),
    ("--flash-attn off", {"flash_attention": "off"}),
    ("--flash-attn 1", {"flash_attention": "on"}),
    ("--flash-attn auto", {"flash_attention": "auto"}),
    ("-cb", {"continuous_batching": True}),
    ("-nocb", {"continuous_batching": False}),
    ("-ncmoe 12", {"cpu_moe": 12}),
    ("--cpu-moe", {"cpu_moe": 999}),
    ("-ot 'a=CPU' --override-tensor 'b=CUDA0'", {"override_tensor": "a=CPU,b=CUDA0"}),
    ("--mmproj /m/p.gguf", {"mmproj": "/m/p.gguf"}),
    ("-md /m/d.gguf", {"draft_file": "/m/d.gguf"}),
    ("--spec-draft-model /m/d.gguf", {"draft_file": "/m/d.gguf"}),
    ("--chat-template chatml", {"chat_template": "chatml"}),
    ("--chat-template-file t.jinja", {"chat_template": "/srv/old/t.jinja"}),
    ("--embedding", {"embeddings": True}),
    ("--rerank", {"reranking": True}),
    ("-a one,two", {"aliases": ["one", "two"]}),
    ("--sleep-idle-seconds 60", {"idle_timeout": 60}),
    ("--fit on --fit-ctx 4096", {"least_context": 4096}),
    ("--device CUDA1", {"gpu": 1}),
    ("--device none", {"gpu": "host"}),
    ("--device CUDA0,CUDA1", {}),
    ("-sm none -mg 2", {"gpu": 2}),
    ("--split-mode row", {"extra_flags": ["--split-mode", "row"]}),
    ("-hf org/repo:Q8_0", {"file": "/var/lib/ml-models/llamacpp/models/repo-Q8_0.gguf"}),
    ("-hfr org/repo-GGUF -hff Q8/x.gguf", {"file": "/var/lib/ml-models/llamacpp/models/x.gguf"}),
    ("-mu https://x.org/a.gguf?download=1", {"file": "/var/lib/ml-models/llamacpp/models/a.gguf"}),
    ("--temp 0.7 -s -1 --no-warmup", {"extra_flags": ["--temp", "0.7", "-s", "-1", "--no-warmup"]}),
    ("--lora l.gguf", {"extra_flags": ["--lora", "/srv/old/l.gguf"]}),
    ("--lora-scaled l.gguf:0.5", {"extra_flags": ["--lora-scaled", "/srv/old/l.gguf:0.5"]}),
    ("--host 0.0.0.0 --port 8080 --metrics --no-webui --jinja --log-disable -lv 4", {}),
    ("--api-key sk-of-somebody --tools all --slot-save-path /tmp -v --ctx-size", {}),
    ("stray", {}),
    ("--hf-token hf_of_somebody", {}),
]


@pytest.mark.parametrize(("arguments", "model"), SPELLINGS, ids=[one for one, _ in SPELLINGS])
def test_a_flag_of_llama_server(arguments: str, model: dict[str, Any]) -> None:
    """It becomes a key, or is passed on, or is said not to be there; it is never lost without a word."""
    found, draft = llama(arguments)
    assert found == model
    said = " ".join(note.setting for note in draft.notes)
    for word in shlex.split(arguments):
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in ("--split-mode", "--device", "--override-tensor"):
            assert flag.replace("_", "-") in said.replace("_", "-"), f"{flag} is mentioned nowhere"


def test_secrets_of_flags_are_not_said() -> None:
    """Neither beside the flag nor later, where they stand elsewhere."""
    _, draft = llama("--api-key sk-of-somebody --temp sk-of-somebody --hf-token hf_of_somebody")
    report = settle(draft)
    assert "somebody" not in report.text + repr(report.notes)


def test_old_names_of_flags_are_passed_on_with_a_word() -> None:
    """The program that was used knows them; a newer one does not."""
    found, draft = llama("-m /m/a.gguf --mlock --no-mmap --draft-max 8")
    assert found["extra_flags"] == ["--mlock", "--no-mmap", "--draft-max", "8"]
    (note,) = [note for note in draft.notes if note.fate is Fate.CHANGED]
    assert "--load-mode mlock" in note.why
    assert "--spec-draft-n-max" in note.why


@pytest.mark.parametrize("file", ["help_new.txt", "help_old.txt"])
def test_every_flag_that_builds_have_is_taken_or_passed_on(file: str) -> None:
    """With a value where it takes one; and what gpud would refuse is never in extra_flags."""
    flags = Flags.parse((HELP / file).read_text())
    assert len(flags.by_name) > 50
    for name, flag in flags.by_name.items():
        found, draft = llama(f"-m /m/a.gguf {name}" + (" 1" if flag.value else ""))
        assert draft.notes, name
        for word in found.get("extra_flags", []):
            check_flag(word)
        settle(draft)


VARIABLES = [
    ("LLAMA_ARG_CTX_SIZE", "8192", ["--ctx-size", "8192"]),
    ("LLAMA_ARG_CONT_BATCHING", "0", ["--no-cont-batching"]),
    ("LLAMA_ARG_EMBEDDINGS", "1", ["--embeddings"]),
    ("LLAMA_ARG_EMBEDDINGS", "0", []),
    ("LLAMA_API_KEY", "x", ["--api-key", "x"]),
    ("LLAMA_ARG_SOMETHING", "1", None),
    ("LLAMA_CACHE", "/x", None),
]


@pytest.mark.parametrize(("name", "value", "flags"), VARIABLES)
def test_variables_of_llama_server(name: str, value: str, flags: list[str] | None) -> None:
    """They say what flags say."""
    assert as_flags(name, value) == flags


HUB = [
    (
        "vllm",
        "Qwen/Qwen3-8B --max-model-len 8192 --max-num-seqs=4",
        {"model": "Qwen/Qwen3-8B", "context": 8192, "parallel": 4},
    ),
    ("vllm", "--model /m/q --dtype auto -tp 2", {"file": "/m/q", "extra_flags": ["--dtype", "auto"]}),
    ("vllm", "./q --gpu-memory-utilization 0.9 --tool-server x", {"file": "/srv/old/q"}),
    ("tgi", "--model-id org/m --max-total-tokens 4096 --num-shard 2", {"model": "org/m", "context": 4096}),
    (
        "python",
        "--model a.gguf --n_ctx 2048 --n_gpu_layers -1 --type_k 8 --flash_attn true --chat_format chatml",
        {
            "file": "/srv/old/a.gguf",
            "context": 2048,
            "layers": "all",
            "cache_type_k": "q8_0",
            "flash_attention": "on",
            "chat_template": "chatml",
        },
    ),
]


@pytest.mark.parametrize(("engine", "arguments", "model"), HUB)
def test_flags_of_other_engines(engine: str, arguments: str, model: dict[str, Any]) -> None:
    """vLLM's, text-generation-inference's and llama-cpp-python's."""
    tables = {"vllm": hub_flags.VLLM, "tgi": hub_flags.TGI, "python": hub_flags.LLAMA_CPP_PYTHON}
    draft = Draft("test", known("input"))
    path = draft.model("m", HERE, "m")
    hub_flags.translate(draft, path, shlex.split(arguments), HERE, "cmd", tables[engine])
    assert draft.get(path) == model


# Commands -------------------------------------------------------------------------------------------------------------


def test_a_command_in_several_lines() -> None:
    """Comments, continued lines, blanks and quotes, as llama-swap reads them."""
    text = """
      # comment ${m}
      llama-server \\
        --a 'x y'   --b "z \\" \\$w"\\
      # another
      --c \\ d"e"'f'
    """
    assert split(text, HERE, "cmd") == ["llama-server", "--a", "x y", "--b", 'z " \\$w', "--c", " def"]


@pytest.mark.parametrize(("text", "said"), [("a 'b", "a quote is not closed"), ('a "b\\', "a quote"), ("a \\", "")])
def test_a_command_with_an_open_quote(text: str, said: str) -> None:
    """It is refused with its place; a backslash at the end of a line is a blank."""
    if not said:
        assert split(text, HERE, "cmd") == ["a"]
        return
    with pytest.raises(ConfigInvalid, match=f"input:1:1: cmd: {said}"):
        split(text, HERE, "cmd")


@given(st.text(alphabet="ab \t\n'\"\\$#", max_size=40))
@settings(max_examples=300, deadline=None)
def test_words_are_those_of_shlex(text: str) -> None:
    """For every text, also for those that are refused."""
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"quote|backslash"):
            words_of(text)
        return
    assert words_of(text) == expected


PROGRAMS = [
    ("llama-server -m a", Program.LLAMA_SERVER, "llama-server"),
    ("/opt/x/llama-server.exe -m a", Program.LLAMA_SERVER, "/opt/x/llama-server.exe"),
    ("llama-server-b1234 -m a", Program.LLAMA_SERVER, "llama-server-b1234"),
    ("env A=1 B=2 exec llama-server -m a", Program.LLAMA_SERVER, "llama-server"),
    ("A=1 llama-server -m a", Program.LLAMA_SERVER, "llama-server"),
    ("env -i llama-server -m a", Program.OTHER, ""),
    ("nice -n 5 llama-server -m a", Program.OTHER, ""),
    ("vllm serve m", Program.VLLM, "vllm"),
    ("vllm bench", Program.OTHER, ""),
    ("/v/bin/python3.12 -m vllm.entrypoints.openai.api_server --model m", Program.VLLM, "/v/bin/python3.12"),
    ("python -m llama_cpp.server --model m", Program.LLAMA_CPP_PYTHON, "python"),
    ("python server.py", Program.OTHER, ""),
    ("text-generation-launcher --model-id m", Program.TGI, "text-generation-launcher"),
    ("docker run x llama-server -m a", Program.OTHER, ""),
]


@pytest.mark.parametrize(("text", "kind", "program"), PROGRAMS)
def test_what_a_command_starts(text: str, kind: Program, program: str) -> None:
    """Only what is known for sure is taken for an engine of gpud's."""
    command = understand(shlex.split(text))
    assert (command.kind, command.program) == (kind, program)
