"""Who may come in at a door: looks at ``Host``, at the web page that sent a request, at its key, and at who is there.

It decides and answers nothing: what it refuses, it refuses by raising :class:`Denied`.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Protocol

from gpud.core.facts import Caller, Priority
from gpud.core.keys import BOTH, ApiKey, Rate, Right
from gpud.core.record import Record, replace
from gpud.http.hosts import HostList, is_own_origin
from gpud.http.keys import Denied, Headers, Keys, shown_key, single
from gpud.http.rates import Rates

__all__ = ["Access", "Admitted", "Denied", "Header", "Peer", "Rules"]

Header = tuple[str, str]

NOBODY = -1
"""The uid of a caller whose user is not known. The kernel gives it to nobody."""

LOCAL = "127.0.0.1"
"""All TCP clients of this machine without a key are one caller: each could come from 127.0.0.2 next."""

PREFLIGHT_S = 600
"""How long a browser may remember that an origin is let in: after a change of the configuration it still does."""

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,80}(?: *, *[A-Za-z0-9!#$%&'*+.^_`|~-]{1,80}){0,63}")
_USUAL_HEADERS = "Authorization, Content-Type, X-API-Key, api-key, anthropic-version, anthropic-beta, Last-Event-ID"
EXPOSED_HEADERS = "Retry-After, WWW-Authenticate, X-Gpud-Load-Seconds"

_ADD_KEY = 'send "Authorization: Bearer KEY"; "gpudctl key add NAME" makes a key'


class Peer(Protocol):
    """Who is at the other end of a connection. ``uid`` is known on Unix sockets only."""

    @property
    def address(self) -> str: ...

    @property
    def uid(self) -> int | None: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def is_loopback(self) -> bool: ...


class Rules(Record):
    """What is configured for one door. ``addresses`` are those that it listens on.

    ``without_key`` is what a TCP client of this machine may do that shows no key. ``rate`` is for keys that have none
    of their own. ``own_uid`` may do all on a Unix socket, as root may.
    """

    addresses: tuple[str, ...] = ("127.0.0.1",)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    without_key: frozenset[Right] = BOTH
    rate: Rate | None = None
    rate_without_key: Rate | None = None
    own_uid: int = 0


class Admitted(Record):
    """A request that may come in: for whom, and what it may. ``key`` None: it showed none that is known."""

    caller: Caller
    may: frozenset[Right]
    key: ApiKey | None = None

    def allows(self, *names: str) -> bool:
        """Whether it may use, and see, a model: its name and its aliases are given."""
        return self.key is None or self.key.allows(*names)

    def require(self, *names: str) -> None:
        """Raises Denied for a model that it may not use; the first of its names is the one to tell."""
        if self.key is not None and not self.key.allows(*names):
            allowed = ", ".join(self.key.allow) or "none"
            text = f'cannot use "{names[0]}": the key "{self.key.name}" is not for it'
            raise Denied(403, "permission_denied", text, hint=f"it is for: {allowed}")

    def priority_for(self, asked: Priority | None) -> Priority | None:
        """What its request gets that asks for this; None: what the model has."""
        return asked if self.key is None else self.key.priority_for(asked)


class Access:
    """One door's rules. ``keys`` None: no keys are set up, and only this machine comes in. ``rates`` may be shared."""

    def __init__(
        self,
        rules: Rules,
        keys: Keys | None = None,
        rates: Rates | None = None,
        *,
        name_of: Callable[[int], str] | None = None,
    ) -> None:
        self._rules = rules
        self._keys = keys
        self._rates = Rates() if rates is None else rates
        self._hosts = HostList(rules.addresses, rules.allowed_hosts)
        self._origins = frozenset(rules.cors_origins) - {"*"}
        self._any_origin = "*" in rules.cors_origins
        self._name_of = name_of or user_name
        self._of_keys: dict[str, Admitted] = {}
        self._local = _of_address(LOCAL, rules.without_key)

    # What browsers ask -----------------------------------------------------------------------------------------------

    def preflight(self, method: str, headers: Headers, peer: Peer) -> tuple[Header, ...] | None:
        """The header of a 204 that lets a web page go on; None: the request does not ask for one. Raises Denied.

        A browser asks without a key, whatever it will send later, so this comes before :meth:`check`.
        """
        if method != "OPTIONS" or not headers.get("Access-Control-Request-Method"):
            return None
        origin = single(headers, "Origin")
        if not origin:
            return None
        self._check_host(headers, peer)
        if not self._any_origin and origin not in self._origins:
            raise _foreign(origin)
        asked = headers.get("Access-Control-Request-Headers")
        found = [
            *self.reply_headers(headers),
            ("Access-Control-Allow-Methods", METHODS),
            ("Access-Control-Allow-Headers", asked if _TOKENS.fullmatch(asked) else _USUAL_HEADERS),
            ("Access-Control-Max-Age", str(PREFLIGHT_S)),
        ]
        if headers.get("Access-Control-Request-Private-Network") == "true":
            found.append(("Access-Control-Allow-Private-Network", "true"))
        return tuple(found)

    def reply_headers(self, headers: Headers) -> tuple[Header, ...]:
        """What every answer has besides, refusals too, so that a listed page may read it. Never with credentials: gpud
        knows no cookies, and a page that shows a key sends it itself.
        """
        if self._any_origin:
            origin = "*"
        elif not self._origins:
            return ()
        else:
            origin = headers.get("Origin")
            if origin not in self._origins:
                return (("Vary", "Origin"),)
        allowed = ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", EXPOSED_HEADERS)
        return allowed if origin == "*" else (*allowed, ("Vary", "Origin"))

    # Whether a request comes in --------------------------------------------------------------------------------------

    def check(
        self,
        method: str,
        headers: Headers,
        peer: Peer,
        now: float,
        *,
        changes_state: bool = False,
        needs_model: bool = False,
        is_open: bool = False,
    ) -> Admitted:
        """Who asks, if they may, and not too often. Raises Denied. See :meth:`admit` and :meth:`count`."""
        admitted = self.admit(
            method, headers, peer, changes_state=changes_state, needs_model=needs_model, is_open=is_open
        )
        if not is_open:
            self.count(admitted, now)
        return admitted

    def admit(
        self,
        method: str,
        headers: Headers,
        peer: Peer,
        *,
        changes_state: bool = False,
        needs_model: bool = False,
        is_open: bool = False,
    ) -> Admitted:
        """Who asks, if they may. Raises Denied. It depends on nothing but what is handed in.

        ``changes_state`` needs the right to manage, ``needs_model`` that to use models; what is neither only looks.
        ``is_open``: whoever reaches the door may ask.
        """
        self._check_host(headers, peer)
        self._check_page(method, headers, only_looks=not (changes_state or needs_model), changes=changes_state)
        admitted = self._identify(headers, peer, is_open=is_open)
        if changes_state and Right.MANAGE not in admitted.may:
            raise self._lacks(admitted, "manage gpud", Right.MANAGE)
        if needs_model and Right.USE not in admitted.may:
            raise self._lacks(admitted, "use models", Right.USE)
        return admitted

    def _check_host(self, headers: Headers, peer: Peer) -> None:
        """A name that we do not know was pointed here by a stranger, whose page would then pass for one of ours."""
        if peer.uid is not None:
            return  # No browser reaches a Unix socket, and its clients put any name there.
        host = single(headers, "Host")
        # HTTP/1.0 needs none, and no browser speaks it; in HTTP/1.1 the layer below insists.
        if host and not self._hosts.has(host):
            text = f'"{_shown(host)}" is not a name of this machine that gpud knows'
            hint = "ask for localhost or the address, or add the name to http.allowed_hosts"
            raise Denied(421, "misdirected_request", text, hint=hint)

    def _check_page(self, method: str, headers: Headers, *, only_looks: bool, changes: bool) -> None:
        """Refuse what a web page sends that is neither ours nor of a listed origin. A plain POST needs no preflight."""
        origin = single(headers, "Origin")
        if origin:
            if is_own_origin(origin, headers.get("Host")) or origin in self._origins:
                return
            if self._any_origin and not changes:
                return
            raise _foreign(origin)
        site = headers.get("Sec-Fetch-Site")
        if site in ("", "none", "same-origin"):
            return
        # No Origin and yet from another page: a link that somebody clicked may show what only looks.
        is_link = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        if not (only_looks and is_link and method in ("GET", "HEAD")):
            raise _foreign("")

    def _identify(self, headers: Headers, peer: Peer, *, is_open: bool) -> Admitted:
        shown = ""
        if self._keys is not None:
            shown = shown_key(headers)
            key = self._keys.find(shown) if shown else None
            if key is not None:
                # Whoever shows a key acts as that key, wherever they come from.
                return self._of_key(key, peer)
        if peer.uid is not None:
            return self._of_user(peer.uid, peer.pid or 0)
        if peer.is_loopback and (self._rules.without_key or is_open):
            return self._local
        if is_open and self._keys is not None:
            return _of_address(peer.address, frozenset())
        if self._keys is None:
            text = "no API keys are set up, so only this machine comes in"
            raise Denied(403, "permission_denied", text, hint="set http.api_keys_file in gpud.yaml")
        raise _unknown(bool(shown))

    def _of_key(self, key: ApiKey, peer: Peer) -> Admitted:
        known = self._of_keys.get(key.name)
        if known is None:
            name = f"key {key.name}"
            known = Admitted(Caller(owner=name, uid=NOBODY, label=f'the key "{key.name}"', party=name), key.may, key)
            self._of_keys[key.name] = known
        if peer.uid is None:
            return known
        return replace(known, caller=replace(known.caller, uid=peer.uid, pid=peer.pid or 0))

    def _of_user(self, uid: int, pid: int) -> Admitted:
        may = BOTH if uid in (0, self._rules.own_uid) else frozenset({Right.USE})
        name = self._name_of(uid)
        label = f"{name} (uid {uid})" if name else f"uid {uid}"
        return Admitted(Caller(owner=f"uid {uid}", uid=uid, pid=pid, label=label), may)

    def _lacks(self, admitted: Admitted, what: str, right: Right) -> Denied:
        caller = admitted.caller
        if admitted.key is not None:
            text = f'the key "{admitted.key.name}" may not {what}'
            return Denied(403, "permission_denied", text, hint=f'give it "may: [{right}]" in the keys file')
        if self._keys is not None and caller.uid == NOBODY:
            return _unknown(False)
        hint = f'show a key that has "may: [{right}]"' + (", or be root" if caller.uid != NOBODY else "")
        return Denied(403, "permission_denied", f"{caller.label} may not {what}", hint=hint)

    def count(self, admitted: Admitted, now: float) -> None:
        """One more request that is not open to everybody. Raises Denied where it is one too many. ``now`` is for the
        rates.
        """
        rate = self._rules.rate_without_key if admitted.key is None else admitted.key.rate or self._rules.rate
        if rate is None:
            return
        wait_s = self._rates.take(admitted.caller.owner, rate, now)
        if wait_s > 0:
            seconds = max(1, ceil(wait_s))
            raise Denied(
                429,
                "rate_limit_exceeded",
                f"{admitted.caller.label} has asked more often than {rate}, which is what it may",
                hint=f"ask again in {seconds} s",
                headers={"Retry-After": str(seconds)},
            )


def _of_address(address: str, may: frozenset[Right]) -> Admitted:
    return Admitted(Caller(owner=address, uid=NOBODY, label=address, party=address), may)


def _unknown(shown: bool) -> Denied:
    """What was shown is not repeated, and nothing says how near it was."""
    text = "the API key is not known here" if shown else "an API key is needed here"
    challenge = 'Bearer realm="gpud"' + (', error="invalid_token"' if shown else "")
    return Denied(401, "invalid_api_key", text, hint=_ADD_KEY, headers={"WWW-Authenticate": challenge})


def _foreign(origin: str) -> Denied:
    page = f'of "{_shown(origin)}"' if origin else "of another site"
    hint = "if you trust it, add its origin to http.cors_origins"
    return Denied(403, "foreign_origin", f"a web page {page} may not use gpud", hint=hint)


def _shown(text: str) -> str:
    """What a stranger sent, short and printable."""
    short = text if len(text) <= 80 else text[:79] + "…"
    return "".join(letter if letter.isprintable() and letter != '"' else "?" for letter in short)


@lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    """What the machine itself calls a user. Those of a directory service have no name here: asking for one could take
    minutes, and the label only is poorer for it.
    """
    try:
        text = Path("/etc/passwd").read_text("utf-8", "replace")
    except OSError:
        return ""
    found = (line.split(":") for line in text.splitlines())
    return next((parts[0] for parts in found if parts[2:3] == [str(uid)] and parts[0].isprintable()), "")
