"""The beginning of a model file on a server: as much of it as says what the model needs, and not a weight.

What was read lies in a file that looks as long as the real one and takes a few MB, so that whatever reads model files
reads this one.
"""

import os
import struct
from pathlib import Path

from gpud.pulling.problems import Broken, DownloadFailed
from gpud.pulling.web import Answer, Web, refusal

LIMIT_BYTES = 64 << 20
"""The vocabulary makes most of it: 10 MB is much."""

CHUNK_BYTES = 256 << 10
LONGEST_FILE_BYTES = 1 << 43
"""Eight TB: file systems have limits, also for files with nothing in them."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


def copy_header(web: Web, url: str, into: Path, size_bytes: int, *, token: str = "") -> int:
    """Copies the header of the file, and returns how many bytes came. Raises DownloadFailed, NotAllowed, Broken."""
    name = into.name
    if not 0 < size_bytes <= LONGEST_FILE_BYTES:
        raise DownloadFailed(f'"{name}" says that it has {size_bytes:,} bytes')
    asked = {"Range": f"bytes=0-{min(size_bytes, LIMIT_BYTES) - 1}"}
    with web.get(url, asked, token=token) as answer, into.open("xb") as file:
        if answer.status not in (200, 206):
            raise refusal(answer, f'"{name}"')
        if answer.encoding:
            raise DownloadFailed(f'{answer.host} sends "{name}" packed ({answer.encoding[:40]})')
        tap = _Tap(answer, file.fileno(), name)
        _walk(tap)
        os.ftruncate(file.fileno(), max(size_bytes, tap.come_bytes))
        return tap.come_bytes


class _Tap:
    """What comes is kept in the file, and taken piece by piece. It is closed long before all has come."""

    def __init__(self, answer: Answer, fd: int, name: str) -> None:
        self._answer = answer
        self._fd = fd
        self._name = name
        self._window = b""
        self._at = 0
        self.come_bytes = 0

    def take(self, count: int) -> bytes:
        while len(self._window) - self._at < count:
            self._more()
        data = self._window[self._at : self._at + count]
        self._at += count
        return data

    def skip(self, count: int) -> None:
        while len(self._window) - self._at < count:
            count -= len(self._window) - self._at
            self._at = len(self._window)
            self._more()
        self._at += count

    def _more(self) -> None:
        if self.come_bytes >= LIMIT_BYTES:
            raise self.bad(f"its header is longer than {LIMIT_BYTES >> 20} MiB")
        data = self._answer.read(CHUNK_BYTES)
        if not data:
            raise Broken(f'{self._answer.host} broke off in the header of "{self._name}"')
        os.write(self._fd, data)
        self.come_bytes += len(data)
        self._window = self._window[self._at :] + data
        self._at = 0

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack(self.take(form.size))
        return int(value)

    def bad(self, what: str) -> DownloadFailed:
        return DownloadFailed(f'"{self._name}" is no GGUF file that can be read: {what}')


def _walk(tap: _Tap) -> None:
    """To the end of the header. What is wrong in it is for the real reader to say; here it only has to end."""
    if tap.take(4) != b"GGUF":
        raise tap.bad("it does not begin like one")
    if (version := tap.number(_U32)) not in (2, 3):
        raise tap.bad(f"it has version {version}")
    tensors, pairs = tap.number(_U64), tap.number(_U64)
    for _ in range(pairs):
        tap.skip(tap.number(_U64))
        _skip_value(tap, tap.number(_U32))
    for _ in range(tensors):
        tap.skip(tap.number(_U64))
        dimensions = tap.number(_U32)
        if dimensions > _MOST_DIMENSIONS:
            raise tap.bad(f"a tensor has {dimensions} dimensions")
        tap.skip(dimensions * _U64.size + _U32.size + _U64.size)


def _skip_value(tap: _Tap, kind: int) -> None:
    if kind == _STRING:
        tap.skip(tap.number(_U64))
    elif kind == _ARRAY:
        inner, count = tap.number(_U32), tap.number(_U64)
        if inner == _STRING:
            for _ in range(count):
                tap.skip(tap.number(_U64))
        elif inner in _SCALAR_BYTES:
            tap.skip(count * _SCALAR_BYTES[inner])
        else:
            raise tap.bad(f"it has an array of the type {inner}")
    elif kind in _SCALAR_BYTES:
        tap.skip(_SCALAR_BYTES[kind])
    else:
        raise tap.bad(f"it has a value of the type {kind}")
