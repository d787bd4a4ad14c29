"""The end of an answer that passes: where it stands in a stream, and how many tokens it says that it took."""

import re

from gpud.http.exchange import Exchange

TAIL_BYTES = 4 << 10
"""How much of an answer's end is looked at for the tokens that it took."""

_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens|tokens_evaluated)"\s*:\s*(\d{1,12})\b')
_GENERATED = re.compile(rb'"(?:completion_tokens|output_tokens|tokens_predicted)"\s*:\s*(\d{1,12})\b')
# llama-server says these also where a stream has no usage; a prompt that was in its cache is counted apart.
_TIMINGS = re.compile(rb'"(cache_n|prompt_n|predicted_n)"\s*:\s*(\d{1,12})\b')


class AnswerEnd:
    """Keeps the first and the last piece of an answer while it passes, for the tokens that it took."""

    __slots__ = ("_first", "_pieces", "_size")

    def __init__(self) -> None:
        self._first = b""
        self._pieces: list[bytes] = []
        self._size = 0

    def see(self, piece: bytes) -> None:
        pieces = self._pieces
        if not pieces:
            self._first = piece[:TAIL_BYTES]
        pieces.append(piece)
        self._size += len(piece)
        if self._size > 4 * TAIL_BYTES:
            whole = b"".join(pieces)[-TAIL_BYTES:]
            pieces[:] = (whole,)
            self._size = len(whole)

    def tail(self) -> bytes:
        """What passed last."""
        return b"".join(self._pieces)

    @property
    def is_between_events(self) -> bool:
        end = b"".join(self._pieces[-4:])[-4:]
        return not end or end.endswith((b"\n\n", b"\r\n\r\n"))

    def settle(self, exchange: Exchange) -> None:
        """Tell the exchange what was found."""
        if not self._pieces:
            return
        end = b"".join(self._pieces)[-TAIL_BYTES:]
        self._pieces.clear()
        # (``in`` takes bytes for a number first, which costs three times the search.)
        if end.find(b"token") < 0 and end.find(b"_n") < 0 and self._first.find(b"token") < 0:
            # What no model generated: a look through 4 KB for each of four patterns would take 20 µs.
            return
        prompt = _PROMPT.findall(end) or _PROMPT.findall(self._first)
        generated = _GENERATED.findall(end)
        if prompt and generated:
            exchange.prompt_tokens, exchange.generated_tokens = int(prompt[-1]), int(generated[-1])
            return
        timings = {name: int(number) for name, number in _TIMINGS.findall(end)}
        if prompt:
            exchange.prompt_tokens = int(prompt[-1])
        elif b"prompt_n" in timings:
            exchange.prompt_tokens = timings[b"prompt_n"] + timings.get(b"cache_n", 0)
        exchange.generated_tokens = int(generated[-1]) if generated else timings.get(b"predicted_n")
