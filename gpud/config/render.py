"""Writes a Config back as YAML, whole or one key of it, and says what is valid and yet worth a look."""

import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpud.config.api_keys import load_keys
from gpud.config.doors import without_key_word
from gpud.config.files import SMALLEST
from gpud.config.kinds import Percent, nearest
from gpud.config.network import is_loopback
from gpud.config.records import Config, Door, HttpConfig
from gpud.config.schema import (
    ALERTS,
    BUS,
    ENGINE,
    EVICTION,
    GIVE_WAY,
    GPU,
    HTTP,
    IDLE,
    LOGGING,
    MODEL,
    PREFETCH,
    QUEUE,
    REGISTRY,
    RESTART,
    ROOT,
    SESSIONS,
    STOP,
    SUSPEND,
)
from gpud.config.sections import HUB, Key, Section
from gpud.config.source import Scalar, Where, is_secret
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid, InvalidArguments
from gpud.core.facts import BudgetLimits, BusyProbe, HttpCall, Model
from gpud.core.keys import EVERYTHING
from gpud.core.record import replace

_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):  # type: ignore[misc]
    """Puts in quotes whatever our own reader would not take for text; YAML's versions differ about words like 1e5."""


def _represent_text(dumper: Any, text: str) -> Any:
    style = "'" if Scalar(Where("", 0), text).looks_like != "text" else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


MASK = "********"


def to_yaml(config: Config, *, secrets: bool = False) -> str:
    """The effective configuration as YAML that :func:`gpud.config.parse` reads back to an equal one.

    Secrets are masked unless ``secrets``; only then does it read back to the same.
    """
    return _dump(_data(config, secrets=secrets))


def render(config: Config, key: str | None = None) -> str:
    """The effective configuration, or one key of it (``idle.timeout``, ``models.tiny``), secrets masked.

    Raises InvalidArguments for a key that is not there.
    """
    data: object = _data(config, secrets=False)
    if not key:
        return _dump(data)
    left, reached = key, ""
    while left:
        found = _longest(data, left)
        if found is None:
            raise _no_such_key(data, left, reached)
        assert isinstance(data, dict)
        data = data[found]
        reached = f"{reached}.{found}" if reached else found
        left = left[len(found) + 1 :]
    return _dump(data) if isinstance(data, (dict, list)) else f"{_scalar(data)}\n"


def _longest(data: object, key: str) -> str | None:
    """The longest name in ``data`` with which ``key`` begins: names of models may hold dots."""
    if not isinstance(data, dict):
        return None
    fits = [str(name) for name in data if key == name or key.startswith(f"{name}.")]
    return max(fits, key=len, default=None)


def _no_such_key(data: object, left: str, reached: str) -> InvalidArguments:
    names = [str(name) for name in data] if isinstance(data, dict) else []
    place = f' in "{reached}"' if reached else ""
    hint = f"there are: {' '.join(names)}" if names else f'"{reached}" has no keys below it'
    return InvalidArguments(f'cannot show "{left}": there is no such key{place}{nearest(left, names)}', hint=hint)


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _dump(data: object) -> str:
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False
    )
    return text


def _data(config: Config, *, secrets: bool) -> dict[str, object]:
    limits = config.limits
    gpu = {
        "budget": _budget(limits.gpu),
        "reserve": limits.gpu.reserve_bytes,
        "host_budget": _budget(limits.host),
        "host_reserve": limits.host.reserve_bytes,
        "external_busy_mib": None if limits.external_busy_bytes is None else limits.external_busy_bytes >> 20,
        "alert_percent": limits.alert_percent or 0.0,
    }
    eviction = replace(limits.eviction, above_percent=limits.eviction.above_percent or 0.0)
    top = {key.name: key for key in ROOT.keys}
    return {
        "models": {name: _model(model, secrets=secrets) for name, model in config.models.items()}
        | {name: _override(said, secrets=secrets) for name, said in config.overrides.items()},
        "engines": {name: _of_record(ENGINE, engine, name, secrets=secrets) for name, engine in config.engines.items()},
        "idle": _of_records(IDLE, config, config.idle, limits),
        "storage": {"base_directory": config.base_directory},
        "registry": {
            key.name: _written(key, value)
            for key in REGISTRY.keys
            if (value := getattr(config.registry, key.field or key.name)) != ()
            or key.name not in ("include", "exclude")
        },
        "gpu": _of_records(GPU, limits, **gpu),
        "queue": _of_record(QUEUE, limits.queue, "", secrets=secrets),
        "eviction": _of_record(EVICTION, eviction, "", secrets=secrets),
        "scheduler": {"backend_order": list(config.backend_order)},
        "alerts": _of_record(ALERTS, config.alerts, "", secrets=secrets),
        "prefetch": _of_record(PREFETCH, config.prefetch, "", secrets=secrets),
        "suspend": _of_records(SUSPEND, config.suspend, without_gpu=str(limits.loads_without_gpu)),
        "give_way": _of_record(GIVE_WAY, config.give_way, "", secrets=secrets)
        | {"loads": str(limits.loads_during_game)},
        "stop": _of_record(STOP, config.stop, "", secrets=secrets),
        "restart": _of_records(RESTART, limits),
        "memory_wait": _written(top["memory_wait"], limits.memory_wait_s),
        "shutdown_drain": _written(top["shutdown_drain"], limits.shutdown_drain_s),
        "logging": _of_record(LOGGING, config.logging, "", secrets=secrets),
        "http": _http(config.http),
        "sessions": _of_record(SESSIONS, limits.sessions, "", secrets=secrets),
        "bus": _of_record(BUS, config.bus, "", secrets=secrets),
    }


def _http(http: HttpConfig) -> dict[str, object]:
    """Nothing in it is secret: the files of keys are only named."""
    data: dict[str, object] = {}
    for key in HTTP.keys:
        value: Any = getattr(http, key.field or key.name)
        if isinstance(key.kind, Section):
            found = _of_record(key.kind, value, "", secrets=True)
            if isinstance(value, Door):
                found["host"] = _written(_key(key.kind, "host"), value.hosts)
            if found:
                data[key.name] = found
        elif key.name == "without_key":
            data[key.name] = without_key_word(value)
        elif value is not None and value != "":
            data[key.name] = _written(key, value)
    return data


def _key(section: Section, *path: str) -> Key:
    (key,) = (one for one in section.keys if one.name == path[0])
    return key if len(path) == 1 else _key(key.kind, *path[1:]) if isinstance(key.kind, Section) else key


def _written(key: Key, value: object) -> object:
    return key.kind.write(value)


def _budget(limits: BudgetLimits) -> int | Percent | None:
    return limits.budget_bytes if limits.budget_percent is None else Percent(limits.budget_percent)


def _of_records(section: Section, *records: object, **made: object) -> dict[str, object]:
    """What several records say of one section; ``made`` is what the file says in other words, by the key."""
    data: dict[str, object] = {}
    for key in section.keys:
        name = key.field or key.name
        value = made.get(key.name, next((getattr(one, name) for one in records if hasattr(one, name)), None))
        if value is not None:
            data[key.name] = _written(key, value)
    return data


def _of_record(section: Section, record: object, engine: str, *, secrets: bool) -> dict[str, object]:
    """What of a record can stand in a file for this engine and says something."""
    data: dict[str, object] = {}
    for key in section.keys:
        value = getattr(record, key.field or key.name, None)
        if value is None or value in ("", ()) or not key.used_by(engine):
            continue
        data[key.name] = _masked(key.name, _written(key, value), secrets=secrets)
    if data.get("url"):
        # What a server of our own would be started with means nothing, and is refused, beside a url.
        for name in ("host", "port", "keep_running"):
            data.pop(name, None)
    return data


def _override(said: Mapping[str, object], *, secrets: bool) -> dict[str, object]:
    return {name: _masked(name, value, secrets=secrets) for name, value in said.items()}


def _model(model: Model, *, secrets: bool) -> dict[str, object]:
    """What several engines agree on stands below the model, what they do not, below each of them."""
    variants = {one.engine: _by_engine(one, secrets=secrets) for one in (model, *model.alternatives)}
    if not model.alternatives:
        return {"engine": model.engine} | variants[model.engine]
    own: dict[str, dict[str, object]] = {engine: {} for engine in variants}
    common: dict[str, object] = {}
    for key in MODEL.keys:
        takers = [engine for engine in variants if key.used_by(engine)]
        given = {engine: variants[engine][key.name] for engine in takers if key.name in variants[engine]}
        values = list(given.values())
        if values and len(given) == len(takers) and all(value == values[0] for value in values):
            common[key.name] = values[0]
        else:
            for engine, value in given.items():
                own[engine][key.name] = value
    return {"engine": own if any(own.values()) else list(own)} | common


def _by_engine(model: Model, *, secrets: bool) -> dict[str, object]:
    data: dict[str, object] = {}
    for key in MODEL.keys:
        if key.name == "engine" or not key.used_by(model.engine):
            continue
        value = getattr(model if key.model_field else model.settings, key.field or key.name)
        if key.name == "model" and model.engine in HUB:
            value = model.settings.hub_name
        if isinstance(value, HttpCall):
            body = {} if value.body is None else {"body": _masked("body", value.body, secrets=secrets)}
            data[key.name] = {"post": value.path} | body
        elif isinstance(value, BusyProbe):
            data[key.name] = {"get": value.path, "any": list(value.fields)}
        elif key.name == "stop":
            data[key.name] = _of_record(STOP, model.stop, "", secrets=secrets)
        elif key.name == "gpu":
            data[key.name] = value or "auto"
        elif value is not None and value not in ("", ()):
            data[key.name] = _masked(key.name, _written(key, value), secrets=secrets)
    return data


def _masked(name: str, value: object, *, secrets: bool) -> object:
    """What is secret by its name; environment, bodies and argument lists without what their names call so."""
    if secrets:
        return value
    if is_secret(name):
        return MASK
    if name in ("environment", "body"):
        return _mask_map(value)
    if name in ("command", "extra_flags") and isinstance(value, list):
        return _mask_arguments(value)
    return value


def _mask_map(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            key: MASK if is_secret(str(key)) and not isinstance(item, Mapping) else _mask_map(item)
            for key, item in value.items()
        }
    return [_mask_map(item) for item in value] if isinstance(value, list) else value


def _mask_arguments(arguments: list[str]) -> list[str]:
    masked: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        names_secret = is_secret(name) and name.startswith("-")
        if hide_next and not argument.startswith("${"):
            masked.append(MASK)
        elif names_secret and equals and not value.startswith("${"):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(argument)
        hide_next = names_secret and not equals and not hide_next
    return masked


_DEFAULTS = f"everything has its default; to configure a model, write it there, for example: {SMALLEST}"


def summary(config: Config) -> str:
    """How much is configured, and in which files; where there is none yet, what to write where."""
    if config.sources:
        return f"{plural(len(config.models), 'model')} configured in {', '.join(config.sources)}"
    return f"nothing is configured yet, {config.missing} does not exist; {_DEFAULTS}"


def warnings(config: Config, *, model_files: bool = True) -> tuple[str, ...]:
    """What is valid and yet probably not meant. Looks at the file system; for ``gpudctl config check``.
    ``model_files``: also which of them are missing.
    """
    said = [f"{config.missing}: does not exist; {_DEFAULTS}"] if config.missing else []
    for name, model in config.models.items():
        for key in ("file", "mmproj", "draft_file") if model_files else ():
            paths = dict.fromkeys(getattr(one.settings, key) for one in (model, *model.alternatives))
            missing = (path for path in paths if path and not os.path.exists(path))  # noqa: PTH110
            said += [
                f'models.{name}.{key}: there is no file "{path}" now; loading the model would fail' for path in missing
            ]
        if model.size_bytes is not None and 0 < model.size_bytes < 1 << 20:
            said.append(
                f"models.{name}.size: is {plural(model.size_bytes, 'byte')}, less than 1 MiB; "
                "a size without a unit is in bytes"
            )
        if model.pinned and model.idle_timeout_s != config.idle_timeout_s:
            said.append(f"models.{name}.idle_timeout: has no effect, for the model is pinned")
    said += _warnings_of_found(config)
    said += _warnings_of_doors(config)
    for directory in sorted({os.path.dirname(source) for source in config.sources if "/gpud.d/" in source}):  # noqa: PTH120
        ignored = (file for file in sorted(os.listdir(directory)) if file.endswith((".yml", ".json")))  # noqa: PTH208
        said += [f"{directory}/{file}: is not read; only names that end in .yaml are" for file in ignored]
    return tuple(said)


def _warnings_of_found(config: Config) -> list[str]:
    said: list[str] = []
    if not config.registry.enable:
        text = "has no effect, for it says how a model is treated that is found, and registry.enable is false"
        said += [f"models.{name}: {text}" for name in config.overrides]
    for name in ("paths", "huggingface", "ollama"):
        folders = getattr(config.registry, name) or ()
        for path in (path for path in folders if not os.path.isdir(path)):  # noqa: PTH112
            there = os.path.exists(path)  # noqa: PTH110
            text = f'"{path}" is no folder' if there else f'there is no folder "{path}" now'
            said.append(f"registry.{name}: {text}; it is waited for")
    names = {name for model in config.models.values() for name in (model.name, *model.aliases)}
    if config.http.default_model and config.http.default_model not in names | config.overrides.keys():
        near = nearest(config.http.default_model, sorted(names))
        text = f"no model is configured under this name{near}; it works once one is found that is called so"
        said.append(f"http.default_model: {config.http.default_model}: {text}")
    return said


def _warnings_of_doors(config: Config) -> list[str]:
    said: list[str] = []
    http = config.http
    for name, door in http.doors.items():
        reached = [host for host in door.hosts if door.enable and not is_loopback(host)]
        if reached and not http.tls.certificate:
            text = "others than this machine reach it, and without http.tls keys and prompts are sent in the clear"
            said.append(f"http.{name}.host: {reached[0]}: {text}")
    if "*" in http.cors_origins:
        said.append("http.cors_origins: *: any web page that is looked at on this machine may use its models")
    for key in ("certificate", "key"):
        path = getattr(http.tls, key)
        if path and not os.path.exists(path):  # noqa: PTH110
            said.append(f'http.tls.{key}: there is no file "{path}" now; the doors could not be opened')
    if http.api_keys_file:
        said += _warnings_of_keys(config, Path(http.api_keys_file))
    return said


def _warnings_of_keys(config: Config, path: Path) -> list[str]:
    try:
        keys = load_keys(path)
    except ConfigInvalid as invalid:
        return [f"http.api_keys_file: {problem}" for problem in invalid.problems]
    if not keys:
        return [f'http.api_keys_file: {path} has no keys; "gpudctl key add NAME" makes one']
    names = [name for model in config.models.values() for name in (model.name, *model.aliases)]
    return [
        f'http.api_keys_file: the key "{key.name}" is for "{pattern}", and no model is called so'
        for key in keys
        for pattern in key.allow
        if not any(replace(key, allow=(pattern,)).allows(name) for name in names) and pattern != EVERYTHING
    ]
