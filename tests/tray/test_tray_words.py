"""What the tray says and shows of a daemon in states that a small machine does not get into by itself."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpud.core.record import replace
from gpud.tray.picture import SIZES, Picture, draw, picture, pixmaps
from gpud.tray.settings import BadSettings, Settings, read, write
from gpud.tray.texts import Texts, languages, parse, texts
from gpud.tray.view import Snapshot, snapshot
from gpud.tray.wishes import Kind, Wish
from gpud.tray.words import SHORT, Entry, Words

TOP = Path(__file__).resolve().parents[2]
LOCALE = TOP / "gpud/tray/locale"
GIB = 1 << 30


def gpu(used: float, total: float = 8, foreign: float = 0, uuid: str = "GPU-1") -> dict[str, Any]:
    sizes = {"VramTotal": total, "VramUsed": used, "VramForeign": foreign}
    return {"Uuid": uuid, "Name": f"Card {uuid}", **{name: round(value * GIB) for name, value in sizes.items()}}


def status(**changes: Any) -> Snapshot:
    plain = {"State": "idle", "Degraded": "", "ActiveModel": "", "Models": [], "Gpus": [gpu(2)], "Yielded": {}}
    return snapshot({**plain, **changes})


def model(name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {"Id": name, "State": state, "VramBytes": GIB if state in ("ready", "busy") else 0, **more}


def words(**chosen: Any) -> Words:
    return Words(Texts(), Settings(**chosen))


def lines(entries: tuple[Entry, ...]) -> Iterator[Entry]:
    for entry in entries:
        yield entry
        yield from lines(entry.children)


def labels(now: Snapshot, **chosen: Any) -> list[str]:
    return [entry.label for entry in words(**chosen).menu(now)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"State": "unavailable"}, "The GPU does not answer"),
        ({"State": "suspending"}, "Going to sleep"),
        ({"State": "yielded"}, "The GPU is given away"),
        ({"State": "yielded", "Gpus": [gpu(2), gpu(2, uuid="GPU-2")]}, "The GPUs are given away"),
        ({"State": "yielded", "Gpus": [gpu(2, uuid="host")]}, "The GPU is given away"),
        ({"State": "loading", "Models": [model("a"), model("b", "loading")]}, "Loading b"),
        ({"State": "unloading", "Models": [model("a", "unloading")]}, "Unloading a"),
        ({"State": "active", "ActiveModel": "a", "Models": [model("a", "busy")]}, "a answers"),
        ({"State": "active", "ActiveModel": "b", "Models": [model("a"), model("b")]}, "b is loaded, and 1 more"),
        ({"State": "something new"}, "No model is loaded"),
        ({"State": "loading"}, "No model is loaded"),
    ],
)
def test_the_headline(changes: dict[str, Any], sentence: str) -> None:
    """It says what matters most, also in a state that is not invented yet."""
    assert words().headline(status(**changes)) == sentence


def test_memory_of_one_gpu() -> None:
    """Used of total, in percent, and what of it is other programs'."""
    now = status(Gpus=[gpu(7.2, 8, 1.5), gpu(10, 64, 3, "host")], Models=[model("a")])
    assert words().memory(now) == [
        "GPU memory: 7.2 GiB of 8.0 GiB in use (90 %)",
        "Other programs: 1.5 GiB",
    ]


def test_memory_of_two_gpus() -> None:
    """The sum, and each of them: a full one does not hide behind an empty one."""
    now = status(Gpus=[gpu(7.8), gpu(0.5, uuid="GPU-2")], Models=[model("a")])
    assert words().memory(now)[:3] == [
        "Memory of all GPUs: 8.3 GiB of 16.0 GiB in use (51 %)",
        "Card GPU-1: 7.8 GiB of 8.0 GiB (97 %)",
        "Card GPU-2: 512 MiB of 8.0 GiB (6 %)",
    ]
    assert picture(now, Settings()).tint == "red"


def test_memory_of_a_machine_without_a_gpu() -> None:
    """The machine's own memory stands in its place, and is called that."""
    host = [gpu(4, 16, 2, "host")]
    in_use = status(Gpus=host, Models=[model("a")])
    assert words().memory(in_use) == ["Memory: 4.0 GiB of 16.0 GiB in use (25 %)", "Other programs: 2.0 GiB"]
    assert words().memory(status(Gpus=host)) == ["Memory: 16.0 GiB, not measured while nothing is loaded"]


@pytest.mark.parametrize("gpus", [[], [gpu(0, 0)], [{"Uuid": "GPU-1"}], None])
def test_memory_that_is_not_known(gpus: Any) -> None:
    """A GPU that says nothing has no percentage, and is no reason to fail."""
    now = status(Gpus=gpus)
    assert words().memory(now) == ["How full the GPU is, is not known"]
    assert picture(now, Settings()) == Picture(0, "blue", "")


def test_what_was_not_measured_is_not_zero() -> None:
    """While nothing is loaded gpud lets the driver sleep; a GPU that does not say what is used is no empty one."""
    silent = {key: value for key, value in gpu(0).items() if key not in ("VramUsed", "VramForeign")}
    asleep = status(Gpus=[silent], Models=[model("a", "unloaded")])
    assert words().memory(asleep) == ["GPU memory: 8.0 GiB, not measured while nothing is loaded"]
    assert words().memory(status(Gpus=[silent], Models=[model("a")])) == ["GPU memory: 8.0 GiB, use unknown"]
    two = status(Gpus=[silent, gpu(2, foreign=1, uuid="GPU-2")], Models=[model("a")])
    assert words().memory(two) == [
        "Memory of all GPUs: 16.0 GiB, use unknown",
        "Card GPU-2: 2.0 GiB of 8.0 GiB (25 %)",
        "Other programs: 1.0 GiB",
    ]


def test_old_figures_are_not_told() -> None:
    """What was measured before the last model went is not what is used since."""
    now = status(Gpus=[gpu(7.2, 8, 1.5)], Models=[model("a", "unloaded")])
    assert words().memory(now) == ["GPU memory: 8.0 GiB, not measured while nothing is loaded"]


def test_a_refusal_counts_the_gpus() -> None:
    """One GPU is one, also in what is said when it could not be given away."""
    assert [words().failure(Wish(Kind.GIVE_AWAY), gpus) for gpus in (0, 1, 2)] == [
        "The GPU could not be given away",
        "The GPU could not be given away",
        "The GPUs could not be given away",
    ]
    assert words().failure(Wish(Kind.TAKE_BACK), 2) == "The GPUs could not be taken back"


def test_of_thousands_the_menu_says_how_many_more_there_are() -> None:
    """And where to find them; a favourite that is among those shown is one of them."""
    models = [model(f"m{number:02}", "unloaded", LastUsedUSec=number) for number in range(30)]
    menu = {entry.key: entry for entry in lines(words(favourites=("m03",)).menu(status(Models=models, Others=4970)))}
    for key in ("load:unseen", "favourites:unseen"):
        assert (menu[key].label, menu[key].wish) == ("4970 more: gpudctl models list", None)
    assert menu["load:more"].children[-1] == menu["load:unseen"]
    assert menu["favourites"].children[-1] == menu["favourites:unseen"]
    assert [entry.key for entry in lines(words().menu(status(Models=models))) if "unseen" in entry.key] == []


def test_what_is_wrong_is_said_with_what_to_do() -> None:
    """Known words become sentences; a word that is not known stands as it is."""
    assert words().degraded(status(Degraded="cuda-unavailable")) == "CUDA does not work; gpudctl doctor says more"
    assert words().degraded(status(Degraded="new-trouble")) == "new-trouble; gpudctl doctor says more"
    assert words().tooltip(status(Degraded="over-budget")).startswith("The models hold more than the budget; ")
    assert "The models hold more than the budget; gpudctl doctor says more" in labels(status(Degraded="over-budget"))


def test_the_tooltip_holds_no_markup() -> None:
    """Some trays read it as HTML: names cannot make them show something else."""
    text = words().tooltip(status(Models=[model("x", DisplayName="<b>a</b> & b")]))
    assert "‹b›a‹/b› + b: 1.0 GiB" in text


def test_what_waits_can_be_given_up_by_its_job() -> None:
    """A load that waits has a line that ends it; one that is somebody's request only says so."""
    now = status(
        Models=[model("a", "queued", WaitsFor='"big" to go'), model("b", "queued")],
        Jobs=[{"Id": 7, "Kind": "load", "Model": "a"}, {"Id": 8, "Kind": "unload", "Model": "b"}],
    )
    menu = {entry.label: entry for entry in words().menu(now)}
    assert menu["Stop waiting for a"].wish == Wish(Kind.CANCEL, "a", 7)
    assert menu["b: waiting for memory"].wish is None
    assert 'a: waiting for "big" to go' in words().tooltip(now)


def test_a_load_can_be_stopped() -> None:
    """While a model loads its line unloads it; while it is being unloaded there is nothing to click."""
    menu = {
        entry.label: entry for entry in words().menu(status(Models=[model("a", "loading"), model("b", "unloading")]))
    }
    assert menu["Stop loading a"].wish == Wish(Kind.UNLOAD, "a")
    assert menu["b: being unloaded"].wish is None


def test_without_favourites_what_was_used_last_comes_first() -> None:
    """So many at once, the others one step further, by name."""
    models = [model(f"m{number:02}", "unloaded", LastUsedUSec=number) for number in range(SHORT + 3)]
    menu = {entry.key: entry for entry in lines(words().menu(status(Models=models)))}
    first = [entry.label for entry in menu["load"].children]
    assert first == [f"m{number:02}" for number in range(SHORT + 2, 2, -1)] + ["", "Others"]
    assert [entry.label for entry in menu["load:more"].children] == ["m00", "m01", "m02"]


def test_what_a_model_would_need_stands_beside_its_name() -> None:
    """Before it is loaded: what is reserved for it, else what gpud foresees; nothing where nobody knows."""
    models = [
        model("a", "unloaded", LastUsedUSec=3, VramEstimate=2 * GIB),
        model("b", "unloaded", LastUsedUSec=2, VramEstimate=2 * GIB, NeedBytes=3 * GIB),
        model("c", "unloaded", LastUsedUSec=1),
    ]
    menu = {entry.key: entry for entry in lines(words().menu(status(Models=models)))}
    assert [entry.label for entry in menu["load"].children] == ["a (2.0 GiB)", "b (3.0 GiB)", "c"]


def test_favourites_that_are_not_there_are_passed_over() -> None:
    """A favourite that is no longer configured makes no line; one that is loaded is not offered."""
    now = status(Models=[model("a"), model("b", "unloaded"), model("c", "failed")])
    menu = {entry.key: entry for entry in lines(words(favourites=("gone", "a", "c")).menu(now))}
    assert [entry.label for entry in menu["load"].children] == ["c (failed before)", "", "Others"]


def test_a_foreign_inhibition_cannot_be_ended_here() -> None:
    """Where a program keeps the GPUs empty, Resume would do nothing, and is not offered."""
    entry = next(entry for entry in words().menu(status(State="yielded")) if entry.key == "give-away")
    assert (entry.label, entry.wish) == ("A program keeps the GPU empty", None)


def test_every_line_has_a_key_of_its_own() -> None:
    """Numbers go by keys: two lines with one would be one."""
    models = [model("a"), model("b", "unloaded"), model("load", "queued"), model("more", "failed"), model("c", "busy")]
    now = status(Models=models, Degraded="x", Gpus=[gpu(1), gpu(2, uuid="2")])
    keys = [entry.key for entry in lines(words(favourites=("b",)).menu(now, "a problem"))]
    assert len(keys) == len(set(keys))


def test_a_long_problem_is_cut() -> None:
    """A menu is not a terminal."""
    text = next(entry.label for entry in words().menu(status(), "word " * 100) if entry.key == "problem")
    assert len(text) == 160
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("used", "tint"), [(6.79, "blue"), (6.81, "amber"), (7.19, "amber"), (7.21, "red"), (8, "red"), (9, "red")]
)
def test_the_icon_is_amber_at_85_and_red_at_90_percent(used: float, tint: str) -> None:
    """From the limit on, not a little before or after."""
    assert picture(status(Gpus=[gpu(used)], Models=[model("a")]), Settings()).tint == tint


def test_old_figures_warn_nobody() -> None:
    """While nothing is loaded gpud does not measure: a full GPU of an hour ago is no reason for a red icon."""
    now = status(Gpus=[gpu(7.9)], Models=[model("a", "unloaded")])
    assert picture(now, Settings()) == Picture(0, "blue", "")


def test_the_limits_can_be_chosen() -> None:
    """What counts is what the person has set."""
    now = status(Gpus=[gpu(4)], Models=[model("a")])
    assert picture(now, Settings(amber=40, red=60)).tint == "amber"
    assert picture(now, Settings(amber=40, red=50)).tint == "red"


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({}, ""),
        ({"State": "unavailable"}, "cross"),
        ({"State": "yielded"}, "pause"),
        ({"State": "loading"}, "dots"),
        ({"Degraded": "over-budget"}, "alert"),
        ({"Gpus": [gpu(7.5)], "Models": [model("a")]}, "alert"),
    ],
)
def test_the_icon_has_a_mark(changes: dict[str, Any], mark: str) -> None:
    """What is out of the ordinary is not said by a color alone."""
    assert picture(status(**changes), Settings()).mark == mark


def test_the_icon_is_drawn() -> None:
    """Each size has four bytes a pixel; more filling is more color; the corners are empty; marks can be told apart."""
    shown = Picture(4, "blue", "")
    assert [(width, height, len(data)) for width, height, data in pixmaps(shown)] == [
        (size, size, 4 * size * size) for size in SIZES
    ]

    def blue(level: int) -> int:
        data = draw(Picture(level, "blue", ""), 48)
        return sum(data[at : at + 4] == bytes((255, 61, 155, 242)) for at in range(0, len(data), 4))

    counts = [blue(level) for level in range(9)]
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    assert draw(shown, 48)[0] == 0
    drawn = {
        draw(replace(shown, mark=mark, tint=tint), 22)
        for mark in ("", "pause", "alert", "cross", "dots")
        for tint in ("blue", "red")
    }
    assert len(drawn) == 10


# Settings ------------------------------------------------------------------------------------------------------------


def test_settings_are_what_was_written(tmp_path: Path) -> None:
    """They survive being written and read; without a file the defaults hold."""
    file = tmp_path / "gpud" / "tray.conf"
    assert read(file) == Settings((), 85, 90)
    chosen = Settings(("a", "b:7b"), 50, 60)
    write(file, chosen)
    assert read(file) == chosen
    assert [path.name for path in file.parent.iterdir()] == ["tray.conf"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tray]\namber = lots\n", 'amber is "lots"; it is a percentage from 1 to 100'),
        ("[tray]\namber = 95\n", "amber is 95 and red 90; amber comes first"),
        ("[tray]\nred = 0\n", 'red is "0"'),
        ("[tray]\ncolour = red\n", '"colour" is no setting; there are favourites, amber, red'),
        ("amber = 3\n", "it cannot be read: File contains no section headers."),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """The message names the file, what is wrong, and what to do."""
    file = tmp_path / "tray.conf"
    file.write_text(text)
    with pytest.raises(BadSettings, match=re.escape(words)) as refusal:
        read(file)
    assert str(file) in refusal.value.message
    assert refusal.value.hint == "correct it or delete it: without it the defaults hold"


# Languages -----------------------------------------------------------------------------------------------------------


def used_texts() -> set[str]:
    """Every text of the words that is to be translated."""
    found = set()
    for node in ast.walk(ast.parse((TOP / "gpud/tray/words.py").read_text())):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("_", "ngettext"):
                found.add(node.args[0].value)
    return found


@pytest.mark.parametrize("language", ["de", "pt"])
def test_the_translations_are_complete(language: str) -> None:
    """Every text has its translation with the same placeholders, and there is no translation without a text."""
    translated = parse((LOCALE / f"{language}.po").read_text())
    assert set(translated) - {""} == used_texts()
    for text, translations in translated.items():
        for translation in translations if text else ():
            assert sorted(re.findall(r"{\w+}", translation)) == sorted(re.findall(r"{\w+}", text)), text


@pytest.mark.parametrize("file", sorted(LOCALE.iterdir()), ids=lambda file: file.name)
def test_gettext_accepts_the_translations(file: Path) -> None:
    """``msgfmt`` has nothing to say."""
    assert shutil.which("msgfmt"), "msgfmt is missing: tools/packages test installs it"
    done = subprocess.run(
        ["msgfmt", "--check-format", "--check-domain", "--output-file=/dev/null", file], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_language_is_found_as_gettext_finds_it() -> None:
    """LANGUAGE comes before LC_ALL, LC_MESSAGES and LANG; a country falls back to its language, then to English."""
    assert languages({"LANGUAGE": "pt_BR:de", "LANG": "fr_FR.UTF-8"})[:3] == ["pt_BR", "pt", "de_DE"]
    assert languages({"LC_ALL": "de_AT.UTF-8", "LANG": "pt_PT.UTF-8"}) == ["de_AT", "de"]
    assert texts({"LANG": "pt_BR.UTF-8"}).gettext("Quit") == "Sair"
    assert texts({"LANG": "de_DE.UTF-8"}).number(1.26) == "1,3"
    for environment in ({}, {"LANG": "C.UTF-8"}, {"LANG": "xx_YY.UTF-8"}, {"LC_ALL": "C", "LANG": "de_DE.UTF-8"}):
        assert texts(environment).gettext("Quit") == "Quit"


def test_plurals_follow_the_language() -> None:
    """One is one; what none counts as is the language's to say."""
    german = texts({"LANG": "de_DE.UTF-8"})
    assert german.ngettext("and {count} more", "and {count} more", 1) == "und {count} weiteres"
    assert german.ngettext("and {count} more", "and {count} more", 0) == "und {count} weitere"
    brazilian = Texts(
        parse(
            'msgid ""\nmsgstr "Plural-Forms: nplurals=2; plural=(n > 1);\\n"\n\n'
            'msgid "a"\nmsgid_plural "b"\nmsgstr[0] "um"\nmsgstr[1] "dois"\n'
        )
    )
    assert [brazilian.ngettext("a", "b", count) for count in (0, 1, 2)] == ["um", "um", "dois"]
    assert Texts().ngettext("a", "b", 0) == "b"


def test_what_is_not_translated_stays_english() -> None:
    """An empty or fuzzy translation is none."""
    catalogue = parse('msgid "a"\nmsgstr ""\n\n#, fuzzy\nmsgid "b"\nmsgstr "B"\n\nmsgid "c"\nmsgstr ""\n"C"\n')
    assert catalogue == {"c": ("C",)}
