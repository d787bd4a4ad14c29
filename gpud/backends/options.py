"""What the configuration says about one engine as a whole, as every backend receives it."""

from gpud.core.record import Record, repr_without


class EngineOptions(Record):
    """Settings of an engine, not of a model. Empty and zero mean: the backend's own default.

    ``binary`` is a path or a name to be found in PATH. ``environment`` is laid under a model's own and, since it may
    hold keys, never shown. ``url`` attaches to an engine that somebody else runs; ``host`` and ``port`` say where a
    shared engine that gpud runs shall listen. ``models_dir`` is where relative model files are looked for. ``python``
    is the interpreter that has the engine's Python package, where that is not gpud's own. ``keep_running`` keeps a
    shared engine up while nothing is loaded.
    """

    binary: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    url: str = ""
    host: str = ""
    port: int = 0
    models_dir: str = ""
    python: str = ""
    keep_running: bool = False

    def __repr__(self) -> str:
        return repr_without(self, "environment")
