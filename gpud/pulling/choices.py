"""What a repository has to choose from: its quantizations, its files for images, and a model in other formats. Pure."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch

from gpud.core.record import Record, field
from gpud.pulling.names import quantization_of, split_of

WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data"),
    *("*.ot", "*.tflite", "*.mlmodel", "*.npz", "*.nemo", "*.zip", "*.tar", "*.tar.gz", "*.7z", "*.llamafile"),
)
"""Everything that may be weights: of a model in safetensors only those are taken, with the small files beside them."""

LARGEST_SMALL_BYTES = 256 << 20
"""Of what belongs to a model and is no weights; a vocabulary has up to 40 MB."""


class HubFile(Record):
    """One file of a repository. ``checksum`` is what it must come to, of the kind that the hub has for it."""

    path: str
    size_bytes: int
    checksum_kind: str
    checksum: str


class Choice(Record):
    """One model: a file, or all of its parts. ``label`` is its quantization, or its name where that says none.
    ``missing`` parts keep it from being used.
    """

    label: str
    stem: str
    files: tuple[HubFile, ...]
    missing: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Listing(Record):
    """``safetensors`` are the files of the model in that format, empty where there is none."""

    repo: str
    revision: str
    commit: str
    choices: tuple[Choice, ...] = ()
    projectors: tuple[HubFile, ...] = ()
    safetensors: tuple[HubFile, ...] = field(default=())


def listing(repo: str, revision: str, commit: str, files: Iterable[HubFile]) -> Listing:
    every = tuple(files)
    ggufs = [file for file in every if file.path.lower().endswith(".gguf")]
    models = [file for file in ggufs if not is_projector(file.path) and not is_other(file.path)]
    return Listing(
        repo,
        revision,
        commit,
        _choices(models),
        tuple(sorted((file for file in ggufs if is_projector(file.path)), key=_projector_rank)),
        _safetensors(every),
    )


def is_projector(path: str) -> bool:
    return "mmproj" in path.rpartition("/")[2].lower()


def is_other(path: str) -> bool:
    """GGUF files that are no models: what was counted to make them, and vocabularies."""
    name = path.rpartition("/")[2].lower()
    return "imatrix" in name or name.startswith("ggml-vocab")


def _choices(files: list[HubFile]) -> tuple[Choice, ...]:
    stems: dict[str, list[HubFile]] = {}
    for file in files:
        split = split_of(file.path)
        stems.setdefault(split[0] if split else file.path[: -len(".gguf")], []).append(file)
    found = []
    for stem, parts in stems.items():
        numbered = {split[1]: file for file in parts if (split := split_of(file.path)) is not None}
        whole = next((file for file in parts if split_of(file.path) is None), None)
        split = split_of(parts[0].path)
        count = split[2] if split else 1
        chosen = tuple(numbered[number] for number in sorted(numbered) if 1 <= number <= count)
        missing = count - len(chosen)
        if whole is not None:
            chosen, missing = (whole,), 0
        found.append(Choice(quantization_of(stem) or stem.rpartition("/")[2], stem, chosen, missing))
    return tuple(sorted(found, key=lambda choice: (choice.size_bytes, choice.stem)))


def _projector_rank(file: HubFile) -> tuple[int, str]:
    """The usual one first: exact, and half as large as in F32."""
    label = quantization_of(file.path[: -len(".gguf")])
    order = ("F16", "FP16", "BF16", "Q8_0", "F32")
    return (order.index(label) if label in order else len(order)), file.path


def _safetensors(files: tuple[HubFile, ...]) -> tuple[HubFile, ...]:
    """The weights at the top of the repository and what an engine reads beside them. Some publish the same weights a
    second time for their own programs.
    """
    top = [file for file in files if "/" not in file.path]
    weights = [file for file in top if file.path.endswith(".safetensors")]
    usual = [file for file in weights if not file.path.startswith("consolidated")] or weights
    if not usual or not any(file.path == "config.json" for file in top):
        return ()
    beside = [
        file
        for file in top
        if not any(fnmatch(file.path.lower(), pattern) for pattern in WEIGHTS)
        and file.size_bytes <= LARGEST_SMALL_BYTES
        and not file.path.startswith(".")
    ]
    return tuple(sorted([*usual, *beside], key=lambda file: file.path))


# What somebody means -------------------------------------------------------------------------------------------------


def matching(choices: tuple[Choice, ...], wish: str) -> tuple[Choice, ...]:
    """Those that a quantization or a file's path names: by its path, its name, its quantization as a whole, or without
    what publishers put before it.
    """
    wanted = wish.lower()
    ways = (
        lambda choice: any(file.path.lower() == wanted for file in choice.files),
        lambda choice: any(file.path.lower().rpartition("/")[2] == wanted for file in choice.files),
        lambda choice: choice.label.lower() == wanted,
        lambda choice: re.sub(r"^ud-", "", choice.label.lower()) == wanted,
        lambda choice: choice.stem.lower() == wanted,
    )
    for means in ways:
        found = tuple(choice for choice in choices if means(choice))
        if found:
            return found
    return ()
