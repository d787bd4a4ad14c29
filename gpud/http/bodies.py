"""Says where a body ends: after so many bytes, with its last chunk, or with its connection. It never does I/O."""

import re
from typing import Any

import httptools

from gpud.http.fields import Malformed, blame, is_field, shown
from gpud.http.limits import LARGEST_CHUNK_LINE_BYTES, LARGEST_TRAILER_BYTES

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,12}")
_CHUNK_EXTENSIONS = re.compile(rb"[\t ]*;[\t -~]*")

_SIZE, _DATA, _BREAK, _TRAILER = range(4)

_sizes: dict[bytes, int] = {}
"""Chunk sizes that were read and found good, so that most need no second look; bounded."""

_SIZES_KEPT = 4096


def _chunk_size(line: bytes) -> int:
    """The size that a chunk's line says. Raises Malformed."""
    found = _CHUNK_SIZE.match(line)
    if found is None or len(line) > LARGEST_CHUNK_LINE_BYTES:
        raise Malformed(f"the chunk size {shown(line)} cannot be read")
    if found.end() == len(line):
        size = int(line, 16)
        if len(_sizes) < _SIZES_KEPT and size:
            _sizes[line] = size
        return size
    if _CHUNK_EXTENSIONS.fullmatch(line, found.end()) is None:
        raise Malformed(f"the chunk size {shown(line)} cannot be read")
    return int(found[0], 16)


class ChunkedReader:
    """Takes the chunked coding off a body, however its bytes are split. ``ended`` once the last chunk was read."""

    __slots__ = ("_at", "_left", "_line", "_trailer_bytes", "ended")

    def __init__(self) -> None:
        self._at = _SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0
        self.ended = False

    def feed(self, data: bytes, found: list[bytes]) -> int:
        """Read on; what belongs to the body is appended. The count of bytes read: all, unless the body ended before.

        Raises Malformed.
        """
        place, end = 0, len(data)
        while place < end:
            if self._at == _SIZE and not self._line:
                place = self._whole_chunks(data, place, found)
                if place == end:
                    break
            if self._at == _DATA:
                piece = data[place : place + self._left]
                found.append(piece)
                place += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._at = _BREAK
                continue
            line_end = data.find(b"\n", place)
            stop = line_end + 1 if line_end >= 0 else end
            line = self._line + data[place:stop]
            place = stop
            if line_end < 0:
                self._keep(line)
                break
            if not line.endswith(b"\r\n"):
                raise Malformed("a line of the chunked body does not end with CR LF")
            self._line = b""
            self._take(line[:-2])
            if self.ended:
                break
        return place

    @staticmethod
    def _whole_chunks(data: bytes, place: int, found: list[bytes]) -> int:
        """Chunks that are here completely and written as nearly all are. Where the first other one begins."""
        end, find, sizes = len(data), data.find, _sizes
        while place < end:
            line_end = find(b"\r\n", place, place + 16)
            size = sizes.get(data[place:line_end], 0) if line_end > 0 else 0
            after = line_end + size + 4
            if not size or after > end or data[after - 2 : after] != b"\r\n":
                break
            found.append(data[line_end + 2 : after - 2])
            place = after
        return place

    def _keep(self, line: bytes) -> None:
        """Remember the begin of a line, unless it can become none."""
        largest = LARGEST_TRAILER_BYTES if self._at == _TRAILER else LARGEST_CHUNK_LINE_BYTES
        if self._at == _BREAK and line != b"\r":
            raise Malformed("a chunk is longer than its size says")
        if self._at == _SIZE and _CHUNK_SIZE.match(line) is None:
            raise Malformed(f"the chunk size {shown(line)} cannot be read")
        if len(line) > largest + 1:
            raise Malformed(f"a line of the chunked body is longer than {largest} bytes")
        self._line = line

    def _take(self, line: bytes) -> None:
        """One complete line that is not data."""
        if self._at == _BREAK:
            if line:
                raise Malformed("a chunk is longer than its size says")
            self._at = _SIZE
        elif self._at == _SIZE:
            self._left = _chunk_size(line)
            self._at = _DATA if self._left else _TRAILER
        elif line:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > LARGEST_TRAILER_BYTES:
                raise Malformed(f"the trailer is larger than {LARGEST_TRAILER_BYTES >> 10} KiB")
            if not is_field(line):
                raise Malformed(blame(line + b"\r\n"))
        else:
            self.ended = True


class LengthReader:
    """Reads a body whose length was said."""

    __slots__ = ("ended", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.ended = not length

    def feed(self, data: bytes, found: list[bytes]) -> int:
        if len(data) < self.left:
            self.left -= len(data)
            found.append(data)
            return len(data)
        taken = self.left
        if taken:
            found.append(data if taken == len(data) else data[:taken])
        self.left = 0
        self.ended = True
        return taken


class EndlessReader:
    """Reads a body that ends with its connection."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False

    def feed(self, data: bytes, found: list[bytes]) -> int:
        found.append(data)
        return len(data)


class AnswerChunks:
    """Takes the chunked coding off an engine's answer, by llhttp: it reads a stream's many small chunks five times as
    fast. Where in the data the body ended it does not say, which matters to requests alone: behind an answer nothing
    may come. ``feed`` tells of more by reading less than it was given.
    """

    __slots__ = ("_found", "_parser", "ended", "on_body")

    def __init__(self) -> None:
        self.ended = False
        self._found: list[bytes] = []
        self.on_body = self._found.append
        self._parser: Any = httptools.HttpResponseParser(self)
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def on_message_complete(self) -> None:
        self.ended = True

    def on_message_begin(self) -> None:
        if self.ended:
            raise Malformed("something comes behind the last chunk")

    def feed(self, data: bytes, found: list[bytes]) -> int:
        """Read on; what belongs to the body is appended. Raises Malformed."""
        used = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            if not self.ended:
                raise Malformed(f"{problem}") from None
            used = 0
        finally:
            # What came before a mistake is good.
            found += self._found
            self._found.clear()
        if self.ended:
            # The parser knows this object: let go, so that neither waits for the collector.
            self._parser = None
            if data.endswith(b"\n\r\n\r\n") or not data.endswith(b"\n"):
                used = 0
        return used


BodyReader = ChunkedReader | AnswerChunks | LengthReader | EndlessReader
