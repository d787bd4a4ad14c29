"""Makes the record of the section ``http``, and checks that the doors do not stand open or in each other's way."""

from typing import Any

from gpud.config.given import UNSET, Given
from gpud.config.kinds import Reading, nearest
from gpud.config.network import is_loopback
from gpud.config.records import Door, DoorLimits, HttpConfig, TlsConfig
from gpud.config.sections import Found
from gpud.core.keys import BOTH, Right

DOORS = ("front", "management", "ollama")

_WITHOUT_KEY = {"all": BOTH, "use": frozenset({Right.USE}), "none": frozenset[Right]()}

_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - to see it, not to listen there

_ADD_KEYS = "set http.api_keys_file: /etc/gpud/keys.yaml and make a key with gpudctl key add NAME"


def http(given: Given, models: list[str], reading: Reading, *, more_are_found: bool) -> HttpConfig:
    """The whole section. ``models`` are all names and aliases; ``more_are_found``: there may be others, too."""
    doors = {name: Door(**given.section(name).fields()) for name in DOORS}
    _check_addresses(given, doors, reading)
    _check_keys(given, doors, reading)
    tls = TlsConfig(**given.section("tls").fields())
    _check_tls(given.section("tls"), tls, reading)
    default_model = given["default_model"] or ""
    if default_model and default_model not in models and not more_are_found:
        where = given.given("default_model").where
        text = f'"{default_model}": there is no such model{nearest(default_model, models)}'
        reading.wrong(where, "http.default_model", text)
    optional: dict[str, Any] = {
        key: value for key in ("rate", "rate_without_key", "api_keys_file") if (value := given.get(key)) is not UNSET
    }
    return HttpConfig(
        front=doors["front"],
        management=doors["management"],
        ollama=doors["ollama"],
        **optional,
        without_key=without_key(given["without_key"], given["api_keys_file"]),
        tls=tls,
        allowed_hosts=given["allowed_hosts"],
        cors_origins=given["cors_origins"],
        default_model=default_model,
        heartbeat_s=given["heartbeat"],
        limits=DoorLimits(**given.section("limits").fields()),
    )


def without_key(word: str | None, api_keys_file: str | None) -> frozenset[Right]:
    """What a client of this machine may do without a key. Whoever sets up keys wants to be shown them."""
    return _WITHOUT_KEY[word or ("none" if api_keys_file else "all")]


def without_key_word(rights: frozenset[Right]) -> str:
    return next(word for word, meant in _WITHOUT_KEY.items() if meant == rights)


def _check_addresses(http: Given, doors: dict[str, Door], reading: Reading) -> None:
    open_doors: list[tuple[str, Door]] = []
    for name, door in doors.items():
        given = http.section(name)
        if not door.enable or given.is_refused("enable", "host", "port", "socket"):
            continue
        if not door.hosts and not door.socket:
            text = f"a list of nothing: http.{name} would listen nowhere; set its socket, or enable: false"
            reading.wrong(given.given("host").where, f"http.{name}.host", text)
            continue
        for other, earlier in open_doors:
            shared = _shared_host(door, earlier) if door.port == earlier.port else ""
            if shared:
                found = _blamed(http, (name, other), ("port", "host"))
                text = f"{door.port}: http.{other} listens on {shared}:{door.port} already; choose another port"
                reading.wrong(found.where, f"http.{name}.port", text)
                break
            if door.socket and door.socket == earlier.socket:
                text = f'"{door.socket}": http.{other} listens there already; choose another path'
                reading.wrong(given.given("socket").where, f"http.{name}.socket", text)
                break
        else:
            open_doors.append((name, door))


def _blamed(http: Given, doors: tuple[str, ...], keys: tuple[str, ...]) -> Found:
    """The first of these keys of these doors that somebody wrote: not both doors are as they are by default."""
    return next(http.section(door).values[key] for key in keys for door in doors if key in http.section(door).values)


def _shared_host(one: Door, other: Door) -> str:
    """An address on which both would listen; empty: none."""
    for host in one.hosts:
        for taken in other.hosts:
            same_family = (":" in host) == (":" in taken)
            if host == taken or (same_family and {host, taken} & _WILDCARDS):
                return taken
            if "localhost" in (host, taken) and is_loopback(host) and is_loopback(taken):
                return taken
    return ""


def _check_keys(http: Given, doors: dict[str, Door], reading: Reading) -> None:
    if http["api_keys_file"] or http.is_refused("api_keys_file"):
        if "*" in http["cors_origins"] and not http.is_refused("cors_origins"):
            text = '"*": with keys, every web page that learns one could use it; write each page\'s origin out'
            reading.wrong(http.given("cors_origins").where, "http.cors_origins", text)
        return
    if http["without_key"] == "none":
        text = f"none: without http.api_keys_file nobody could come in by TCP; {_ADD_KEYS}"
        reading.wrong(http.given("without_key").where, "http.without_key", text)
    for name, door in doors.items():
        given = http.section(name)
        if not door.enable or given.is_refused("enable", "host"):
            continue
        reached = [host for host in door.hosts if not is_loopback(host)]
        if reached:
            text = f'"{reached[0]}": others than this machine reach it, and nothing asks them for a key; {_ADD_KEYS}'
            reading.wrong(given.given("host").where, f"http.{name}.host", f"{text}, or listen on 127.0.0.1")


def _check_tls(given: Given, tls: TlsConfig, reading: Reading) -> None:
    if bool(tls.certificate) == bool(tls.key) or given.is_refused("certificate", "key"):
        return
    present, missing = ("certificate", "key") if tls.certificate else ("key", "certificate")
    text = f"is set without http.tls.{missing}; TLS needs both"
    reading.wrong(given.given(present).where, f"http.tls.{present}", text)
