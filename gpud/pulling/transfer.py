"""Brings one file from a server to a folder: whole and checked, or not at all. Goes on where an earlier try ended."""

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gpud.core.record import Record, repr_without
from gpud.pulling.part import Checksum, Origin, Part, Sum, open_part
from gpud.pulling.problems import Broken, DownloadFailed, WrongContent
from gpud.pulling.web import Answer, Web, host_of, refusal

CHUNK_BYTES = 256 << 10

RESERVE_BYTES = 512 << 20
"""What a download leaves free on the disk: others write there too, and a full disk is their trouble as well."""

LOOK_BYTES = 256 << 20
"""After so many bytes it is looked at again what is free: a download of hours is not alone on the disk."""

TRIES = 5
"""In a row, without a byte between them."""

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
"""Between two tries: the first wait is short, since most breaks are over at once; each later one is twice as long."""

_RANGE = re.compile(r"bytes (?P<first>\d{1,18})-(?P<last>\d{1,18})/(?P<total>\d{1,18}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(?P<total>\d{1,18})")


class Wanted(Record):
    """One file. ``size_bytes`` and ``checksum`` are what somebody vouches for, where somebody does. ``force``: another
    file of its name is replaced.
    """

    url: str
    final: Path
    size_bytes: int | None = None
    checksum: Checksum | None = None
    token: str = ""
    force: bool = False

    def __repr__(self) -> str:
        return repr_without(self, "token")


class Watcher(Protocol):
    """Who is told how it goes."""

    def moved(self, done_bytes: int, total_bytes: int | None) -> None: ...

    def checking(self, done_bytes: int, total_bytes: int) -> None:
        """What is there already is read."""

    def joined(self, done_bytes: int, total_bytes: int | None) -> None:
        """Another process downloads the same file, and is this far."""

    def waiting(self, wait_s: float, why: str) -> None:
        """It broke off, and goes on in so many seconds."""


class Arrived(Record):
    """``was_there``: nothing had to be downloaded. ``sha256`` is empty where another process has downloaded it."""

    path: Path
    size_bytes: int
    sha256: str
    was_there: bool = False


class Transfer:
    """One download. ``run`` is to be called once."""

    def __init__(
        self,
        web: Web,
        wanted: Wanted,
        watcher: Watcher,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        first_wait_s: float = FIRST_WAIT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._web = web
        self._wanted = wanted
        self._watcher = watcher
        self._reserve_bytes = reserve_bytes
        self._first_wait_s = first_wait_s
        self._sleep = sleep
        self._total_bytes = wanted.size_bytes
        self._sum = Sum("sha256", None)
        self._source = hashlib.sha256(wanted.url.encode()).hexdigest()

    @property
    def _name(self) -> str:
        return self._wanted.final.name

    def run(self) -> Arrived:
        """Raises GpudError. What has come by then is kept, unless it is wrong."""
        there = self._there()
        if there is not None:
            return there
        part = open_part(self._wanted.final, lambda done: self._watcher.joined(done, self._wanted.size_bytes))
        if part is None:
            return Arrived(self._wanted.final, self._wanted.final.stat().st_size, "", was_there=True)
        with part:
            try:
                self._bring(part)
                part.arrive()
                return Arrived(self._wanted.final, part.size_bytes, self._sum.sha256)
            except BaseException:
                if not part.size_bytes:
                    part.throw_away()
                raise

    def _bring(self, part: Part) -> None:
        self._take_up(part)
        for tries_left in (1, 0):
            self._fetch(part)
            if self._wanted.checksum is None or self._sum.is_that(self._wanted.checksum):
                return
            self._begin_anew(part)
            if tries_left:
                self._watcher.waiting(0.0, f'the checksum of "{self._name}" is wrong: once more from its beginning')
        raise WrongContent(
            f'"{self._name}" came from {host_of(self._wanted.url)} twice with a checksum that is not '
            f"{self._wanted.checksum.hex if self._wanted.checksum else ''}",
            hint="it was thrown away; the server, or something on the way, changes it",
        )

    # What is there already -------------------------------------------------------------------------------------------

    def _there(self) -> Arrived | None:
        """The file itself, where it is there; raises DownloadFailed for another one of its name."""
        wanted = self._wanted
        try:
            found = wanted.final.stat()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise DownloadFailed(f"cannot look at {wanted.final}: {problem.strerror}") from None
        if wanted.force:
            return None
        if wanted.checksum is None:
            raise DownloadFailed(
                f"{wanted.final} is there already, and nobody says what is in it",
                hint="--force replaces it, --name gives the new one another name",
            )
        counted = Sum(wanted.checksum.kind, found.st_size)
        if wanted.size_bytes in (None, found.st_size):
            try:
                with wanted.final.open("rb") as file:
                    done = 0
                    while block := file.read(1 << 20):
                        counted.add(block)
                        done += len(block)
                        self._watcher.checking(done, found.st_size)
            except OSError as problem:
                raise DownloadFailed(f"cannot read {wanted.final}: {problem.strerror}") from None
            if counted.is_that(wanted.checksum):
                return Arrived(wanted.final, found.st_size, counted.sha256, was_there=True)
        raise DownloadFailed(
            f"{wanted.final} is there already, and is another file",
            hint="choose another folder with --to, or let --force replace it",
        )

    def _take_up(self, part: Part) -> None:
        """Use what an earlier try has left, where it belongs to the same content."""
        mine = self._wanted.checksum.hex if self._wanted.checksum else ""
        old = part.origin
        same = bool(mine) and old.checksum == mine
        same = same or (not mine and not old.checksum and bool(old.validator) and old.source == self._source)
        too_long = self._wanted.size_bytes is not None and part.size_bytes > self._wanted.size_bytes
        if not same or too_long:
            part.begin_anew()
        if self._total_bytes is None and part.size_bytes:
            self._total_bytes = old.size_bytes
        self._count_anew(part)
        validator = old.validator if part.size_bytes and old.source == self._source else ""
        part.comes_from(Origin(self._source, validator, self._total_bytes, mine))
        part.check_space(self._total_bytes, self._reserve_bytes)

    def _count_anew(self, part: Part) -> None:
        kind = self._wanted.checksum.kind if self._wanted.checksum else "sha256"
        self._sum = Sum(kind, self._wanted.size_bytes)
        part.count(self._sum, lambda done: self._watcher.checking(done, part.size_bytes))

    def _begin_anew(self, part: Part) -> None:
        part.begin_anew()
        self._count_anew(part)

    # Trying ----------------------------------------------------------------------------------------------------------

    def _fetch(self, part: Part) -> None:
        """Returns when all of it has come. Raises DownloadFailed after too many tries in vain."""
        failures = 0
        while not self._is_whole(part):
            before = part.size_bytes
            try:
                self._try(part)
                return
            except Broken as problem:
                failures = 1 if part.size_bytes > before else failures + 1
                if failures >= TRIES:
                    of = "" if self._total_bytes is None else f" of {self._total_bytes:,}"
                    raise DownloadFailed(
                        f'cannot go on with "{self._name}" after {part.size_bytes:,}{of} bytes: {problem.why}, '
                        f"{TRIES} times in a row",
                        hint="what has come is kept: run the same command again later",
                    ) from None
                wait_s = min(LONGEST_WAIT_S, self._first_wait_s * 2 ** (failures - 1))
                wait_s = wait_s if problem.after_s is None else problem.after_s
                self._watcher.waiting(wait_s, problem.why)
                self._sleep(wait_s)

    def _is_whole(self, part: Part) -> bool:
        return part.size_bytes > 0 and part.size_bytes == self._wanted.size_bytes

    def _try(self, part: Part) -> None:
        headers = {}
        if part.size_bytes and not part.origin.validator and self._wanted.checksum is None:
            # Nobody could tell whether what follows belongs to what is here.
            self._begin_anew(part)
        if part.size_bytes:
            headers["Range"] = f"bytes={part.size_bytes}-"
            if part.origin.validator:
                headers["If-Range"] = part.origin.validator
        with self._web.get(self._wanted.url, headers, token=self._wanted.token) as answer:
            if answer.status == 416:
                self._out_of_range(part, answer)
                return
            if answer.status not in (200, 206):
                raise refusal(answer, f'"{self._name}"')
            if answer.encoding:
                raise DownloadFailed(
                    f'{answer.host} sends "{self._name}" packed ({answer.encoding[:40]}), which was not asked for',
                    hint="its bytes would not be those of the file; something on the way may do this",
                )
            total = self._begin(part, answer)
            self._receive(part, answer, total)

    def _out_of_range(self, part: Part, answer: Answer) -> None:
        """There is nothing behind what we have: it is whole, or it is not what the server has."""
        found = _UNSATISFIED.fullmatch(answer.header("Content-Range"))
        total = int(found["total"]) if found else None
        if total == part.size_bytes and self._wanted.size_bytes in (None, total):
            return
        self._begin_anew(part)
        raise Broken(f"{answer.host} has no bytes behind those that are here: all of it is asked for again")

    def _begin(self, part: Part, answer: Answer) -> int | None:
        """Make sure that what follows belongs behind what is here; how many bytes there are in all."""
        length = answer.length
        if answer.status == 206:
            found = _RANGE.fullmatch(answer.header("Content-Range"))
            if found is None or int(found["first"]) != part.size_bytes:
                self._begin_anew(part)
                raise Broken(f"{answer.host} sends other bytes than were asked for")
            if self._wanted.checksum is None and validator_of(answer) != part.origin.validator:
                self._begin_anew(part)
                raise Broken(f"{answer.host} has another file there by now")
            total = None if found["total"] == "*" else int(found["total"])
            if total is None and length is not None:
                total = part.size_bytes + length
        else:
            if part.size_bytes:
                self._begin_anew(part)
            total = length
        expected = self._wanted.size_bytes
        if expected is not None and total is not None and total != expected:
            raise DownloadFailed(
                f'{answer.host} has {total:,} bytes of "{self._name}", which should have {expected:,}',
                hint="it may have been changed just now: run the same command again",
            )
        self._total_bytes = expected if expected is not None else total
        mine = part.origin.checksum
        part.comes_from(Origin(self._source, validator_of(answer), self._total_bytes, mine))
        part.check_space(self._total_bytes, self._reserve_bytes)
        return self._total_bytes

    def _receive(self, part: Part, answer: Answer, total: int | None) -> None:
        looked_at = part.size_bytes
        self._watcher.moved(part.size_bytes, total)
        while data := answer.read(CHUNK_BYTES):
            if total is not None and part.size_bytes + len(data) > total:
                self._begin_anew(part)
                raise DownloadFailed(
                    f'{answer.host} sends more than the {total:,} bytes that "{self._name}" has',
                    hint="what has come was thrown away; run the same command again",
                )
            part.write(data, total)
            self._sum.add(data)
            self._watcher.moved(part.size_bytes, total)
            if part.size_bytes - looked_at >= LOOK_BYTES:
                looked_at = part.size_bytes
                part.check_space(total, self._reserve_bytes)
        if total is not None and part.size_bytes < total:
            raise Broken(f"{answer.host} broke off after {part.size_bytes:,} of {total:,} bytes")
        if total is None and not answer.is_chunked and self._wanted.checksum is None:
            raise DownloadFailed(
                f'{answer.host} does not say how long "{self._name}" is: nobody can tell whether it is whole',
                hint="give its checksum with --sha256",
            )


def validator_of(answer: Answer) -> str:
    """The server's word for exactly this content; empty where it has none. A weak one vouches for the meaning alone."""
    tag = answer.header("ETag")
    if tag.startswith('"') and tag.endswith('"') and tag.isascii() and tag.isprintable():
        return tag
    date = answer.header("Last-Modified")
    return date if date.isascii() and date.isprintable() else ""
