"""What is read as a request and what is refused: strictly, and the same however the bytes are split."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpud.http.bodies import AnswerChunks, ChunkedReader
from gpud.http.limits import HeadLimits
from gpud.http.message import Reply, Request
from gpud.http.wire import Fields, Malformed, Refused, read_request_head, read_response_head, write_head

from .raw import BOUND_S, connected, echo, serving

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HOST = b"Host: x\r\n"

SMUGGLING = {
    "both lengths": (
        400,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "both lengths, other order": (
        400,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    ),
    "two lengths": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "two equal lengths": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "a list of lengths": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello"),
    "a signed length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello"),
    "a negative length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello"),
    "a hexadecimal length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello"),
    "a length with an underscore": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\nhello12345"),
    "an endless length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
    "an empty length": (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n"),
    "a length in other digits": (400, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ٥\r\n\r\nhello".encode()),
    "an unknown coding": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "a coding before chunked": (501, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    "chunked twice": (
        400,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "chunked and identity": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n"),
    "a disguised chunked": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunke\r\n\r\n"),
    "chunked behind a vertical tab": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n"),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "a space before the colon": (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n"),
    "a folded line": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n\r\n"),
    "a folded first line": (400, b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
    "a folded line of tabs": (400, b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n"),
    "a bare line feed": (400, b"GET / HTTP/1.1\nHost: x\n\n"),
    "a bare line feed in the header": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\nX-B: c\r\n\r\n"),
    "a bare line feed at its end": (400, b"GET / HTTP/1.1\r\nHost: x\r\n\n"),
    "a bare carriage return": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rX-B: c\r\n\r\n"),
    "a carriage return before the line break": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\r\n\r\n"),
    "a NUL in a value": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n"),
    "a NUL in a name": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX\0A: b\r\n\r\n"),
    "a control character": (400, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x01c\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n"),
    "an empty name": (400, b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n"),
    "a name in quotes": (400, b'GET / HTTP/1.1\r\nHost: x\r\n"X": b\r\n\r\n'),
    "a name beyond ASCII": (400, "GET / HTTP/1.1\r\nHost: x\r\nÄ: b\r\n\r\n".encode()),
    "no Host": (400, b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n"),
    "no header at all": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
    "two equal Hosts": (400, b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"),
    "a Host with a path": (400, b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n"),
    "a Host with a user": (400, b"GET / HTTP/1.1\r\nHost: a@x\r\n\r\n"),
    "a Host with a space": (400, b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n"),
    "a target of another host": (400, b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target with a user": (400, b"GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target of another scheme": (400, b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target without a slash": (400, b"GET x HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a star to GET": (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a target beyond ASCII": (400, "GET /ä HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a tab for a space": (400, b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a space at the end": (400, b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n"),
    "a space at the begin": (400, b" GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a half escape": (400, b"GET /%2 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a wrong escape": (400, b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an escaped NUL": (400, b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an escaped line break": (400, b"GET /%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an escape that is no UTF-8": (400, b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2 in clear": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nHost: x\r\n\r\n"),
    "a lower-case version": (400, b"GET / http/1.1\r\nHost: x\r\n\r\n"),
    "another protocol": (400, b"GET / RTSP/1.0\r\nHost: x\r\n\r\n"),
    "a hello of TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "CONNECT": (501, b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n"),
    "an unknown expectation": (417, b"POST / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n"),
}

BAD_CHUNKS = {
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "a space behind the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\nhello\r\n0\r\n\r\n",
    "an empty size": b"\r\nhello\r\n0\r\n\r\n",
    "no number": b"g\r\nhello\r\n0\r\n\r\n",
    "an endless size": b"fffffffffffffffff\r\nhello",
    "a bare line feed behind the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare line feed behind the data": b"5\r\nhello\n0\r\n\r\n",
    "more data than said": b"5\r\nhelloo\r\n0\r\n\r\n",
    "less data than said": b"5\r\nhell\r\n0\r\n\r\n",
    "a bare line feed at the end": b"5\r\nhello\r\n0\r\n\n",
    "a bare line feed behind the last size": b"0\n\r\n",
    "a carriage return in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a line feed in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;a\0\r\nhello\r\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_an_ambiguous_head_is_refused_and_the_connection_closed(name: str, run: Run) -> None:
    """Whatever could be read in two ways is answered with its status; what follows on the connection is not read."""
    status, request = SMUGGLING[name]
    asked: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        asked.append(request.target)
        await echo(request, reply)

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            good = b"GET /before HTTP/1.1\r\nHost: x\r\n\r\n"
            assert (await client.ask(good)).status == 200
            await client.send(request + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await client.answer()
            assert answer.status == status, answer
            assert answer.headers["connection"] == "close"
            assert len(answer.body) > 10
            assert await client.rest() == b""
        assert asked == ["/before"]

    run(scene())


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_a_bad_chunk_is_refused_and_the_connection_closed(name: str, run: Run) -> None:
    """A body whose end is not certain is no body, and nothing behind it is a request."""
    asked: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        asked.append(request.target)
        await echo(request, reply)

    async def scene() -> None:
        async with serving(handler) as (_, port), connected(port) as client:
            head = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.send(head + BAD_CHUNKS[name] + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close"), answer
            assert await client.rest() == b""
        assert asked == ["/upload"]

    run(scene())


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_an_engine_s_bad_chunk_is_refused(name: str) -> None:
    """The reader of answers is as strict."""
    with pytest.raises(Malformed):
        reader = AnswerChunks()
        found: list[bytes] = []
        reader.feed(BAD_CHUNKS[name], found)
        assert not reader.ended, found
        raise AssertionError(found)


@pytest.mark.parametrize("extra", [b"x", b"\r\n", b"HTTP/1.1 200 OK\r\n", b"\r", b"\r\n\r\n"])
def test_more_than_an_answer_is_noticed(extra: bytes) -> None:
    """Bytes behind the last chunk are told of: the connection is not clean."""
    data = b"5\r\nhello\r\n0\r\n\r\n" + extra
    found: list[bytes] = []
    assert AnswerChunks().feed(data, found) < len(data)
    assert found == [b"hello"]


GOOD = {
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "an absolute target": b"GET http://X:80/a?b HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "an absolute target without a path": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.0 without a Host": b"GET / HTTP/1.0\r\n\r\n",
    "an address of IPv6": b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    "an empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "spaces around a value": b"GET / HTTP/1.1\r\nHost: \t x \t \r\n\r\n",
    "bytes beyond ASCII in a value": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \xe4\xff\r\n\r\n",
    "a line break before it": b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "Chunked in capitals": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    "chunks with extensions and trailers": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n005;a=b\r\nhello\r\n0;c\r\nA: b\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_unusual_but_clear_is_served(name: str, run: Run) -> None:
    """Strict does not mean narrow."""

    async def scene() -> None:
        async with serving(echo) as (_, port), connected(port) as client:
            assert (await client.ask(GOOD[name])).status == 200

    run(scene())


# However it is split --------------------------------------------------------------------------------------------------

WHOLE = (
    b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nyo"
    b"GET /second HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 50 + b"\r\n\r\n"
    b"PUT /third HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"6\r\nhello \r\n10;x=y\r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\n"
    b"DELETE /fourth HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
)
ASKED = [
    "POST /a?b=c hello\r\n\r\nyo",
    "GET /second ",
    "PUT /third hello 0123456789abcdef",
    "DELETE /fourth ",
]


def test_requests_read_the_same_however_they_are_split(run: Run) -> None:
    """Pipelined requests of every kind, cut at any places, are the same requests in the same order."""

    async def scene(cuts: list[int]) -> list[str]:
        async with serving(echo) as (_, port), connected(port) as client:
            places = sorted({0, len(WHOLE), *cuts})
            for start, end in itertools.pairwise(places):
                await client.send(WHOLE[start:end])
                # The server shall see this piece by itself: let it have its turns.
                for _ in range(3):
                    await asyncio.sleep(0)
            return [(await client.answer()).body.decode() for _ in ASKED] + [(await client.rest()).decode()]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
    def check(cuts: list[int]) -> None:
        assert run(scene(cuts)) == [*ASKED, ""]

    check()
    assert run(scene(list(range(len(WHOLE))))) == [*ASKED, ""], "byte by byte"


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body in the chunked coding, and what is in it."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    coded = b""
    for piece in pieces:
        size = b"%x" % len(piece)
        size = draw(st.sampled_from([size, size.upper(), b"0" + size]))
        coded += size + draw(st.sampled_from([b"", b";a", b';a="b c"'])) + b"\r\n" + piece + b"\r\n"
    trailer = draw(st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]))
    return coded + b"0\r\n" + trailer + b"\r\n", b"".join(pieces)


@settings(max_examples=200, deadline=None)
@given(chunked(), st.lists(st.integers(0, 400), max_size=10), st.booleans())
def test_chunks_read_the_same_however_they_are_split(body: tuple[bytes, bytes], cuts: list[int], ours: bool) -> None:
    """Both readers find the same data and the same end, and ours leaves what follows alone."""
    coded, expected = body
    behind = b"GET / HTTP/1.1\r\n" if ours else b""
    whole = coded + behind
    reader = ChunkedReader() if ours else AnswerChunks()
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    found: list[bytes] = []
    read = 0
    for start, end in itertools.pairwise(places):
        if reader.ended:
            break
        read += reader.feed(whole[start:end], found)
    assert (b"".join(found), reader.ended, read) == (expected, True, len(coded))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_garbage_chunks_are_the_same_garbage_however_they_are_split(data: bytes, cuts: list[int]) -> None:
    """What is refused as a whole is refused in pieces, and what is read is read alike."""

    def read(pieces: list[bytes]) -> tuple[bytes, bool] | None:
        reader = ChunkedReader()
        found: list[bytes] = []
        try:
            for piece in pieces:
                if not reader.ended:
                    reader.feed(piece, found)
        except Malformed:
            return None
        return b"".join(found), reader.ended

    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    assert read(pieces) == read([data])


class Heard:
    """What llhttp makes of a request."""

    def __init__(self) -> None:
        self.url = b""
        self.raw: list[tuple[bytes, bytes]] = []
        self.complete = self.keeps_alive = False
        self.parser: Any = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.raw.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True
        # Only here: at the end of a message it is forgotten.
        self.keeps_alive = self.parser.should_keep_alive()


NAMES = st.sampled_from(
    [b"Host", b"X-A", b"Content-Length", b"Transfer-Encoding", b"Connection", b"x b", b"Accept", b""]
)
VALUES = st.one_of(
    st.sampled_from([b"x", b"5", b"chunked", b"close", b"keep-alive, x", b" y ", b"", b"\tz\t"]),
    st.binary(max_size=8),
)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([b"GET", b"POST", b"get", b"M-SEARCH"]),
    st.one_of(st.sampled_from([b"/", b"/a?b", b"*", b"http://x/"]), st.binary(min_size=1, max_size=6)),
    st.lists(st.tuples(NAMES, st.sampled_from([b":", b": ", b" :", b""]), VALUES), max_size=5),
)
def test_what_is_accepted_llhttp_reads_alike(
    method: bytes, target: bytes, lines: list[tuple[bytes, bytes, bytes]]
) -> None:
    """No head passes here that a parser in wide use reads in another way, but for methods that it has not heard of."""
    head = method + b" " + target + b" HTTP/1.1\r\nHost: x\r\n" + b"".join(a + b + c + b"\r\n" for a, b, c in lines)
    if b"\r\n\r\n" in head:
        return
    try:
        read = read_request_head(head[:-2], HeadLimits())
    except Refused:
        return
    heard = Heard()
    try:
        heard.parser.feed_data(head + b"\r\n")
    except httptools.HttpParserUpgrade:
        return
    except httptools.HttpParserInvalidMethodError:
        return
    assert heard.complete
    assert heard.url == target
    assert [(name, value.strip(b" \t")) for name, value in heard.raw] == read.fields.raw
    assert heard.keeps_alive == read.keep_alive


# Heads by themselves --------------------------------------------------------------------------------------------------


def test_fields_are_looked_up_in_any_case_and_kept_in_order() -> None:
    """Repeated fields are joined where they are asked for, and go on each by itself."""
    fields = Fields([(b"Accept", b"a"), (b"X-B", b"1"), (b"accept", b"c")])
    assert (fields.get("ACCEPT"), fields.get("none", "-"), "x-b" in fields) == ("a, c", "-", True)
    assert list(fields) == [(b"Accept", b"a"), (b"X-B", b"1"), (b"accept", b"c")]
    assert list(fields) == fields.raw


def test_what_is_secret_is_not_shown_by_accident() -> None:
    """A header that is printed shows names alone."""
    assert "secret" not in repr(Fields([(b"Authorization", b"Bearer secret")]))


@pytest.mark.parametrize(
    "field",
    [("X-A", "b\r\nX-B: c"), ("X-A", "b\n"), ("X\r\nA", "b"), ("X-A", "\0"), ("Content-Length", "5"), ("X A", "b")],
)
def test_a_field_that_would_become_another_is_not_written(field: tuple[str, str]) -> None:
    """What a handler takes from elsewhere cannot break a header open."""
    with pytest.raises(ValueError, match=r"header|layer"):
        write_head(b"HTTP/1.1 200 OK\r\n", [field])


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/2 200",
        b"ICY 200 OK",
        b"HTTP/1.1 200 OK\r\nX-A : b",
        b"HTTP/1.1 200 OK\r\nX-A: b\r\n c",
        b"HTTP/1.1 200 O\0K",
    ],
)
def test_an_ambiguous_answer_is_none(head: bytes) -> None:
    """An engine's head is read as strictly as a client's."""
    with pytest.raises(Malformed):
        read_response_head(head, "GET", HeadLimits())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * (17 << 10) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * (200 << 10) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (64 << 10) + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", 431),
    ],
)
def test_a_head_that_is_too_large_is_refused_with_its_status(request_bytes: bytes, status: int, run: Run) -> None:
    """The client reads why, although it has not sent all of it."""

    async def scene() -> None:
        async with serving(echo) as (_, port), connected(port) as client:
            sending = asyncio.create_task(client.send(request_bytes))
            answer = await client.answer()
            assert answer.status == status
            await asyncio.wait([sending], timeout=BOUND_S)
            if not sending.cancelled():
                sending.exception()

    run(scene())


def test_a_head_within_its_limits_is_served(run: Run) -> None:
    """60 KiB and a hundred fields are fine."""

    async def scene() -> None:
        async with serving(echo) as (_, port), connected(port) as client:
            fields = b"".join(b"X-%d: %b\r\n" % (index, b"a" * 600) for index in range(99))
            assert (await client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")).status == 200

    run(scene())
