"""What models there are on disk: the records that finding, keeping and naming them share, and how each gets its name.

Pure: what is found is found elsewhere.
"""

from enum import StrEnum

from gpud.core.record import Record


class Source(StrEnum):
    """Whose order a place follows."""

    FOLDER = "folder"
    HUGGINGFACE = "huggingface"
    OLLAMA = "ollama"
    CONFIGURATION = "configuration"


class Format(StrEnum):
    """How a model is written. ``other``: an engine's own business (a command, a name at a server)."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    OTHER = "other"


class Purpose(StrEnum):
    """What a model is for, by its architecture."""

    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANKING = "reranking"
    ADAPTER = "adapter"
    """A LoRA: it is listed, and loaded only with the model that it belongs to."""


class Place(Record):
    """Where a model lies. ``path`` is what an engine is given: its first file, or its folder. ``name`` is what it is
    called there: a file's stem without the number of its part, ``org/repo``, or ``llama3.2:3b`` in Ollama's store.
    """

    path: str
    source: Source
    name: str


class Found(Record):
    """One model as it was found, however often it is there.

    ``places`` are all of them, the best first. ``stamp`` changes whenever any of its files does (device, inode, size,
    times): what has the same stamp need not be read again. ``digest`` is its SHA-256 where the store that has it says
    it, else empty. ``size_bytes`` counts all of its parts once, with what belongs to it. ``trained_context`` is what it
    was trained for. ``template``: it brings a chat template. ``ollama_name`` is its name in Ollama's store, where it is
    there. ``problem`` says why no engine can take it, else empty.
    """

    places: tuple[Place, ...]
    format: Format
    stamp: str
    size_bytes: int
    digest: str = ""
    architecture: str = ""
    quantization: str = ""
    parameters: str = ""
    trained_context: int | None = None
    purpose: Purpose = Purpose.COMPLETION
    parts: int = 1
    mmproj: str = ""
    draft_file: str = ""
    template: bool = False
    tools: bool = False
    ollama_name: str = ""
    problem: str = ""

    @property
    def path(self) -> str:
        """What identifies it for people and for the registry."""
        return self.places[0].path


class Entry(Record):
    """One model as the registry keeps it: what was found, what became of it, and what somebody said about it.

    ``name`` is the one under which every surface shows it. ``aliases``, ``priority``, ``tags`` and ``notes`` are what
    somebody gave it by command; ``priority`` empty: as configured. ``estimate_bytes`` is what it would need as it is
    configured, None where nobody has calculated it yet, and ``estimate_of`` marks the settings that this was calculated
    from. ``present``: it was there when it was last looked for; what is
    not keeps its entry, so that it gets its name back with its past.
    """

    id: int
    name: str
    found: Found
    aliases: tuple[str, ...] = ()
    priority: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    estimate_bytes: int | None = None
    compatible: tuple[str, ...] = ()
    present: bool = True
    configured: bool = False
    usage_count: int = 0
    first_seen_us: int = 0
    last_scanned_us: int = 0
    last_used_us: int | None = None
    load_s: float | None = None
    estimate_of: str = ""


class Roots(Record):
    """Where models are looked for. ``include`` and ``exclude`` are patterns (fnmatch) of paths below a folder; no
    ``include``: everything. ``huggingface`` are hub caches, ``ollama`` are stores with ``manifests`` and ``blobs``.
    ``files`` are single models (a file, or a folder of SafeTensors) that the configuration names, wherever they lie:
    patterns do not count for them.
    """

    folders: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    huggingface: tuple[str, ...] = ()
    ollama: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        return (*self.folders, *self.huggingface, *self.ollama)


class Trouble(Record):
    """Something that could not be looked at, or is no model although it looks like one."""

    path: str
    text: str


class Finding(Record):
    """One look at the roots. ``unreachable`` are roots, and folders below others, that could not be looked at: what is
    known of them stays. Why not is among the ``troubles``, but of roots that are not there.
    """

    models: tuple[Found, ...]
    troubles: tuple[Trouble, ...] = ()
    unreachable: tuple[str, ...] = ()
    files: int = 0
    read: int = 0
    seconds: float = 0.0


class Scanned(Record):
    """What one look has come to. ``new``, ``gone`` and ``changed`` are names; ``unreachable`` are folders that nobody
    could look at, and why: what is known of them stays.
    """

    models: int
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    files: int = 0
    read: int = 0
    seconds: float = 0.0
    at_us: int = 0
    unreachable: tuple[Trouble, ...] = ()
