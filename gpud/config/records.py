"""What a configuration is once it has been read: frozen records, every default applied. Never reads a file."""

from collections.abc import Callable, Mapping, Sequence

from gpud.core.catalogue import Entry
from gpud.core.engines import ORDER
from gpud.core.facts import Limits, Model, StopTimes
from gpud.core.keys import BOTH, Rate, Right
from gpud.core.record import Record, field, repr_without, same_without

Makes = Callable[[Entry, Sequence[str]], Model | str]
"""The model that a found one is, by the engines that are there; or why there can be none, as a sentence."""


def _nothing_known(_entry: Entry, _engines: Sequence[str]) -> Model | str:
    return "no configuration says what it would be loaded with"


class EngineConfig(Record):
    """What all models of one engine share.

    ``url`` attaches to an engine that somebody else runs; the fields before it are then empty. ``port`` 0 lets gpud
    choose a free one. ``keep_running`` leaves the engine's server up when its last model was unloaded.
    """

    binary: str = ""
    python: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    models_dir: str = ""
    keep_running: bool = False
    url: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return repr_without(self, "environment")


class LoggingConfig(Record):
    """How much is said. An engine that prints more lines a second than allowed has the rest counted, not printed."""

    level: str = "info"
    engine_lines_per_second: int = 200


class AlertsConfig(Record):
    """Who is told that a GPU is nearly full, beside the journal and the bus."""

    webhook: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "webhook")


class PrefetchConfig(Record):
    """What is done ahead of time, and whether also on battery."""

    page_cache: bool = True
    on_battery: bool = False


class IdleConfig(Record):
    """When everything goes that nobody holds: all sessions have been idle for so long (None: never), one is locked, the
    last user has logged out.
    """

    sessions_idle: float | None = None
    locked: bool = False
    logged_out: bool = False


class SuspendConfig(Record):
    """What becomes of loaded models when the machine sleeps: ``unload`` or ``keep``."""

    policy: str = "unload"
    restore: bool = True


class GiveWayConfig(Record):
    """``programs`` are patterns of the names of those that have the GPUs while they run."""

    programs: tuple[str, ...] = ()


class Door(Record):
    """Where one door listens: on each of ``hosts`` with ``port``, and on a Unix socket where it has a path."""

    enable: bool
    hosts: tuple[str, ...]
    port: int
    socket: str = ""
    socket_mode: int = 0o660


class TlsConfig(Record):
    """The files of the certificate, with its chain, and of its private key; both empty: no TLS."""

    certificate: str = ""
    key: str = ""


class DoorLimits(Record):
    """What one door grants its clients.

    ``header_s`` bounds a whole header; a body, or an answer that is being read, may pause for ``body_s`` or
    ``write_s``; a connection waits ``idle_s`` for its next request. ``answer_s`` is how long an engine may be silent in
    the middle of an answer.
    """

    header_bytes: int = 64 << 10
    body_bytes: int = 100 << 20
    connections: int = 2048
    connections_per_address: int = 512
    header_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    write_s: float = 60.0
    answer_s: float = 600.0


class HttpConfig(Record):
    """Where gpud listens, and who may come in.

    ``without_key`` is what a TCP client of this machine may do without a key; nobody else comes in without one.
    ``heartbeat_s`` 0: none is sent. ``rate`` is that of keys which have none of their own, ``rate_without_key`` that of
    each caller without a key; None: no limit. ``default_model`` empty: the one that was used last.
    """

    front: Door = Door(True, ("127.0.0.1",), 8080)
    management: Door = Door(True, ("127.0.0.1",), 9000)
    ollama: Door = Door(True, ("127.0.0.1",), 11434)
    api_keys_file: str = ""
    without_key: frozenset[Right] = BOTH
    rate: Rate | None = None
    rate_without_key: Rate | None = None
    tls: TlsConfig = TlsConfig()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    default_model: str = ""
    heartbeat_s: float = 10.0
    limits: DoorLimits = DoorLimits()

    @property
    def doors(self) -> dict[str, Door]:
        """By name."""
        return {"front": self.front, "management": self.management, "ollama": self.ollama}


class BusConfig(Record):
    """What one caller on D-Bus may have at the same time."""

    jobs: int = 16
    holds: int = 16
    calls: int = 64


class RegistryConfig(Record):
    """Where models are looked for that nobody has written down, and what they get.

    ``paths`` None: the folders that ``storage.base_directory`` has; ``huggingface`` and ``ollama`` None: the stores
    that are there. Empty: none. ``most_context`` is what a model gets at most of what it was trained for.
    """

    enable: bool = True
    paths: tuple[str, ...] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    huggingface: tuple[str, ...] | None = None
    ollama: tuple[str, ...] | None = None
    scan_interval_s: float = 3600.0
    scan_on_start: bool = True
    most_context: int = 16384


class Config(Record):
    """A whole configuration that has passed every check.

    ``overrides`` are the entries below ``models:`` that have no model of their own: what they say, in the words of the
    file, of models that are found under their name or pattern. ``found`` knows what each of those is loaded with.

    ``models`` are complete: every default is in them, ``stop`` and ``idle_timeout_s`` too. ``engines`` has only those
    that the files mention. ``backend_order`` has been obeyed already where a model leaves its engine open. ``sources``
    are the files that were read, ``missing`` is a user's own at its usual place while it is not there.
    """

    models: Mapping[str, Model] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    found: Makes = _nothing_known
    registry: RegistryConfig = RegistryConfig()
    engines: Mapping[str, EngineConfig] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    idle_timeout_s: float = 300.0
    stop: StopTimes = field(default_factory=StopTimes)
    backend_order: tuple[str, ...] = ORDER
    base_directory: str = "/var/lib/ml-models"
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    prefetch: PrefetchConfig = field(default_factory=PrefetchConfig)
    idle: IdleConfig = IdleConfig()
    suspend: SuspendConfig = SuspendConfig()
    give_way: GiveWayConfig = GiveWayConfig()
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    bus: BusConfig = field(default_factory=BusConfig)
    sources: tuple[str, ...] = ()
    missing: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "overrides", "found")

    def __eq__(self, other: object) -> bool:
        return same_without(self, other, "found")
