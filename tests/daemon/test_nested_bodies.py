"""A body that is nested more deeply than anybody can mean is refused in words, by every route that reads one."""

import pytest

from .doors import open_doors, talker
from .harness import Place

DEPTH = 100_000
"""Python 3.13 reads ten thousand; 3.11 does not read a thousand."""

DEEP = b'{"model": "tiny", "prompt": "x", "messages": [], "options": ' + b'{"a": ' * DEPTH + b"1" + b"}" * (DEPTH + 1)

FRONT = ("/v1/chat/completions", "/v1/messages", "/completion", "/models/load", "/models/unload", "/switch", "/unload")
OLLAMA = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/api/delete", "/api/copy")


@pytest.mark.parametrize("which", ["front", "management", "ollama"])
def test_nobody_is_told_of_the_interpreter(place: Place, which: str) -> None:
    """400 and what is wrong with it, where the body is read; nowhere a sentence about recursion, and nowhere a 500."""
    doors = open_doors(place)
    place.configure({"tiny": talker(place)})
    daemon = place.start()
    door = {"front": doors.front, "management": doors.management, "ollama": doors.ollama}[which]
    paths = {"front": FRONT, "management": (), "ollama": OLLAMA}[which]
    if which == "management":
        described = door.ask("/openapi.json").value["paths"]
        paths = tuple(path for path, methods in described.items() if "requestBody" in methods.get("post", {}))
        assert len(paths) > 3, described.keys()
    told = {}
    for path in paths:
        method = "DELETE" if path == "/api/delete" else "POST"
        told[path] = door.ask(path.replace("{id}", "1").replace("{model}", "tiny"), DEEP, method=method)
    for path, answer in told.items():
        assert answer.status in (200, 400, 404), (path, answer)
        assert b"recursion" not in answer.body.lower(), (path, answer.body)
    assert any(b"nested too deeply" in answer.body for answer in told.values())
    daemon.aftermath(spare="tiny")
