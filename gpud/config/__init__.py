"""YAML in; one frozen, complete Config out, or every problem at once. Owns what can be configured, starts nothing."""

from gpud.config.api_keys import load_keys
from gpud.config.files import default_path, load, parse
from gpud.config.records import (
    AlertsConfig,
    BusConfig,
    Config,
    Door,
    DoorLimits,
    EngineConfig,
    GiveWayConfig,
    HttpConfig,
    IdleConfig,
    LoggingConfig,
    PrefetchConfig,
    SuspendConfig,
    TlsConfig,
)
from gpud.config.render import render, summary, to_yaml, warnings

__all__ = [
    "AlertsConfig",
    "BusConfig",
    "Config",
    "Door",
    "DoorLimits",
    "EngineConfig",
    "GiveWayConfig",
    "HttpConfig",
    "IdleConfig",
    "LoggingConfig",
    "PrefetchConfig",
    "SuspendConfig",
    "TlsConfig",
    "default_path",
    "load",
    "load_keys",
    "parse",
    "render",
    "summary",
    "to_yaml",
    "warnings",
]
