"""What is heard in a llama-server's output, and what of it is kept."""

import json

import pytest

from gpud.backends.llama_output import Listener
from gpud.core.ports import Progress, Stream

MIB = 1 << 20


def state(name: str, payload: object = None) -> str:
    return f"cmd_child_to_router:state:{json.dumps({'state': name, 'payload': payload})}"


def loading(current: str, value: object, stages: tuple[str, ...] = ("text_model", "mmproj_model")) -> str:
    return state("loading", {"stages": list(stages), "current": current, "value": value})


def test_progress_spans_all_stages() -> None:
    """A model with a projector is half loaded when its weights are."""
    told: list[Progress] = []
    listener = Listener(told.append)
    for line in (loading("text_model", 0.0), loading("text_model", 0.5), loading("mmproj_model", 0.5)):
        assert listener.line(Stream.OUT, line)
    assert listener.line(Stream.OUT, loading("mmproj_model", 1.0))
    assert told == [
        Progress("loading weights", 0.0),
        Progress("loading weights", 0.25),
        Progress("loading projector", 0.75),
        Progress("warming up", 1.0),
    ]
    assert listener.announcement.heard
    assert not listener.announcement.ready.is_set()


@pytest.mark.parametrize(
    "line",
    [
        state("ready", {"id": "tiny"}),
        state("ready"),
        "cmd_child_to_router:ready",
        'cmd_child_to_router:state:{"state":"ready","payload":{"id":"xxxxxxxx [cut, the line had 9000 bytes]',
    ],
)
def test_an_announcement_is_understood_in_every_form(line: str) -> None:
    """Also without a payload, in an older form, and cut short."""
    listener = Listener()
    assert listener.line(Stream.OUT, line)
    assert listener.announcement.ready.is_set()


@pytest.mark.parametrize(
    "line",
    [
        "cmd_child_to_router:state:{nonsense",
        "cmd_child_to_router:state:[1]",
        "cmd_child_to_router:something new",
        state("sleeping"),
        loading("text_model", None),
        loading("other", 0.5),
        state("loading", "soon"),
        state("loading", {"stages": 1, "current": [], "value": 0}),
    ],
)
def test_a_protocol_of_the_future_is_neither_progress_nor_output(line: str) -> None:
    """It may change with any build."""
    told: list[Progress] = []
    listener = Listener(told.append)
    assert listener.line(Stream.OUT, line)
    assert told == []
    assert not listener.announcement.ready.is_set()


def test_what_was_allocated_where_is_kept() -> None:
    """A build that says it has told how a model runs."""
    listener = Listener()
    for line in (
        "0.00.100.001 I load_tensors:   CPU_Mapped model buffer size =   281.81 MiB",
        "0.00.100.002 I load_tensors:        CUDA0 model buffer size =  4155.99 MiB",
        "0.00.100.003 I llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB",
        "0.00.100.004 I llama_memory_recurrent:  CUDA1 RS buffer size =    18.50 MiB",
        "0.00.100.005 I llama_context:  CUDA_Host  output buffer size =     0.49 MiB",
        "sched_reserve:      CUDA0 compute buffer size =   258.50 MiB",
        "0.00.100.006 I load_tensors: offloaded 33/33 layers to GPU",
    ):
        assert not listener.line(Stream.ERR, line), line


@pytest.mark.parametrize(
    "line",
    [
        "",
        "0.00.016.953 I srv  init_listene: api_keys: ****k",
        "0.00.020.731 I llama_model_loader: - kv   1:            general.type str              = model",
        "0.00.021.732 I print_info: no_alloc              = 0",
        "0.01.021.413 I slot launch_slot_: id  3 | task 1 | processing task, is_child = 0",
        "0.01.009.420 I srv  update_slots: all slots are idle",
        "\trepeat_last_n = 64, repeat_penalty = 1.000",
        "llama_model_loader: - kv   0:                       general.architecture str              = llama",
        "slot launch_slot_: id  0 | task 0 | processing task",
        'INFO:     127.0.0.1:51234 - "GET /v1/models HTTP/1.1" 200 OK',
    ],
)
def test_chatter_stays_out_of_the_journal(line: str) -> None:
    """A hundred lines a load and ten a request, and the end of a key."""
    assert Listener().line(Stream.ERR, line)


@pytest.mark.parametrize(
    "line",
    [
        "0.00.020.261 I srv    load_model: loading model '/m/tiny.gguf'",
        "0.00.025.650 I resolve_fused_ops: Flash Attention enabled",
        "0.00.004.004 W srv  llama_server: something to know",
        "0.00.006.085 E gguf_init_from_reader: failed to read magic",
        "0.00.063.288 I srv  llama_server: listening on unix:///run/x.sock",
        "CUDA error: out of memory",
        "/src/ggml.c:3206: GGML_ASSERT(x) failed",
        "llama_model_load: error loading model: unknown model architecture: 'x'",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "Traceback (most recent call last):",
        '  File "/x.py", line 3, in <module>',
        "ValueError: Model path does not exist: /m/a.gguf",
    ],
)
def test_what_tells_something_is_kept(line: str) -> None:
    """How a model runs, and everything that may be wrong."""
    assert not Listener().line(Stream.ERR, line)


def test_a_line_of_several_is_one_line() -> None:
    """The example of a chat template is printed with its line breaks; what follows it is not lost."""
    listener = Listener()
    lines = [
        "0.00.061.674 I srv          init: init: chat template, example_format: 'system: You are helpful",
        "user: Hello",
        "assistant: '",
        "0.00.063.086 E srv          init: oh",
        "Aborted",
    ]
    assert [listener.line(Stream.ERR, line) for line in lines] == [True, True, True, False, False]
