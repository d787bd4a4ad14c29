"""What is put from Ollama's words into an engine's, and back: durations, options, bodies, streams."""

import json
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.core.facts import EngineSettings, Model
from gpud.core.naming import listed_name, ollamas_own_name
from gpud.http.ollama_answers import Events, Reading
from gpud.http.ollama_asking import shortened
from gpud.http.ollama_models import human_number
from gpud.http.ollama_passage import for_ollama
from gpud.http.ollama_requests import Chat, Message, chat_body, duration_s
from gpud.http.shapes import HttpError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (90, 90.0),
        (1.5, 1.5),
        (-1, inf),
        ("5m", 300.0),
        ("5m0s", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("300ms", 0.3),
        ("1500us", 0.0015),
        ("2562047h47m16.854775807s", inf),
        ("-1ns", inf),
        ("-1m", inf),
        ("0", 0.0),
        ("60", 60.0),
        (1e300, inf),
    ],
)
def test_a_duration_is_read_as_go_writes_it(text: float | str, seconds: float) -> None:
    """Numbers are seconds; what is negative, or ten years and more, means for ever."""
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "5", "m5", "5m later", "nan", "5 m", "1h-5m", "5mm"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With what it was; a bare number in quotes is taken for seconds."""
    if text == "5":
        assert duration_s(text) == 5.0
        return
    with pytest.raises(HttpError) as caught:
        duration_s(text)
    assert caught.value.status == 400


def body_with(**options: Any) -> dict[str, Any]:
    body = chat_body(Chat(messages=[Message("user", "x")], options=options))
    return {name: value for name, value in body.items() if name not in ("messages", "stream", "stream_options")}


def test_options_are_called_what_engines_call_them() -> None:
    """What concerns the load, and what is of the past, stays behind."""
    assert body_with(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.7,
        repeat_penalty=1.1,
        repeat_last_n=64,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        num_keep=4,
        seed=7,
        num_predict=10,
        stop=["a", "b"],
        num_ctx=2048,
        num_gpu=99,
        num_thread=4,
        mirostat=2,
    ) == {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.7,
        "repeat_penalty": 1.1,
        "repeat_last_n": 64,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "n_keep": 4,
        "seed": 7,
        "max_tokens": 10,
        "stop": ["a", "b"],
    }


def test_what_means_no_limit_is_not_said() -> None:
    """-1 as the seed and as the number of tokens is the engine's default; null is nothing."""
    assert body_with(seed=-1, num_predict=-1, temperature=None, stop="end") == {"stop": ["end"]}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, None),
        ("", None),
        ("json", {"type": "json_object"}),
        ({"type": "object"}, {"type": "json_schema", "json_schema": {"name": "format", "schema": {"type": "object"}}}),
    ],
)
def test_a_format_is_a_response_format(asked: Any, expected: Any) -> None:
    """ "json", or a schema."""
    assert chat_body(Chat(messages=[Message("user", "x")], format=asked)).get("response_format") == expected


# For Ollama itself ---------------------------------------------------------------------------------------------------


def ollamas(**settings: Any) -> Model:
    return Model("chatty", "ollama", EngineSettings(ollama_name="someone/other:v1", **settings))


def test_ollama_is_asked_by_its_own_name_and_never_how_long_or_how_to_load() -> None:
    """Also not in another spelling, which Go would take; what was loaded with a context is asked with that one."""
    body = (
        b'{"Model":"x","model":"chatty","KEEP_ALIVE":5,"keep_alive":0,"messages":[{"role":"user","content":"\\u00e9"}],'
        b'"options":{"num_ctx":9,"num_gpu":1,"num_thread":2,"main_gpu":1,"num_batch":3,"use_mmap":false,"seed":1.50},'
        b'"big":123456789012345678901234567890}'
    )
    sent = for_ollama(body, ollamas(context=2048, threads=4), attached=False)
    assert json.loads(sent) == {
        "model": "someone/other:v1",
        "messages": [{"role": "user", "content": "é"}],
        "options": {"seed": 1.5, "num_ctx": 2048},
        "big": 123456789012345678901234567890,
    }
    assert b'"seed":1.50' in sent
    assert json.loads(for_ollama(b'{"model":"chatty"}', ollamas(), attached=False)) == {"model": "someone/other:v1"}
    sent = for_ollama(b'{"options":null}', ollamas(threads=4), attached=True)
    assert json.loads(sent) == {"model": "someone/other:v1", "options": {"num_thread": 4}}


@pytest.mark.parametrize(
    "text", ["llama3", "LLAMA3:latest", "library/llama3", "registry.ollama.ai/library/llama3:latest"]
)
def test_ollamas_names_are_compared_with_their_defaults(text: str) -> None:
    """Host, namespace and tag may be left out, and case does not matter."""
    assert ollamas_own_name(text) == "llama3:latest"


def test_a_listed_name_has_a_tag() -> None:
    """A colon of a host's port is none."""
    assert [listed_name(name) for name in ("a", "a:b", "h:1/a", "h:1/a:b")] == [
        "a:latest",
        "a:b",
        "h:1/a:latest",
        "h:1/a:b",
    ]


# Answers -------------------------------------------------------------------------------------------------------------

STREAM = (
    b': a comment\n\ndata: {"choices":[{"delta":{"content":"\xc3\xa9"}}]}\r\n\r\nevent: x\n'
    b'data:{"choices":[{"delta":{"content":"b","reasoning_content":"c"},"finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    """In the middle of a letter, too."""
    reading = Reading()
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [part for start, end in pairwise(edges) for part in reading.feed(STREAM[start:end])]
    assert [(part.content, part.thinking) for part in parts] == [("é", ""), ("b", "c")]
    assert (reading.prompt_tokens, reading.generated_tokens, reading.done_reason) == (3, 2, "length")


def test_a_line_without_end_is_not_held() -> None:
    """One byte too many."""
    events = Events(limit_bytes=10)
    assert list(events.feed(b"data: 1234")) == []
    with pytest.raises(HttpError) as caught:
        list(events.feed(b"5"))
    assert caught.value.status == 502


def test_a_shortened_embedding_has_length_one() -> None:
    """As many dimensions as asked; with none asked, or more than there are, it is as it was."""
    assert shortened([3.0, 4.0, 9.0], 2) == [0.6, 0.8]
    assert shortened([3.0, 4.0], 0) == shortened([3.0, 4.0], 5) == [3.0, 4.0]
    assert shortened([0.0, 0.0, 1.0], 2) == [0.0, 0.0]


def test_parameters_are_counted_as_ollama_writes_them() -> None:
    """Billions with one place, millions with two."""
    numbers = (999, 123_456, 134_515_008, 8_030_261_248, 7_000_000_000)
    assert [human_number(number) for number in numbers] == ["999", "123K", "134.52M", "8.0B", "7B"]
