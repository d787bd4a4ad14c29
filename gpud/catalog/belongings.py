"""Gives projectors and drafts to the models that they belong to, by where they lie and how they are called."""

from collections import defaultdict
from collections.abc import Sequence

from gpud.catalog import names
from gpud.catalog.glance import Role
from gpud.catalog.walk import File, Item, Walk
from gpud.core.catalogue import Purpose, Source
from gpud.core.record import Record

PREFERRED = ("F16", "BF16", "Q8_0", "F32")
"""Of a projector in several precisions the first of these is taken: half of a float loses nothing that can be seen."""


class _Candidate(Record):
    """What may belong to somebody. ``words`` are empty where its name says no more than what it is."""

    file: File
    words: tuple[str, ...]
    rank: tuple[int, str]

    @classmethod
    def of(cls, item: Item) -> "_Candidate":
        stem = item.stem
        kind = names.quantization(stem)
        rank = PREFERRED.index(kind) if kind in PREFERRED else len(PREFERRED)
        return cls(item.files[0], names.words(stem), (rank, item.path))


def give(walk: Walk, items: Sequence[Item]) -> list[Item]:
    """The models among the items, each with what belongs to it."""
    models = [item for item in items if item.glance is None or item.glance.role is Role.MODEL]
    projectors: defaultdict[str, list[_Candidate]] = defaultdict(list)
    for item in items:
        if item.glance is not None and item.glance.role is Role.PROJECTOR and item.home:
            projectors[item.home].append(_Candidate.of(item))
    with_drafts = {item.home for item in models if item.home and "draft" in item.path.lower()}
    at_home: defaultdict[str, list[Item]] = defaultdict(list)
    for item in models:
        if item.home in projectors or item.home in with_drafts:
            at_home[item.home].append(item)
    drafts = {id(draft) for home in with_drafts for draft in _give_drafts(at_home[home])}
    models = [item for item in models if id(item) not in drafts] if drafts else models
    for home, candidates in projectors.items():
        _give_projectors(walk, [item for item in at_home[home] if id(item) not in drafts], candidates)
    return models


def _speaks(item: Item) -> bool:
    return item.glance is None or item.glance.purpose is Purpose.COMPLETION


def _give_projectors(walk: Walk, family: list[Item], candidates: list[_Candidate]) -> None:
    models = [(item, names.words(item.stem)) for item in family if _speaks(item)]
    of_one_kind = len({words for _, words in models}) == 1 or all(
        place.source is Source.HUGGINGFACE for item, _ in models for place in item.places
    )
    given: set[File] = set()
    for item, words in models:
        related = [one for one in candidates if one.words and names.kinship(one.words, words)]
        if not related and of_one_kind:
            related = candidates
        if related:
            longest = max(names.kinship(one.words, words) for one in related)
            best = min((one for one in related if names.kinship(one.words, words) == longest), key=lambda one: one.rank)
            item.mmproj = best.file
            given.update(one.file for one in related)
    for one in candidates:
        if models and one.file not in given:
            walk.trouble(
                one.file.path,
                f"it is a projector (mmproj), and which of the {len(models)} models in its folder it belongs to cannot "
                "be told: call it MODEL-mmproj.gguf, or give both a folder of their own",
            )


def _give_drafts(family: list[Item]) -> list[Item]:
    """Returns those that were given to others: they are not models of their own any more."""
    drafts = [item for item in family if names.is_draft(item.stem) and _speaks(item) and not item.problem]
    others = [(item, names.words(item.stem)) for item in family if item not in drafts and _speaks(item)]
    of_one_kind = len({words for _, words in others}) == 1
    given: list[Item] = []
    for draft in sorted(drafts, key=lambda item: item.path):
        words = _words_of_draft(draft.stem)
        for item, own in others:
            theirs = names.kinship(words, own) == len(words) if words else of_one_kind
            if theirs and item.draft is None:
                item.draft = draft.files[0]
                given.append(draft)
    return given


def _words_of_draft(stem: str) -> tuple[str, ...]:
    """What stands before the word itself says whose draft it is; what follows is about the draft."""
    return names.words(names.before_draft(stem))
