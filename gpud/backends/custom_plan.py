"""What a custom engine's configuration means for one start: every name filled in, every address read.

Touches no file and asks nobody.
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from gpud.backends.options import EngineOptions
from gpud.core.errors import BackendFailed
from gpud.core.facts import BusyProbe, Endpoint, HttpCall, Model
from gpud.core.record import Record, replace

_NAME = re.compile(r"\$(?:\$|\{(\w*)\})")

NAMES = ("port", "socket", "key", "model", "file")


class Plan(Record):
    """One engine with every name filled in. ``health_endpoint`` is where its health is asked, mostly ``endpoint``."""

    model: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    endpoint: Endpoint
    health_endpoint: Endpoint
    health: str
    unload: HttpCall | None
    busy: BusyProbe | None


def make_plan(model: Model, options: EngineOptions, *, socket_path: str = "", port: int = 0, key: str = "") -> Plan:
    """``model`` is a located one. Raises BackendFailed(preflight) for a description that cannot work."""
    settings = model.settings
    names = _Names(
        model,
        {"port": str(port), "socket": socket_path, "key": key, "model": model.name, "file": settings.file},
    )
    argv = tuple(names.fill(part, "command") for part in settings.command)
    if "key" in names.used:
        raise unfit(model, "command uses ${key}, and everybody may read command lines", "hand it over in environment")
    environment = {
        name: names.fill(value, f"environment {name}") for name, value in (*options.environment, *settings.environment)
    }
    url = settings.url or options.url
    if url:
        endpoint = endpoint_of(model, names.fill(url, "url"))
    elif "socket" in names.used:
        endpoint = Endpoint(socket=socket_path)
    elif "port" in names.used:
        endpoint = Endpoint(host="127.0.0.1", port=port)
    elif settings.command:
        hint = "use ${port} or ${socket} in it, or say with url where it listens"
        raise unfit(model, "nothing says where its command listens", hint)
    else:
        raise unfit(model, "it has neither a command nor a url", "set one of them")
    if "key" in names.used:
        endpoint = replace(endpoint, key=key)
    health = names.fill(settings.health, "health")
    asked = endpoint
    if "://" in health:
        asked = replace(endpoint_of(model, health), key=endpoint.key)
        health, asked = asked.base_path or "/", replace(asked, base_path="")
    return Plan(model.name, argv, environment, endpoint, asked, health, settings.unload, settings.busy)


class _Names:
    """``${name}`` in texts; remembers which were ``used``."""

    def __init__(self, model: Model, values: Mapping[str, str]) -> None:
        self.used: set[str] = set()
        self._model = model
        self._values = values

    def fill(self, text: str, where: str) -> str:
        def one(match: re.Match[str]) -> str:
            name = match[1]
            if match[0] == "$$":
                return "$"
            if name not in self._values:
                known = ", ".join(f"${{{known}}}" for known in NAMES)
                raise unfit(self._model, f"{where} uses ${{{name}}}, which is not known", f"known are {known}")
            self.used.add(name)
            return self._values[name]

        return _NAME.sub(one, text)


def endpoint_of(model: Model, url: str) -> Endpoint:
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return Endpoint(socket=parts.path)
    try:
        port = parts.port
    except ValueError:
        raise unfit(model, f'the port of url "{url}" is not a number up to 65535', "correct it") from None
    if parts.scheme != "http" or not parts.hostname:
        raise unfit(model, f'url "{url}" cannot be used', "give it as http://HOST:PORT or unix:///PATH.sock")
    return Endpoint(host=parts.hostname, port=80 if port is None else port, base_path=parts.path.rstrip("/"))


def unfit(model: Model, what: str, hint: str, kind: str = "bad-setting") -> BackendFailed:
    return BackendFailed(f'cannot load "{model.name}": {what}', hint=hint, kind=kind, preflight=True)
