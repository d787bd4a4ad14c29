"""What the names of model files say by custom: part, quantization, size, projector, draft, and who belongs to whom."""

import re

from gpud.catalog.gguf import PART

_QUANTIZATION = re.compile(
    r"(?:^|(?<=[-_. :/]))(?:UD-)?"
    r"(I?Q[1-8](?:_(?:[0-9]|K|XXS|XS|S|M|L|XL|NL|KT|R4|R8))*|B?F16|F32|FP(?:16|32|8)|BF16|MXFP4(?:_MOE)?|NVFP4|TQ[12]_0)"
    r"(?=$|[-_. :/])",
    re.IGNORECASE,
)
_SIZE = re.compile(r"(?:^|(?<=[-_. :/]))((?:\d{1,3}x)?\d{1,4}(?:\.\d{1,3})?[BM])(?=$|[-_. :/])", re.IGNORECASE)
_DRAFT = re.compile(r"(?:^|(?<=[-_. :/]))draft(?=$|[-_. :/])", re.IGNORECASE)
_BETWEEN = re.compile(r"[-_. :/]+")

_SAYS_NOTHING = frozenset(("mmproj", "model", "draft", "vision", "gguf", "projector", "imat", "i1", "ud"))


def part_of(name: str) -> tuple[str, int, int] | None:
    """The stem that all parts of a model share, which of them this file is, and how many there are."""
    found = PART.fullmatch(name) if "-of-" in name else None
    return (found["stem"], int(found["number"]), int(found["count"])) if found else None


def part_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def stem_of(name: str) -> str:
    """A file's name without ``.gguf`` and without the number of its part."""
    part = part_of(name)
    return part[0] if part else name.rpartition(".")[0]


def quantization(stem: str) -> str:
    found = _QUANTIZATION.findall(stem)
    return found[-1].upper() if found else ""


def parameters(stem: str) -> str:
    found = _SIZE.search(stem)
    return found[1].upper().replace("X", "x") if found else ""


def is_draft(stem: str) -> bool:
    return _DRAFT.search(stem) is not None


def words(stem: str) -> tuple[str, ...]:
    """What tells a model from others: its name without its quantization, and without what says no more than a role."""
    bare = _QUANTIZATION.sub("", stem).lower()
    return tuple(word for word in _BETWEEN.split(bare) if word and word not in _SAYS_NOTHING)


def kinship(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """By how many words one name is the beginning of the other; 0 where neither is."""
    count = min(len(one), len(other))
    return count if one[:count] == other[:count] else 0


def before_draft(stem: str) -> str:
    found = _DRAFT.search(stem)
    return stem[: found.start()] if found else stem
