"""Whatever is sent to the routes about gpud itself: it is refused with a reason, or done. Never a 500, never a hang."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import House, chatting_house, house
from layer.raw import connected
from test_inference import Engine

from gpud.core.facts import Model

Run = Callable[..., Any]
A = Model("Alpha-8B", "fake")

VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 1.5, 1 << 40, 1 << 70, 10**400, 1e308),
    *("", "x" * 300, "²", "9" * 5000, "0" * 5000, "\0", "\ud800", "../../etc/passwd", "all", "-1", "NaN"),
    *([], [[]], {}, {"model": "x"}),
)
FIELDS = (
    "model",
    "model_id",
    "model_path",
    "backend",
    "engines",
    "service",
    "priority",
    "gpu_layers",
    "params",
    "wait",
    "wait_seconds",
    "evict",
    "force",
    "why",
    "for_seconds",
    "prompt",
    "messages",
    "max_tokens",
    "options",
)
BODIES = (
    b"",
    b" ",
    b"null",
    b"[]",
    b'"x"',
    b"5",
    b"{",
    b'{"model": "Alpha-8B"',
    b'{"model": "\xff"}',
    b"\xef\xbb\xbf{}",
    b"{'model': 1}",
    b'{"model": NaN}',
    b'{"model": 1e999}',
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 100_000,
    b'{"model": "a", "model": "b"}',
    b"\0" * 100,
)
QUERIES = ("limit", "format", "backend", "model", "model_id", "model_path", "context", "layers", "types", "shape")


async def is_answered(found: House, door: str, what: str, body: bytes) -> None:
    method, _, path = what.partition(" ")
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with connected(found.socket(door)) as client:
        answer = await client.ask(head + body, method)
    assert answer.status < 500 or answer.status == 507, f"{what} {body[:80]!r}: {answer.status} {answer.body[:200]!r}"
    if answer.status >= 400:
        assert json.loads(answer.body)["error"]["message"]


def changes(found: House, door: str) -> list[str]:
    """Every POST without a stream; what gives the GPUs away would make all that follows 503."""
    return [
        f"POST {route.path.replace('{model...}', 'x')}"
        for route in found.routes[door]
        if route.method == "POST" and route.path not in ("/yield",)
    ]


@pytest.mark.parametrize("door", ["front", "management"])
def test_bad_bodies_are_refused(run: Run, tmp_path: Path, door: str) -> None:
    """Bytes that are no JSON, no object, or too deep."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            for what in changes(found, door):
                for body in BODIES:
                    await is_answered(found, door, what, body)

    run(work())


@pytest.mark.parametrize("field", FIELDS)
def test_bad_values_are_refused(run: Run, tmp_path: Path, field: str) -> None:
    """Each field of each body with values that it cannot have."""

    async def work() -> None:
        async with chatting_house(tmp_path, Engine(), A) as (found, _):
            for door in ("front", "management"):
                for what in changes(found, door):
                    for value in VALUES:
                        await is_answered(found, door, what, json.dumps({field: value}).encode())
            for value in VALUES:
                if field in ("why", "for_seconds") and value is not None:
                    await is_answered(found, "management", "POST /yield", json.dumps({field: value}).encode())
                    await is_answered(found, "management", "POST /resume", b"")

    run(work())


@pytest.mark.parametrize("name", QUERIES)
def test_bad_queries_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    """Each parameter with values that it cannot have."""
    values = ("", "x", "-1", "0", "1" * 400, "%00", "%FF", "%ED%A0%80", "..%2F..", "%C2%B2", "1e3", "NaN", "a&" + name)

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            for path in ("/models", "/vram/budget", "/explain", "/logs"):
                for value in values:
                    await is_answered(found, "management", f"GET {path}?{name}={value}", b"")
            for value in values:
                if value and name in ("types", "shape"):
                    await is_answered(found, "management", f"GET /events?{name}={value}", b"")

    run(work())


@pytest.mark.parametrize("path", ["/models/{}", "/jobs/{}", "/logs/stream/{}"])
def test_bad_paths_are_refused(run: Run, tmp_path: Path, path: str) -> None:
    """What stands for a model or a job."""

    async def work() -> None:
        async with house(tmp_path, A) as (found, _):
            for word in ("%00", "..", "%2e%2e", "%2F", "9" * 400, "0" * 400, "%C2%B2", "%F0%9F%98%80", "a/b/c"):
                await is_answered(found, "management", "GET " + path.format(word), b"")

    run(work())
