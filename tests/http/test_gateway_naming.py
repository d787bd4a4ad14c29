"""Which model a body means, and the one value in it that may be replaced: whatever the body is like."""

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.http.naming import MOST_FIELDS, SLICE_BYTES, Asked, read_body, read_json, read_large, with_model, without_own
from gpud.http.shapes import HttpError

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=10,
)
bodies = st.dictionaries(st.text() | st.sampled_from(("stream", "messages")), values, max_size=5)
layouts = st.sampled_from(({"indent": None}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}))
JSON = "application/json"


@settings(deadline=None)
@given(bodies, st.text(), st.integers(0, 5), layouts)
def test_the_model_is_found_and_nothing_but_it_is_replaced(
    body: dict[str, Any], name: str, place: int, layout: dict[str, Any]
) -> None:
    """Wherever it stands, however it is written, and whatever else has its name further down."""
    body.pop("model", None)
    members = list(body.items())
    members.insert(min(place, len(members)), ("model", name))
    text = json.dumps(dict(members), **layout).encode("utf-8", "surrogatepass")
    asked = read_json(text)
    assert asked.model == name
    assert asked.stream is (body.get("stream") is True)
    changed = with_model(text, JSON, "the engine's")
    assert json.loads(changed) == dict(members) | {"model": "the engine's"}
    was, now = json.dumps(name, ensure_ascii=layout.get("ensure_ascii", True)).encode(), b'"the engine\'s"'
    assert len(changed) == len(text) - len(was) + len(now)
    start = next(at for at in range(len(text)) if text[at] != changed[at : at + 1][0]) if name != "the engine's" else 0
    assert changed[:start] == text[:start]


@settings(deadline=None)
@given(bodies, layouts)
def test_a_body_without_a_model_gets_one(body: dict[str, Any], layout: dict[str, Any]) -> None:
    """At its beginning; null counts as none."""
    body.pop("model", None)
    text = json.dumps(body, **layout).encode()
    assert read_json(text).model == ""
    assert json.loads(with_model(text, JSON, "x")) == {"model": "x"} | body
    assert json.loads(with_model(b'{"model": null}', JSON, "x")) == {"model": "x"}


@pytest.mark.parametrize("body", [b"", b"  \n"])
def test_nothing_at_all_says_nothing(body: bytes) -> None:
    """A POST without a body is for the default model."""
    assert read_json(body).model == ""
    assert with_model(body, JSON, "x") == body


@settings(deadline=None)
@given(bodies, bodies, st.text(), st.text())
def test_two_models_are_refused(before: dict[str, Any], after: dict[str, Any], one: str, other: str) -> None:
    """Also where both are the same, and where the second is written with escapes."""
    before.pop("model", None)
    after.pop("model", None)
    for key in ('"model"', '"\\u006dodel"', '"m\\u006Fdel"'):
        first = json.dumps({**before, "model": one})
        second = json.dumps(after)[1:-1]
        text = f"{first[:-1]},{key}:{json.dumps(other)}{',' + second if second else ''}}}"
        with pytest.raises(HttpError):
            read_json(text.encode())


@pytest.mark.parametrize("second", [b'"model"', b'"mod\\u0065l"'])
@pytest.mark.parametrize("before", range(-8, 2))
def test_a_second_model_is_found_wherever_slices_meet(before: int, second: bytes) -> None:
    """Also where it begins in one slice and ends in the next, by both readers."""
    opening = b'{"model":"a","prompt":"'
    filling = b"x" * (SLICE_BYTES + before - len(opening) - 2)
    body = opening + filling + b'",' + second + b':"b"}'
    for read in (lambda: read_json(body), lambda: asyncio.run(read_large(body, JSON))):
        with pytest.raises(HttpError, match="more than once"):
            read()


def test_a_large_body_is_read_as_a_small_one_and_lets_others_go_on() -> None:
    """The loop has a turn for each slice."""
    body = b'{"stream":true,"model":"a","prompt":"' + b"x" * (5 * SLICE_BYTES) + b'"}'
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def scene() -> Asked:
        other = asyncio.create_task(others())
        found = await read_large(body, JSON)
        other.cancel()
        await asyncio.wait((other,))
        return found

    assert asyncio.run(scene()) == read_json(body) == Asked("a", stream=True)
    assert turns >= 5


def test_a_body_made_to_be_slow_is_not() -> None:
    """Millions of small things with escapes cost what reading them costs."""
    text = b'{"model":"tiny","x":[' + b'["\\u0061"],' * 400_000 + b"1]}"
    began = time.process_time()
    assert read_json(text).model == "tiny"
    assert time.process_time() - began < 30


def form(*fields: tuple[str, bytes], boundary: str = "b") -> bytes:
    parts = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in fields
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=b"


@settings(deadline=None)
@given(st.binary().filter(lambda data: b"\r\n--b" not in data), st.text("acd/.:-", max_size=10))
def test_the_model_of_a_form_is_found_and_replaced(file: bytes, name: str) -> None:
    """Whatever the file beside it contains."""
    body = form(('name="file"; filename="a.wav"', file), ('name="model"', name.encode()), ('name="stream"', b"true"))
    asked = read_body(body, FORM)
    assert (asked.model, asked.stream) == (name, True)
    changed = form(('name="file"; filename="a.wav"', file), ('name="model"', b"x"), ('name="stream"', b"true"))
    assert with_model(body, FORM, "x") == changed


def test_a_form_without_a_model_gets_one() -> None:
    """Before its other fields."""
    body = form(('name="language"', b"de"))
    changed = with_model(body, FORM, "x")
    assert read_body(changed, FORM).model == "x"
    assert changed.endswith(body)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(('name="model"', b"a"), ('name="model"', b"b")), FORM),
        (form(('name="model"', b"\xff")), FORM),
        (form(('name="model"', b"a"))[:-10], FORM),
        (b"nothing", FORM),
        (form(("name=x", b"")), "multipart/form-data"),
        (form(*[('name="x"', b"")] * (MOST_FIELDS + 1)), FORM),
    ],
    ids=["twice", "not-utf8", "cut-off", "no-boundary-in-it", "no-boundary", "too-many"],
)
def test_a_form_that_cannot_be_understood_is_refused(body: bytes, content_type: str) -> None:
    """With 400."""
    with pytest.raises(HttpError) as refused:
        read_body(body, content_type)
    assert refused.value.status == 400


def test_only_what_is_meant_for_gpud_leaves_the_query() -> None:
    """The rest keeps its order and its escapes."""
    assert without_own("a=%20&model=x&b&load=true&models=1&progress=") == "a=%20&b&models=1"
    assert without_own("") == ""
