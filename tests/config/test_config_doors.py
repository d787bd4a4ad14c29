"""The section http: what it means, and what is refused because it would leave a door open."""

from pathlib import Path

import pytest

from gpud import config
from gpud.config.api_keys import keys_text
from gpud.core.errors import ConfigInvalid
from gpud.core.keys import BOTH, ApiKey, Rate, Right
from gpud.core.record import replace


def http(text: str) -> config.HttpConfig:
    return config.parse(f"http: {{{text}}}\nmodels: {{tiny: {{engine: embedded, file: /x, aliases: [t]}}}}", "/x").http


def problem(text: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        http(text)
    assert len(caught.value.problems) == 1, caught.value.problems
    return caught.value.problems[0].removeprefix("/x:1: ")


def test_by_default_three_doors_are_for_this_machine() -> None:
    """Loopback, without keys, without origins."""
    found = http("")
    assert found == config.HttpConfig()
    assert [(door.hosts, door.port, door.socket) for door in found.doors.values()] == [
        (("127.0.0.1",), 8080, ""),
        (("127.0.0.1",), 9000, ""),
        (("127.0.0.1",), 11434, ""),
    ]
    assert (found.cors_origins, found.allowed_hosts, found.without_key) == ((), (), BOTH)


def test_a_door_has_several_addresses_and_a_socket() -> None:
    """Names in lower case, addresses in the short form, each once."""
    door = http("front: {host: [127.0.0.1, '0:0::1', LocalHost., localhost], socket: s, socket_mode: 0666}").front
    assert door == config.Door(True, ("127.0.0.1", "::1", "localhost"), 8080, "/s", 0o666)
    assert http("front: {host: [], socket: /s}").front.hosts == ()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "'::'", "192.168.1.2", "box.lan", "[127.0.0.1, 10.0.0.1]", "127.0.0.1.nip.io"]
)
def test_a_door_that_others_reach_needs_keys(host: str) -> None:
    """And the message says how to get them."""
    told = problem(f"front: {{host: {host}}}")
    assert told.startswith('http.front.host: "')
    assert "http.api_keys_file: /etc/gpud/keys.yaml" in told
    assert "gpudctl key add NAME" in told
    assert http(f"front: {{host: {host}}}, api_keys_file: keys.yaml").api_keys_file == "/keys.yaml"
    assert not http(f"front: {{host: {host}, enable: false}}").front.enable


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "'::1'", "localhost", "'::ffff:127.0.0.1'"])
def test_loopback_needs_no_keys(host: str) -> None:
    """All that only this machine reaches."""
    assert http(f"front: {{host: {host}}}").api_keys_file == ""


def test_with_keys_this_machine_is_asked_for_one_too() -> None:
    """Unless it is said otherwise: behind a proxy everybody comes from here."""
    assert http("api_keys_file: /k").without_key == frozenset()
    assert http("api_keys_file: /k, without_key: use").without_key == {Right.USE}
    assert http("api_keys_file: /k, without_key: all").without_key == BOTH
    assert "nobody could come in by TCP" in problem("without_key: none")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:5000", "http://localhost:5000"),
        ("HTTPS://Chat.Example:443/", "https://chat.example"),
        ("http://[0::1]:5000", "http://[::1]:5000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("*", "*"),
    ],
)
def test_an_origin_is_what_a_browser_sends(given: str, meant: str) -> None:
    """Lower case, no default port, no slash at its end."""
    assert http(f"cors_origins: ['{given}']").cors_origins == (meant,)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("null", "every page without an origin"),
        ("localhost:5000", "is not an origin"),
        ("http://a/b", "is not an origin"),
        ("http://*.example", "write each of them out"),
        ("http://me@a", "is not an origin"),
        ("http://a:99999", "port"),
        ("http://münchen", "beyond ASCII"),
        ("", "is not an origin"),
    ],
)
def test_what_is_no_origin_is_refused(given: str, said: str) -> None:
    """With the reason."""
    told = problem(f"cors_origins: ['{given}']")
    assert told.startswith("http.cors_origins[0]: ")
    assert said in told


def test_no_wildcard_with_keys() -> None:
    """Every page that learns a key could use it."""
    assert "write each page's origin out" in problem("cors_origins: ['*'], api_keys_file: /k")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("*.lan", "write each name out"),
        ("http://box", "write the name alone"),
        ("box:8080", "has a port"),
        ("[::1]:80", "has a port"),
        ("a b", "is not a host name"),
        ("a..b", "is not a host name"),
        ("-a", "is not a host name"),
        ("1.2.3", "is not an address"),
        ("0x7f", "is not an address"),
        ("1.2.3.0x4", "is not an address"),
    ],
)
def test_what_is_no_host_is_refused(given: str, said: str) -> None:
    """With the reason."""
    told = problem(f"allowed_hosts: ['{given}']")
    assert told.startswith("http.allowed_hosts[0]: ")
    assert said in told


@pytest.mark.parametrize(
    "text",
    [
        "front: {port: 9000, host: localhost}",
        "front: {port: 9000, host: 0.0.0.0}, api_keys_file: /k",
        "front: {port: 9000, host: ['::1', 127.0.0.1]}",
    ],
)
def test_doors_share_no_address(text: str) -> None:
    """A wildcard and a name take addresses too; another family or another port is fine."""
    assert "http.front listens on " in problem(text)
    http("front: {port: 9000, host: '::1'}")
    http("front: {port: 9000, host: '::'}, api_keys_file: /k")


def test_doors_share_no_socket() -> None:
    """The second would take it from the first."""
    told = problem("front: {socket: /s}, ollama: {socket: /s}")
    assert told == 'http.ollama.socket: "/s": http.front listens there already; choose another path'


def test_a_door_listens_somewhere() -> None:
    """Or is not enabled."""
    assert "would listen nowhere" in problem("front: {host: []}")


def test_tls_needs_both_files() -> None:
    """And both are made absolute."""
    assert http("tls: {certificate: c.pem, key: k.pem}").tls == config.TlsConfig("/c.pem", "/k.pem")
    assert problem("tls: {certificate: c}") == "http.tls.certificate: is set without http.tls.key; TLS needs both"
    assert problem("tls: {key: c}") == "http.tls.key: is set without http.tls.certificate; TLS needs both"


def test_the_default_model_is_there() -> None:
    """By its name or an alias."""
    assert http("default_model: t").default_model == "t"
    assert http("default_model: one-that-will-be-found").default_model == "one-that-will-be-found"
    nothing_is_found = "default_model: tniy}\nregistry: {enable: false"
    assert problem(nothing_is_found) == 'http.default_model: "tniy": there is no such model; did you mean "tiny"?'


def test_numbers_are_read() -> None:
    """Sizes, times, rates."""
    found = http(
        "limits: {header: 8KiB, body: 1GiB, connections: 10, connections_per_address: 2, header_timeout: 1, "
        "body_timeout: 2, idle_timeout: 3, write_timeout: 4, answer_timeout: 5}, "
        "rate: 60/min, rate_without_key: 5 / s, heartbeat: never"
    )
    assert found.limits == config.DoorLimits(8 << 10, 1 << 30, 10, 2, 1, 2, 3, 4, 5)
    assert (found.rate, found.rate_without_key, found.heartbeat_s) == (Rate(60, 60.0), Rate(5, 1.0), 0.0)
    assert "is not a rate" in problem("rate: 60")
    assert "lock out gpud itself" in problem("front: {socket_mode: 0066}")


def test_the_section_is_shown_as_it_is_in_effect() -> None:
    """Names of files are no secrets, and all of it reads back."""
    text = "http: {api_keys_file: /k, tls: {certificate: /c, key: /p}, rate: 5/s, front: {host: [localhost, '::1']}}"
    parsed = config.parse(text, "x")
    assert config.render(parsed, "http.api_keys_file") == "/k\n"
    assert config.render(parsed, "http.tls") == "certificate: /c\nkey: /p\n"
    assert config.render(parsed, "http.rate") == "5/s\n"
    assert config.render(parsed, "http.without_key") == "none\n"
    assert config.render(parsed, "http.front.host") == "- localhost\n- ::1\n"
    assert replace(config.parse(config.to_yaml(parsed), "x")) == parsed


def test_warnings_name_what_stands_open(tmp_path: Path) -> None:
    """Keys in the clear, every web page, files that are not there, keys for models that are not."""
    missing = "http: {front: {host: 0.0.0.0}, api_keys_file: /none/k, tls: {certificate: /none/c, key: /none/p}}"
    said = config.warnings(config.parse(missing, "x"))
    assert [one.split(": ")[0] for one in said] == ["http.tls.certificate", "http.tls.key", "http.api_keys_file"]
    assert "/none/k: does not exist; gpudctl key add NAME makes it" in said[2]
    file = tmp_path / "keys.yaml"
    file.write_text(keys_text([ApiKey("a", bytes(32), ("*", "tn*", "tiny", "t*", "small"))]))
    file.chmod(0o600)
    model = "models: {tiny: {engine: custom, size: 0, url: 'http://127.0.0.1:1', aliases: [small]}}"
    clear, key = config.warnings(
        config.parse(f"http: {{front: {{host: 0.0.0.0}}, api_keys_file: {file}}}\n{model}", "x")
    )
    assert clear.startswith("http.front.host: 0.0.0.0: others than this machine reach it, and without http.tls")
    assert key == 'http.api_keys_file: the key "a" is for "tn*", and no model is called so'
    (everybody,) = config.warnings(config.parse("http: {cors_origins: ['*']}", "x"))
    assert "any web page" in everybody
    file.write_text("")
    (none,) = config.warnings(config.parse(f"http: {{api_keys_file: {file}}}", "x"))
    assert "has no keys" in none
