"""YAML in; one frozen, complete Config out, or every problem at once. Owns what can be configured, starts nothing."""

from gpud.config.files import default_path, load, parse
from gpud.config.records import (
    AlertsConfig,
    BusConfig,
    Config,
    Door,
    EngineConfig,
    HttpConfig,
    LoggingConfig,
    PrefetchConfig,
)
from gpud.config.render import render, to_yaml, warnings

__all__ = [
    "AlertsConfig",
    "BusConfig",
    "Config",
    "Door",
    "EngineConfig",
    "HttpConfig",
    "LoggingConfig",
    "PrefetchConfig",
    "default_path",
    "load",
    "parse",
    "render",
    "to_yaml",
    "warnings",
]
