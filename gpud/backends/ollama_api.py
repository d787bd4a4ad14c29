"""What gpud says to an Ollama server, and what its answers mean; keeps no state.

Models are always named: a request with an empty name is answered with "not found" and unloads nothing.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

from gpud.backends.call import Answer, Trouble, Unreachable, request
from gpud.backends.failures import classify
from gpud.backends.ollama_store import Name, same_name
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint
from gpud.core.record import Record

CONTROL_TIMEOUT_S = 3.0
"""How long a server may take over a question that needs no model. It answers in a millisecond, but holds its list of
models back for a moment while one of them is being loaded or let go."""

_LACK_OF_MEMORY = (
    "out of memory",
    "out of device memory",
    "out_of_device_memory",
    "erroroutofmemory",
    "malloc failed",
    "failed to allocate",
    "unable to allocate",
    "allocation failed",
    "not enough memory",
    "insufficient memory",
    "more system memory",
)
_UNFIT = ("failed to load model", "unable to load model", "incompatible", "unsupported", "no longer compatible")
_FROM_BLOB = re.compile(r"^FROM\s+\S*sha256[:-]([0-9a-fA-F]{64})\s*$", re.MULTILINE)


class Listed(Record):
    """A loaded model as ``/api/ps`` shows it. ``overdue``: its time is up and it is still there."""

    name: str
    overdue: bool


async def version(endpoint: Endpoint, timeout_s: float) -> str:
    """Raises Unreachable."""
    answer = await request(endpoint, "GET", "/api/version", timeout_s=timeout_s)
    content = _object(answer)
    if answer.status != HTTPStatus.OK or not isinstance(content.get("version"), str):
        raise Unreachable(f"GET /api/version: answered {answer.status}, not as Ollama does", Trouble.GARBAGE)
    return str(content["version"])


async def load(
    endpoint: Endpoint, name: Name, *, embeddings: bool, options: Mapping[str, object], timeout_s: float
) -> None:
    """Returns when the model is loaded, to stay; raises Unreachable, or BackendFailed with what Ollama said.

    Ollama gives a load up when the connection of the one who asked for it is closed.
    """
    body: dict[str, object] = {"model": str(name), "keep_alive": -1}
    if options:
        body["options"] = dict(options)
    if not embeddings:
        answer = await request(endpoint, "POST", "/api/generate", body=body | {"stream": False}, timeout_s=timeout_s)
        if answer.status != HTTPStatus.BAD_REQUEST or "does not support generate" not in error_text(answer):
            return _accept(answer, name)
    # A model that only embeds refuses to generate before it is loaded; without input it is loaded and nothing is done.
    return _accept(await request(endpoint, "POST", "/api/embed", body=body, timeout_s=timeout_s), name)


async def expire(endpoint: Endpoint, name: Name) -> bool:
    """Ask for a model to be unloaded once no request uses it. False: Ollama does not know the name (any more)."""
    body = {"model": str(name), "keep_alive": 0, "stream": False}
    answer = await request(endpoint, "POST", "/api/generate", body=body, timeout_s=CONTROL_TIMEOUT_S)
    if answer.status == HTTPStatus.NOT_FOUND:
        return False
    _accept(answer, name, doing="unload")
    return True


async def listed(endpoint: Endpoint) -> tuple[Listed, ...]:
    """The models that are loaded now; one that is still being loaded is not among them. Raises Unreachable."""
    answer = await request(endpoint, "GET", "/api/ps", timeout_s=CONTROL_TIMEOUT_S)
    models = _object(answer).get("models")
    if answer.status != HTTPStatus.OK or not isinstance(models, list):
        raise Unreachable(f"GET /api/ps: answered {answer.status}, not as Ollama does", Trouble.GARBAGE)
    return tuple(
        Listed(str(entry.get("name") or entry.get("model") or ""), _is_past(entry.get("expires_at")))
        for entry in models
        if isinstance(entry, dict)
    )


async def tags(endpoint: Endpoint) -> list[dict[str, object]]:
    """What the server's store has, in its own words. Raises Unreachable."""
    answer = await request(endpoint, "GET", "/api/tags", timeout_s=CONTROL_TIMEOUT_S)
    models = _object(answer).get("models")
    return [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []


async def find(endpoint: Endpoint, name: Name) -> Listed | None:
    """The entry of one model in :func:`listed`."""
    return next((entry for entry in await listed(endpoint) if same_name(entry.name, name)), None)


async def weights(endpoint: Endpoint, name: Name) -> str:
    """The digest (hex) of the file that the model is loaded from, or empty where the server does not tell."""
    try:
        answer = await request(endpoint, "POST", "/api/show", body={"model": str(name)}, timeout_s=CONTROL_TIMEOUT_S)
        match = _FROM_BLOB.search(str(_object(answer).get("modelfile", "")))
    except Unreachable:
        return ""
    return match[1].lower() if match else ""


async def is_processing(port: int) -> bool | None:
    """Whether the runner on that loopback port works on a request; None when it is a kind that does not tell."""
    try:
        answer = await request(Endpoint(host="127.0.0.1", port=port), "GET", "/slots", timeout_s=CONTROL_TIMEOUT_S)
        slots = answer.json()
    except Unreachable:
        return None
    if answer.status != HTTPStatus.OK or not isinstance(slots, list):
        return None
    return any(isinstance(slot, dict) and slot.get("is_processing") is True for slot in slots)


def error_text(answer: Answer) -> str:
    """What Ollama complains of, in its words; its errors may come with status 200."""
    try:
        content = answer.json()
    except Unreachable:
        content = None
    if isinstance(content, dict) and isinstance(content.get("error"), str):
        return str(content["error"])
    if answer.status == HTTPStatus.OK:
        return ""
    return answer.body[:200].decode(errors="replace").strip() or f"status {answer.status}"


def lacks_memory(text: str) -> bool:
    folded = text.casefold()
    return any(sign in folded for sign in _LACK_OF_MEMORY)


def _accept(answer: Answer, name: Name, doing: str = "load") -> None:
    """Raises BackendFailed for an answer that refuses, Unreachable for one that Ollama never gives."""
    said = error_text(answer)
    if answer.status == HTTPStatus.OK and not said:
        answer.json()
        return
    what = f'Ollama cannot {doing} "{name}": {said}'
    folded = said.casefold()
    if lacks_memory(said):
        hint = "lower its context or its layers, or unload another model (gpudctl unload NAME)"
        raise BackendFailed(what, hint=hint, kind="oom")
    if answer.status == HTTPStatus.NOT_FOUND or "not found" in folded:
        raise BackendFailed(what, hint=f"get it with: ollama pull {name}", kind="model-missing")
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        hint = "it has too many requests waiting: try again later, or raise OLLAMA_MAX_QUEUE in its environment"
        raise BackendFailed(what, hint=hint, kind="overloaded")
    if any(sign in folded for sign in _UNFIT):
        hint = f"get it anew with: ollama pull {name}; or update Ollama"
        raise BackendFailed(what, hint=hint, kind="bad-model")
    failure = classify((said,))
    if failure is not None:
        raise BackendFailed(f"{what} ({failure.sentence})", hint=failure.hint, kind=failure.kind)
    raise BackendFailed(what, hint="its last lines may say more", kind="refused")


def _object(answer: Answer) -> dict[str, object]:
    content = answer.json()
    return content if isinstance(content, dict) else {}


def _is_past(stamp: object) -> bool:
    if not isinstance(stamp, str):
        return False
    # Ollama writes nanoseconds and, for "never", years that a datetime still holds; the seconds are enough here.
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)$", stamp)
    if match is None:
        return False
    try:
        moment = datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00"))
    except ValueError:
        return False
    return moment < datetime.now(UTC)
