"""Who may come in at a door, and a collection of ways in which somebody would like to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpud.config.api_keys import digest_of
from gpud.core.facts import Priority
from gpud.core.keys import BOTH, ApiKey, Rate, Right
from gpud.http.access import LOCAL, NOBODY, Access, Admitted, Denied, Rules, user_name
from gpud.http.fields import Fields
from gpud.http.hosts import HostList, canonical, is_own_origin, split
from gpud.http.keys import Keys
from gpud.http.message import Peer
from gpud.http.rates import Rates

HERE = Peer("front", "127.0.0.1", 40000, is_loopback=True)
SIX = Peer("front", "::1", 40000, is_loopback=True)
FAR = Peer("front", "192.0.2.9", 40000)
SECRET = "gpud_hushhushhush"
ADMIN = "gpud_hushadmin"
KEYS = Keys(
    [
        ApiKey("laptop", digest_of(SECRET), ("tiny", "qwen*"), Rate(2, 60.0), Priority.NORMAL),
        ApiKey("admin", digest_of(ADMIN), may=BOTH),
        ApiKey("robot", digest_of("gpud_robot"), may=frozenset({Right.MANAGE})),
    ]
)
LISTED = "http://localhost:5000"


def fields(*pairs: tuple[str, str], host: str | None = "127.0.0.1:8080") -> Fields:
    head = [] if host is None else [("Host", host)]
    return Fields([(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*head, *pairs)])


def user(uid: int) -> Peer:
    return Peer("front", uid=uid, gid=uid, pid=77)


def bearer(key: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {key}")


def chat(access: Access, headers: Fields, peer: Peer = HERE, now: float = 0.0) -> Admitted:
    return access.check("POST", headers, peer, now, needs_model=True)


def refused(
    access: Access, headers: Fields, peer: Peer = HERE, method: str = "POST", *, changes: bool = False, use: bool = True
) -> Denied:
    with pytest.raises(Denied) as caught:
        access.check(method, headers, peer, 0.0, changes_state=changes, needs_model=use)
    assert "hush" not in caught.value.text
    assert caught.value.text.isprintable()
    assert len(caught.value.text) < 400
    return caught.value


# Which machine was meant ---------------------------------------------------------------------------------------------

OURS = [
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.0.0.1:1",
    "127.9.9.9:8080",
    "localhost",
    "localhost:8080",
    "LOCALHOST:8080",
    "localhost.:8080",
    "[::1]",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]:8080",
    "[::ffff:127.0.0.1]:8080",
    "[::FFFF:7F00:1]",
    "box.lan",
    "BOX.lan.:80",
    "10.1.2.3:8080",
    "[fd00::7]:8080",
]

STRANGERS = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io:8080",
    "localhost.evil.example",
    "evil.localhost",
    "localhost..",
    "localhost:8080:8080",
    "localhost:",
    "localhost:0",
    "localhost:99999",
    "localhost:-1",
    "localhost:８０８０".encode().decode("latin-1"),
    "localhost,evil.example",
    "localhost evil.example",
    "localhost/evil",
    "localhost#evil",
    "localhost?x",
    "localhost\\evil",
    "evil.example@localhost",
    "localhost@evil.example",
    "xn--localhost-9za",
    "xn--lcalhost-54a",
    "lоcalhost".encode().decode("latin-1"),
    "ⓛocalhost".encode().decode("latin-1"),
    "local\xadhost",
    "localhost%00",
    "%6cocalhost",
    "localhos",
    "127.1",
    "127.0.1",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.0.0.01",
    "2130706433",
    "0",
    "0.0.0.0",
    "0.0.0.0:8080",
    "[::]",
    "[::]:8080",
    "::1",
    "[::1",
    "::1]",
    "[[::1]]",
    "[::1%25lo]",
    "[::1%lo]:8080",
    "[127.0.0.1]",
    "[localhost]",
    "[]",
    "[::1]evil",
    "[fe80::1]:8080",
    "169.254.169.254",
    "192.168.1.5:8080",
    "8.8.8.8",
    "box",
    "box.lan.evil.example",
    "xbox.lan",
    "box.lan_",
    ".",
    "..",
    "-",
    "*",
    "null",
    ".localhost",
    "a" * 5000,
    "a." * 2000 + "localhost",
]

DOOR = Access(Rules(addresses=("127.0.0.1", "10.1.2.3", "fd00::7"), allowed_hosts=("box.lan",)))


@pytest.mark.parametrize("host", OURS)
def test_a_request_to_this_machine_comes_in(host: str) -> None:
    """By loopback, by an address of the door, by a configured name; in any spelling and with any port."""
    assert chat(DOOR, fields(host=host)).may == BOTH


@pytest.mark.parametrize("host", STRANGERS)
def test_a_request_to_another_machine_is_refused(host: str) -> None:
    """DNS rebinding: a stranger's name that points here. Every time, also from memory."""
    for _ in range(2):
        assert refused(DOOR, fields(host=host)).status in (400, 421)
        assert refused(DOOR, fields(host=host), method="GET", use=False).status in (400, 421)


def test_two_hosts_are_none() -> None:
    """Whoever stands between may have looked at the other."""
    assert refused(DOOR, fields(("Host", "evil.example"))).status == 400
    assert refused(DOOR, fields(("host", "127.0.0.1:8080"))).status == 400


def test_a_refusal_says_what_to_configure() -> None:
    """With the name, cleaned and shortened."""
    error = refused(DOOR, fields(host='chat"\x1b.lan'))
    assert error.status == 421
    assert error.text == (
        '"chat??.lan" is not a name of this machine that gpud knows; ask for localhost or the address, or add the name '
        "to http.allowed_hosts"
    )


def test_an_old_client_without_a_host_comes_in() -> None:
    """Browsers always send one."""
    assert chat(DOOR, fields(host=None)).caller.label == LOCAL


def test_on_a_socket_any_host_will_do() -> None:
    """No browser gets there, and clients put anything in."""
    assert chat(DOOR, fields(host="evil.example"), user(1000)).caller.uid == 1000


def test_a_door_on_all_addresses_answers_to_all_addresses() -> None:
    """But still to no name, for only names can be pointed here."""
    door = Access(Rules(addresses=("0.0.0.0",)), KEYS)
    for host in ("192.168.1.5:8080", "[fe80::1]", "127.0.0.1", "localhost"):
        chat(door, fields(bearer(ADMIN), host=host), FAR)
    for host in ("evil.example", "0.0.0.0", "[::]", "127.1", "box.lan"):
        assert refused(door, fields(bearer(ADMIN), host=host), FAR).status == 421


def test_the_memory_for_hosts_is_bounded() -> None:
    """Whatever is sent."""
    hosts = HostList(("127.0.0.1",), ())
    for number in range(2000):
        assert not hosts.has(f"{number}.example")
        assert hosts.has(f"localhost:{number + 1}")
    assert len(hosts._answers) <= 256


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_nothing_that_is_not_ours_passes_for_it(host: str) -> None:
    """Of all texts that a header can hold; none raises."""
    if HostList(("127.0.0.1",), ()).has(host):
        name = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host.lower()
        assert canonical(name.strip("[]")) == "localhost" or canonical(name.strip("[]")).startswith(("127.", "::1"))


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_address_is_split_from_its_port(address: object, port: int) -> None:
    """Of both families."""
    text = f"[{address}]" if ":" in str(address) else str(address)
    assert split(f"{text}:{port}") == (canonical(str(address)), port)
    assert split(text) == (canonical(str(address)), None)


# Which page sent it --------------------------------------------------------------------------------------------------

FOREIGN = [
    "http://evil.example",
    "https://evil.example",
    "null",
    "file://",
    "http://localhost:3000",
    "http://127.0.0.1:9000",
    "http://localhost",
    "http://localhost:8080.evil.example",
    "http://127.0.0.1:8080.evil.example",
    "http://127.0.0.1:8080@evil.example",
    "http://evil.example@127.0.0.1:8080",
    "http://127.0.0.1:8080/",
    "http://127.0.0.1:8080#x",
    "http://127.0.0.1:8080?x",
    "http://127.0.0.1:08080x",
    "ftp://127.0.0.1:8080",
    "chrome-extension://abcdefgh",
    "//127.0.0.1:8080",
    "127.0.0.1:8080",
    "http:127.0.0.1:8080",
    "http://",
    "http://[::1]:8080",
    "http://LOCALHOST:5000",
    "http://localhost:5000/",
    "http://localhost:50000",
    "http://localhost:5000.evil.example",
    "http://xn--lcalhost-54a:5000",
    "http://lоcalhost:5000".encode().decode("latin-1"),
    "http://localhost:5000 http://evil.example",
    "*",
    "x" * 5000,
]
"""None of them is the origin of http://127.0.0.1:8080, nor the one that is listed."""

PLAIN = Access(Rules())
OPENED = Access(Rules(cors_origins=(LISTED, "app://obsidian.md")))


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_is_refused(origin: str) -> None:
    """Whatever it asks, in whichever way: a plain POST needs no preflight, and its answer need not be readable."""
    for access in (PLAIN, OPENED):
        for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
            headers = fields(("Origin", origin), ("Content-Type", kind))
            assert refused(access, headers).status == 403
            assert refused(access, headers, changes=True, use=False).status == 403
        assert refused(access, fields(("Origin", origin)), method="GET", use=False).status == 403
        assert refused(access, fields(("Origin", origin), ("Sec-Fetch-Site", "same-origin"))).status == 403


def test_a_foreign_page_with_a_key_is_refused_too() -> None:
    """Before the key is looked at: a page learns nothing of it."""
    access = Access(Rules(), KEYS)
    known = refused(access, fields(("Origin", "http://evil.example"), bearer(ADMIN)))
    unknown = refused(access, fields(("Origin", "http://evil.example"), bearer("x")))
    assert (known.status, known.text) == (unknown.status, unknown.text) == (403, known.text)


def test_a_foreign_page_is_refused_on_a_socket_too() -> None:
    """A proxy before it passes on what browsers send."""
    assert refused(PLAIN, fields(("Origin", "http://evil.example"), host="gpud"), user(33)).status == 403
    chat(PLAIN, fields(("Origin", "https://gpud"), host="gpud"), user(33))


def test_two_origins_are_none() -> None:
    """Even if one of them is listed."""
    assert refused(OPENED, fields(("Origin", LISTED), ("Origin", "http://evil.example"))).status == 400
    assert refused(OPENED, fields(("Origin", f"{LISTED}, http://evil.example"))).status == 400


def test_gpuds_own_page_comes_in() -> None:
    """By the name by which the browser came, and with the port that the scheme means."""
    for host, origin in (
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost:8080", "http://localhost:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost", "http://localhost"),
        ("localhost", "https://localhost"),
        ("localhost:443", "https://localhost"),
        ("localhost", "http://localhost:80"),
    ):
        PLAIN.check("POST", fields(("Origin", origin), host=host), HERE, 0.0, changes_state=True)


def test_a_rebound_page_is_not_its_own() -> None:
    """Its origin and its Host agree, but the Host is not ours."""
    assert refused(PLAIN, fields(("Origin", "http://evil.example:8080"), host="evil.example:8080")).status == 421


def test_a_listed_page_comes_in() -> None:
    """By its exact origin."""
    for origin in (LISTED, "app://obsidian.md"):
        headers = fields(("Origin", origin), ("Sec-Fetch-Site", "cross-site"))
        chat(OPENED, headers)
        OPENED.check("POST", headers, HERE, 0.0, changes_state=True)


def test_a_page_without_an_origin_is_known_by_its_site() -> None:
    """Images, scripts and forms may send none; a link that somebody clicks may show what only looks."""
    for site in ("cross-site", "same-site", "anything"):
        assert refused(PLAIN, fields(("Sec-Fetch-Site", site))).status == 403
        assert refused(PLAIN, fields(("Sec-Fetch-Site", site)), method="GET").status == 403
        image = fields(("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image"))
        assert refused(PLAIN, image, method="GET", use=False).status == 403
        frame = fields(("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe"))
        assert refused(PLAIN, frame, method="GET", use=False).status == 403
        link = fields(("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"))
        PLAIN.check("GET", link, HERE, 0.0)
        assert refused(PLAIN, link, method="GET", changes=True, use=False).status == 403
        assert refused(PLAIN, link, method="POST", use=False).status == 403
    for site in ("none", "same-origin"):
        chat(PLAIN, fields(("Sec-Fetch-Site", site)))


def test_with_a_wildcard_pages_may_use_and_not_manage() -> None:
    """Nobody means that a page may unload their models."""
    access = Access(Rules(cors_origins=("*",)))
    for origin in ("http://evil.example", "null"):
        chat(access, fields(("Origin", origin)))
        assert refused(access, fields(("Origin", origin)), changes=True, use=False).status == 403
    assert access.reply_headers(fields(("Origin", "http://a")))[0] == ("Access-Control-Allow-Origin", "*")
    chat(access, fields(("Origin", "http://127.0.0.1:8080")))


def test_is_own_origin_needs_both() -> None:
    """An origin without a Host to compare it with is foreign."""
    assert not is_own_origin("http://127.0.0.1:8080", "")
    assert refused(PLAIN, fields(("Origin", "http://127.0.0.1:8080"), host=None)).status == 403


# What browsers are told ----------------------------------------------------------------------------------------------


def asked(origin: str, *more: tuple[str, str]) -> Fields:
    return fields(("Origin", origin), ("Access-Control-Request-Method", "POST"), *more)


def test_a_listed_page_is_told_that_it_may() -> None:
    """For itself alone, never with credentials; what depends on the origin says so to caches."""
    found = dict(OPENED.reply_headers(fields(("Origin", LISTED))))
    assert found == {
        "Access-Control-Allow-Origin": LISTED,
        "Access-Control-Expose-Headers": "Retry-After, WWW-Authenticate, X-Gpud-Load-Seconds",
        "Vary": "Origin",
    }
    for origin in FOREIGN:
        assert OPENED.reply_headers(fields(("Origin", origin))) == (("Vary", "Origin"),)
        assert PLAIN.reply_headers(fields(("Origin", origin))) == ()
    assert OPENED.reply_headers(fields()) == (("Vary", "Origin"),)
    assert PLAIN.reply_headers(fields()) == ()


def test_a_preflight_of_a_listed_page_is_answered_without_a_key() -> None:
    """A browser sends none; what it asks for is allowed, and remembered for a while."""
    access = Access(Rules(cors_origins=(LISTED,), without_key=frozenset()), KEYS)
    wanted = "authorization,content-type, x-stainless-os"
    found = access.preflight("OPTIONS", asked(LISTED, ("Access-Control-Request-Headers", wanted)), HERE)
    assert found is not None
    headers = dict(found)
    assert headers["Access-Control-Allow-Origin"] == LISTED
    assert headers["Access-Control-Allow-Headers"] == wanted
    assert {"POST", "DELETE"} <= set(headers["Access-Control-Allow-Methods"].split(", "))
    assert headers["Access-Control-Max-Age"] == "600"
    assert headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in headers
    assert "Access-Control-Allow-Private-Network" not in headers
    private = access.preflight("OPTIONS", asked(LISTED, ("Access-Control-Request-Private-Network", "true")), HERE)
    assert private is not None
    assert ("Access-Control-Allow-Private-Network", "true") in private


@pytest.mark.parametrize("wanted", ["", "a b", "x\tset-cookie", "a,,b", "a;b", "é", "a" * 200, ",".join("a" * 100)])
def test_what_is_no_list_of_headers_is_not_repeated(wanted: str) -> None:
    """What is said then is the usual list."""
    found = OPENED.preflight("OPTIONS", asked(LISTED, ("Access-Control-Request-Headers", wanted)), HERE)
    assert found is not None
    assert dict(found)["Access-Control-Allow-Headers"].startswith("Authorization, Content-Type, X-API-Key")


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_preflight_of_a_foreign_page_is_refused(origin: str) -> None:
    """And so is one to another machine, whatever its origin."""
    for access in (PLAIN, OPENED):
        with pytest.raises(Denied) as caught:
            access.preflight("OPTIONS", asked(origin), HERE)
        assert caught.value.status == 403
    rebound = fields(("Origin", LISTED), ("Access-Control-Request-Method", "POST"), host="evil.example")
    with pytest.raises(Denied) as caught:
        OPENED.preflight("OPTIONS", rebound, HERE)
    assert caught.value.status == 421


def test_what_is_no_preflight_goes_its_way() -> None:
    """Another method, or OPTIONS by a program."""
    assert OPENED.preflight("POST", asked(LISTED), HERE) is None
    assert OPENED.preflight("OPTIONS", fields(("Origin", LISTED)), HERE) is None
    assert OPENED.preflight("OPTIONS", fields(("Access-Control-Request-Method", "POST")), HERE) is None


# Who is there --------------------------------------------------------------------------------------------------------


def test_this_machine_needs_no_key_by_default() -> None:
    """It is one caller, whichever of its addresses it comes from, and a key that is shown means nothing."""
    for peer in (HERE, SIX, Peer("front", "127.0.0.2", 1, is_loopback=True)):
        admitted = chat(PLAIN, fields(bearer("sk-none")), peer)
        assert admitted.may == BOTH
        assert (admitted.caller.owner, admitted.caller.uid, admitted.caller.stands_for) == (LOCAL, NOBODY, LOCAL)
        assert admitted.allows("anything")
        assert admitted.priority_for(Priority.HIGH) == Priority.HIGH


def test_without_keys_nobody_else_comes_in() -> None:
    """Whatever is configured or open: the configuration refuses such a door, and so does the door."""
    access = Access(Rules(addresses=("0.0.0.0",)))
    assert refused(access, fields(bearer("x"), host="192.0.2.1"), FAR).status == 403
    with pytest.raises(Denied):
        access.check("GET", fields(host="192.0.2.1"), FAR, 0.0, is_open=True)


def test_a_key_lets_in_from_anywhere() -> None:
    """Its caller has its name, and is a party of its own in the queue."""
    access = Access(Rules(addresses=("0.0.0.0",)), KEYS)
    admitted = chat(access, fields(bearer(SECRET), host="192.0.2.1"), FAR)
    assert admitted.key is not None
    assert (admitted.caller.owner, admitted.caller.label) == ("key laptop", 'the key "laptop"')
    assert (admitted.caller.uid, admitted.caller.stands_for) == (NOBODY, "key laptop")
    assert admitted.priority_for(Priority.CRITICAL) == Priority.NORMAL
    assert "hush" not in repr(admitted)


def test_without_a_key_one_is_asked_for() -> None:
    """From here and from there: with keys set up, this machine needs one as well."""
    access = Access(Rules(addresses=("0.0.0.0",), without_key=frozenset()), KEYS)
    for peer in (HERE, FAR):
        error = refused(access, fields(host="127.0.0.1"), peer)
        assert (error.status, error.headers) == (401, {"WWW-Authenticate": 'Bearer realm="gpud"'})
        assert "gpudctl key add NAME" in error.text


@pytest.mark.parametrize(
    "shown", [SECRET + "x", SECRET[1:], SECRET.upper(), "é", "x" * 60_000, "Bearer", digest_of(SECRET).hex()]
)
def test_a_wrong_key_is_refused_and_not_repeated(shown: str) -> None:
    """And nothing says how near it was."""
    access = Access(Rules(addresses=("0.0.0.0",), without_key=frozenset()), KEYS)
    error = refused(access, fields(bearer(shown), host="127.0.0.1"), FAR)
    assert (error.status, error.message) == (401, "the API key is not known here")
    assert error.headers == {"WWW-Authenticate": 'Bearer realm="gpud", error="invalid_token"'}


def test_what_is_open_needs_no_key() -> None:
    """It gives no right, and is still for no foreign page and under no foreign name."""
    access = Access(Rules(addresses=("0.0.0.0",), without_key=frozenset()), KEYS)
    for peer in (HERE, FAR):
        assert access.check("GET", fields(host="127.0.0.1"), peer, 0.0, is_open=True).may == frozenset()
    for headers in (fields(host="evil.example"), fields(("Origin", "http://evil.example"))):
        with pytest.raises(Denied):
            access.check("GET", headers, FAR, 0.0, is_open=True)


def test_this_machine_may_be_let_in_without_a_key() -> None:
    """To use models only, or for all; a wrong key does not matter then, a right one counts."""
    access = Access(Rules(without_key=frozenset({Right.USE})), KEYS)
    assert chat(access, fields()).may == {Right.USE}
    assert chat(access, fields(bearer("sk-none"))).key is None
    assert refused(access, fields(), changes=True, use=False).status == 401
    admitted = chat(access, fields(bearer(ADMIN)))
    assert (admitted.caller.owner, admitted.may) == ("key admin", BOTH)
    assert refused(access, fields(), Peer("front", "192.0.2.9", 1)).status == 401


def test_a_key_may_only_what_it_is_given() -> None:
    """To use and to manage are two things."""
    access = Access(Rules(), KEYS)
    error = refused(access, fields(bearer(SECRET)), changes=True, use=False)
    assert (error.status, error.message) == (403, 'the key "laptop" may not manage gpud')
    assert error.hint == 'give it "may: [manage]" in the keys file'
    assert refused(access, fields(bearer("gpud_robot"))).message == 'the key "robot" may not use models'
    access.check("POST", fields(bearer("gpud_robot")), HERE, 0.0, changes_state=True)
    access.check("GET", fields(bearer("gpud_robot")), HERE, 0.0)


def test_a_key_is_for_its_models() -> None:
    """And the refusal says for which."""
    admitted = chat(Access(Rules(), KEYS), fields(bearer(SECRET)))
    admitted.require("tiny")
    admitted.require("big", "qwen3")
    with pytest.raises(Denied) as caught:
        admitted.require("big", "large")
    assert caught.value.status == 403
    assert caught.value.text == 'cannot use "big": the key "laptop" is not for it; it is for: tiny, qwen*'


def test_on_a_socket_the_user_is_known() -> None:
    """Root and gpud's own user may do all, others use models; each is the user that D-Bus knows too."""
    access = Access(Rules(own_uid=990), KEYS, name_of={0: "root", 990: "gpud", 1000: "ann"}.__getitem__)
    assert chat(access, fields(), user(0)).may == BOTH
    assert chat(access, fields(), user(990)).may == BOTH
    admitted = chat(access, fields(), user(1000))
    caller = admitted.caller
    assert (caller.owner, caller.uid, caller.pid, caller.label) == ("uid 1000", 1000, 77, "ann (uid 1000)")
    assert (caller.stands_for, admitted.may) == ("uid 1000", frozenset({Right.USE}))
    error = refused(access, fields(), user(1000), changes=True, use=False)
    assert error.text == 'ann (uid 1000) may not manage gpud; show a key that has "may: [manage]", or be root'


def test_on_a_socket_a_key_counts_as_well() -> None:
    """Whoever shows one acts as it, also when it may less."""
    access = Access(Rules(), KEYS)
    admitted = access.check("POST", fields(bearer(ADMIN)), user(1000), 0.0, changes_state=True)
    assert (admitted.caller.owner, admitted.caller.uid, admitted.caller.pid) == ("key admin", 1000, 77)
    assert refused(access, fields(bearer(SECRET)), user(0), changes=True, use=False).status == 403
    assert chat(access, fields(bearer(SECRET)), HERE).caller.uid == NOBODY


def test_two_keys_in_one_request_are_refused() -> None:
    """Where keys matter; where there are none, clients may send what they like."""
    headers = fields(bearer(ADMIN), ("X-API-Key", SECRET))
    with pytest.raises(Exception, match="different API keys") as caught:
        chat(Access(Rules(), KEYS), headers)
    assert "hush" not in str(caught.value)
    chat(PLAIN, headers)


def test_a_machines_own_users_have_names() -> None:
    """Others are numbers."""
    assert user_name(0) == "root"
    assert user_name(3_999_999_999) == ""
    label = chat(PLAIN, fields(), user(3_999_999_999)).caller.label
    assert label == "uid 3999999999"


# How often -----------------------------------------------------------------------------------------------------------


def test_each_key_has_its_rate() -> None:
    """Its own, or that of all keys; the refusal says when to come back."""
    access = Access(Rules(rate=Rate(1, 60.0)), KEYS)
    laptop, admin = fields(bearer(SECRET)), fields(bearer(ADMIN))
    for _ in range(2):
        chat(access, laptop, now=0.0)
    with pytest.raises(Denied) as caught:
        chat(access, laptop, now=0.5)
    error = caught.value
    assert (error.status, error.kind, error.headers) == (429, "rate_limit_exceeded", {"Retry-After": "30"})
    assert error.text == ('the key "laptop" has asked more often than 2/min, which is what it may; ask again in 30 s')
    chat(access, admin, now=0.5)
    with pytest.raises(Denied):
        chat(access, admin, now=0.5)
    chat(access, laptop, now=30.0)


def test_who_has_no_key_has_a_rate_where_one_is_set() -> None:
    """Each user on a socket, and this machine."""
    access = Access(Rules(rate_without_key=Rate(1, 60.0)))
    for peer in (HERE, user(1000), user(1001)):
        chat(access, fields(), peer)
        assert refused(access, fields(), peer).status == 429
    for _ in range(1000):
        chat(PLAIN, fields())


def test_what_is_refused_or_open_is_not_counted() -> None:
    """A stranger's page cannot use up what this machine may."""
    access = Access(Rules(rate_without_key=Rate(1, 60.0)))
    for _ in range(5):
        refused(access, fields(("Origin", "http://evil.example")))
        refused(access, fields(host="evil.example"))
        access.check("GET", fields(), HERE, 0.0, is_open=True)
    chat(access, fields())


def test_doors_count_together() -> None:
    """With rates that they share, which also outlive a reload."""
    rates = Rates()
    rules = Rules(rate_without_key=Rate(1, 60.0))
    chat(Access(rules, None, rates), fields())
    assert refused(Access(rules, None, rates), fields()).status == 429


# Anything ------------------------------------------------------------------------------------------------------------

HEADER_NAMES = ["Host", "Origin", "Authorization", "X-API-Key", "api-key", "Sec-Fetch-Site", "Sec-Fetch-Mode", "X"]
VALUES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    st.sampled_from([*OURS, *STRANGERS[:20], *FOREIGN, f"Bearer {SECRET}", SECRET, "cross-site", "navigate", LISTED]),
)


@given(
    st.lists(st.tuples(st.sampled_from(HEADER_NAMES), VALUES), max_size=6),
    st.sampled_from([HERE, SIX, FAR, user(0), user(1000)]),
    st.sampled_from(["GET", "POST", "OPTIONS", "DELETE"]),
    st.booleans(),
    st.booleans(),
)
def test_whatever_is_sent_is_admitted_or_denied(
    pairs: list[tuple[str, str]], peer: Peer, method: str, changes: bool, use: bool
) -> None:
    """Never another exception; who is admitted has the right, no foreign origin, and, from afar, a key."""
    headers = fields(*pairs, host=None)
    access = Access(Rules(cors_origins=(LISTED,), without_key=frozenset({Right.USE})), KEYS)
    try:
        admitted = access.check(method, headers, peer, 0.0, changes_state=changes, needs_model=use)
    except Denied as error:
        assert error.status in (400, 401, 403, 421, 429)
        # Who puts a key where a name belongs reads it back; nobody else does.
        named = any("hush" in value for name, value in pairs if name in ("Host", "Origin"))
        assert named or "hush" not in error.text
        assert error.text.isprintable()
        return
    assert Right.MANAGE in admitted.may or not changes
    assert Right.USE in admitted.may or not use
    assert admitted.key is not None or peer is not FAR
    origin = headers.get("Origin").strip()
    assert origin in ("", LISTED) or is_own_origin(origin, headers.get("Host"))
