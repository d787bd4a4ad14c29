"""Makes models of GGUF files: the parts of one that was split are one model."""

from collections import defaultdict

from gpud.catalog import names
from gpud.catalog.content import Content
from gpud.catalog.stream import visible
from gpud.catalog.walk import File, Item
from gpud.core.catalogue import Place, Source


def models_of(content: Content, source: Source, home: str) -> list[Item]:
    """One for each model that a folder has. One of which a part is being downloaded is not there yet."""
    found = []
    split: defaultdict[tuple[str, int], dict[int, File]] = defaultdict(dict)
    for name, file in content.ggufs.items():
        part = names.part_of(name)
        if part is None or part[2] <= 1:
            place = Place(file.path, source, visible(names.stem_of(name)))
            found.append(Item((place,), (file,), home=home))
        else:
            stem, number, count = part
            split[stem, count][number] = file
    for (stem, count), files in split.items():
        missing = [number for number in range(1, count + 1) if number not in files][:1]
        if any(names.part_name(stem, number, count) in content.partial for number in range(1, count + 1)):
            continue
        item = Item(
            (Place(files[min(files)].path, source, visible(stem)),),
            tuple(files[number] for number in sorted(files)),
            home=home,
        )
        if missing:
            item.problem = (
                f"its part {missing[0]} of {count} is missing: there is no "
                f'"{visible(names.part_name(stem, missing[0], count))}" beside it; '
                "download the missing part into the same folder"
            )
        found.append(item)
    return found
