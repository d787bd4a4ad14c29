"""Listens to llama-server's output: how far a load is, what it is going to take, and which lines are worth keeping.

Understands the lines that a llama-server prints for a parent which started it with LLAMA_SERVER_ROUTER_PORT
(``cmd_child_to_router:state:{json}``). They are undocumented: a line that is not understood is a line of output, and
nothing more.
"""

import json
import re
from collections.abc import Callable, Mapping

from gpud.backends import failures
from gpud.backends.llama_record import RecordReader
from gpud.backends.runner import Announcement
from gpud.core.ports import Progress, Stream
from gpud.core.quote import Estimate

PROTOCOL = "cmd_child_to_router:"
_STATE = PROTOCOL + "state:"

_STAGES = {
    "text_model": "loading weights",
    "spec_model": "loading draft model",
    "mmproj_model": "loading projector",
}
WARMING_UP = "warming up"

_PREFIX = re.compile(r"^(?:\d+\.\d+\.\d+\.\d+ )?(?P<level>[DIWE]) (?:\w+ +)?(?=\S)")

_KEPT = re.compile(
    r"buffer size|offloaded \d+/\d+ layers|using device|flash.attention (?:en|dis)abled|flash_attn +=|model loaded"
    r"|listening on|n_ctx +=|loading model '|n_slots = |KV self size|kv_cache: size",
    re.IGNORECASE,
)
"""Of what an engine says at level info, this tells somebody how a model runs; the rest is a hundred lines a load and
ten a request."""

_CHATTER = re.compile(
    r"^(?:[a-z]\w*: |(?:slot|srv|que) +\w|INFO: |Llama\.generate: |Model metadata: |CPU : |Using |Available |\.+$|\t)"
)
"""Without a level (old builds, llama-cpp-python): what a function says of itself, what a web server logs."""


class Listener:
    """Hears every line of one engine. Hand :meth:`line` to the launcher."""

    def __init__(
        self,
        report: Callable[[Progress], None] | None = None,
        record: RecordReader | None = None,
        sized: Callable[[Estimate], None] | None = None,
    ) -> None:
        """``sized`` is told at once what the engine is about to allocate, when ``record`` has read it."""
        self.announcement = Announcement()
        self._report = report
        self._record = record
        self._sized = sized
        self._in_example = False

    def line(self, stream: Stream, text: str) -> bool:  # noqa: ARG002 - builds differ in which stream they use
        """True keeps the line out of the journal."""
        if text.startswith(PROTOCOL):
            self._hear(text)
            return True
        if not text.strip():
            return True
        self._read_record(text)
        prefix = _PREFIX.match(text)
        said = text[prefix.end() :] if prefix else text
        return self._is_chatter(prefix["level"] if prefix else "", said)

    def _hear(self, text: str) -> None:
        if not text.startswith(_STATE):
            self.announcement.hear(ready=text[len(PROTOCOL) :].strip() == "ready")
            return
        try:
            message = json.loads(text[len(_STATE) :])
            state, payload = message["state"], message.get("payload")
        except (ValueError, TypeError, KeyError, AttributeError):
            # A long model name can make the last announcement longer than a line may be.
            state, payload = "ready" if text.startswith(_STATE + '{"state":"ready"') else "", None
        self.announcement.hear(ready=state == "ready")
        if self._report is not None and state == "loading" and isinstance(payload, dict):
            progress = _progress(payload)
            if progress is not None:
                self._report(progress)

    def _read_record(self, text: str) -> None:
        if self._record is None or self._sized is None:
            return
        estimate = self._record.line(text)
        if estimate is not None:
            self._record = None
            self._sized(estimate)

    def _is_chatter(self, level: str, said: str) -> bool:
        if not level:
            # What belongs to a long line before it; anything else without a level may be somebody's last words.
            if self._in_example:
                return True
            return bool(_CHATTER.match(said)) and not _KEPT.search(said) and not failures.sounds_bad(said)
        self._in_example = "example_format: '" in said
        return level in "ID" and _KEPT.search(said) is None


def _progress(payload: Mapping[str, object]) -> Progress | None:
    stages = payload.get("stages")
    current = payload.get("current")
    value = payload.get("value")
    if not isinstance(stages, list) or current not in stages or not isinstance(value, int | float):
        return None
    share = min(max(float(value), 0.0), 1.0)
    done = stages.index(current)
    fraction = (done + share) / len(stages)
    if fraction >= 1.0:
        return Progress(WARMING_UP, 1.0)
    return Progress(_STAGES.get(str(current), f"loading {current}"), fraction)
