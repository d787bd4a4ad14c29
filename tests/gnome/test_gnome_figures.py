"""What the widget shows for what gpud says of itself, in both builds of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .gjs_programs import Program

GIB = 1 << 30
MIB = 1 << 20


class Figures:
    """What figures.js makes of a status."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def of(
        self,
        *,
        favourites: tuple[str, ...] = (),
        amber: int = 85,
        red: int = 90,
        height: int | None = None,
        looked: bool = False,
        **status: object,
    ) -> Any:
        self._program.say(status, {"favourites": favourites, "amber": amber, "red": red, "height": height}, looked)
        return self._program.hear()


@pytest.fixture(scope="module")
def figures(build: Path, release: str) -> Iterator[Figures]:
    with Program(build, release, "figures_program") as program:
        yield Figures(program)


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """gjs is kept for the whole module."""


def gpu(
    used_bytes: int | None, total_bytes: int = 10 * GIB, foreign_bytes: int = 0, **more: object
) -> dict[str, object]:
    known = {} if used_bytes is None else {"VramUsed": used_bytes}
    return {"Uuid": "GPU-1", "Name": "RTX", "VramTotal": total_bytes, "VramForeign": foreign_bytes, **known, **more}


def model(name: str, state: str = "unloaded", **more: object) -> dict[str, object]:
    return {"Id": name, "DisplayName": name, "State": state, "VramBytes": 0, "NeedBytes": 0, "LastUsedUSec": 0, **more}


def test_nothing_is_loaded(figures: Figures) -> None:
    """The icon is the empty one, and no percentage is told: gpud does not measure while nothing is loaded."""
    shown = figures.of(State="idle", Models=[model("a")], Gpus=[gpu(9 * GIB)])
    assert (shown["icon"], shown["subtitle"], shown["percent"]) == ("gpud-idle-symbolic", "Nothing loaded", "")
    assert shown["short"] == "No model"
    assert (shown["checked"], shown["level"]) == (False, "")
    assert [choice["name"] for choice in shown["choices"]] == ["a"]


def test_a_loaded_model_is_shown_with_its_memory(figures: Figures) -> None:
    """Its name stands on the button, its memory and its end beside it; the words that are read aloud say all of it."""
    shown = figures.of(
        State="idle", ActiveModel="a", Models=[model("a", "ready", VramBytes=5 * GIB)], Gpus=[gpu(5 * GIB)]
    )
    assert (shown["icon"], shown["subtitle"], shown["percent"]) == ("gpud-loaded-symbolic", "a", "50%")
    assert shown["short"] == "a"
    assert shown["accessible"] == "GPU, a, 50%"
    assert shown["models"] == [{"id": "a", "name": "a", "text": "5.0 GiB", "detail": "", "action": "Unload a"}]
    assert shown["checked"]
    assert shown["choices"] == []


@pytest.mark.parametrize(
    ("used_bytes", "level"),
    [(84 * GIB // 10, ""), (85 * GIB // 10, "amber"), (89 * GIB // 10, "amber"), (9 * GIB, "red"), (10 * GIB, "red")],
)
def test_the_colour_follows_the_thresholds(figures: Figures, used_bytes: int, level: str) -> None:
    """Amber from 85 percent, red from 90, and the words say it too."""
    shown = figures.of(Models=[model("a", "ready")], Gpus=[gpu(used_bytes)])
    assert (shown["level"], shown["devices"][0]["level"]) == (level, level)
    word = {"": "", "amber": "filling up", "red": "nearly full"}[level]
    assert shown["devices"][0]["accessible"].endswith(word)
    assert shown["accessible"].endswith(word)


def test_the_thresholds_are_the_users(figures: Figures) -> None:
    """Other thresholds, other colours; red holds where both are reached."""
    assert figures.of(Models=[model("a", "ready")], Gpus=[gpu(5 * GIB)], amber=40, red=60)["level"] == "amber"
    assert figures.of(Models=[model("a", "ready")], Gpus=[gpu(5 * GIB)], amber=40, red=50)["level"] == "red"


def test_the_fullest_gpu_counts(figures: Figures) -> None:
    """With two GPUs each has its line, and the colour and the percentage are those of the fuller one."""
    shown = figures.of(
        Models=[model("a", "ready")],
        Gpus=[gpu(1 * GIB), gpu(95 * GIB // 10, Uuid="GPU-2", Name="second"), gpu(3 * GIB, Uuid="host", Name="host")],
    )
    assert [device["name"] for device in shown["devices"]] == ["RTX", "second"]
    assert (shown["level"], shown["percent"]) == ("red", "95%")


def test_a_machine_without_a_gpu_shows_its_memory(figures: Figures) -> None:
    """Where there is no GPU, models live in main memory, and that is what is shown."""
    shown = figures.of(Models=[], Gpus=[gpu(3 * GIB, Uuid="host", Name="host")])
    assert [device["name"] for device in shown["devices"]] == ["Main memory"]


def test_old_figures_are_not_told(figures: Figures) -> None:
    """What was measured before the last model went is not what is used since, unless gpud has looked for a person."""
    gpus = [gpu(4 * GIB, foreign_bytes=GIB)]
    (old,) = figures.of(Models=[model("a")], Gpus=gpus)["devices"]
    assert (old["text"], old["others"]) == ("10.0 GiB, not measured while nothing is loaded", "")
    assert (old["percent"], old["usedBytes"]) == (0, None)
    (new,) = figures.of(Models=[model("a")], Gpus=gpus, looked=True)["devices"]
    assert (new["text"], new["others"]) == ("4.0 of 10.0 GiB used", "1.0 GiB of it by other programs")


def test_what_other_programs_hold_is_told(figures: Figures) -> None:
    """Their share stands under the bar; without any there is no such line."""
    loaded = [model("a", "ready")]
    shown = figures.of(Models=loaded, Gpus=[gpu(4 * GIB, foreign_bytes=1536 * MIB), gpu(1 * GIB, Uuid="GPU-2")])
    assert [device["others"] for device in shown["devices"]] == ["1.5 GiB of it by other programs", ""]
    assert shown["devices"][0]["text"] == "4.0 of 10.0 GiB used"


def test_the_headline_has_model_and_memory(figures: Figures) -> None:
    """What the menu has on top: one line of what is loaded and how much of all GPUs is used."""
    busy = [model("llama3.2", "busy")]
    shown = figures.of(State="active", Models=busy, Gpus=[gpu(21 * GIB // 10, 6 * GIB)])
    assert shown["headline"] == "llama3.2 · 2.1/6.0 GiB"
    two = [gpu(GIB, 6 * GIB), gpu(2 * GIB, 6 * GIB, Uuid="GPU-2"), gpu(9 * GIB, Uuid="host")]
    assert figures.of(State="active", Models=busy, Gpus=two)["headline"] == "llama3.2 · 3.0/12.0 GiB"
    small = figures.of(State="idle", Models=[], Gpus=[gpu(0, 512 * MIB)], looked=True)
    assert small["headline"] == "Nothing loaded · 0/512 MiB"
    assert figures.of(State="idle", Models=[], Gpus=[gpu(None)])["headline"] == "Nothing loaded"
    assert figures.of(State="unavailable", Models=[])["headline"] == "Not available"


def test_an_unknown_use_is_not_zero(figures: Figures) -> None:
    """A GPU that does not say what is used is not shown as an empty one."""
    shown = figures.of(Models=[model("a", "ready")], Gpus=[gpu(None)])
    assert shown["devices"][0]["text"] == "10.0 GiB, use unknown"
    assert shown["percent"] == ""
    asleep = figures.of(Models=[], Gpus=[gpu(None)])
    assert asleep["devices"][0]["text"] == "10.0 GiB, not measured while nothing is loaded"


@pytest.mark.parametrize(
    ("state", "more", "text", "action"),
    [
        ("ready", {"VramBytes": 512 * MIB}, "512 MiB", "Unload a"),
        ("busy", {"VramBytes": GIB}, "1.0 GiB, answering", "Unload a"),
        ("busy", {}, "answering", "Unload a"),
        ("loading", {}, "loading", "Stop loading a"),
        ("loading", {"Progress": 0.42}, "loading, 42%", "Stop loading a"),
        ("queued", {"WaitsFor": "b"}, "waits for memory", "Stop waiting for a"),
        ("unloading", {}, "unloading", ""),
        ("failed", {"Error": "no file"}, "could not be loaded", "Dismiss a"),
    ],
)
def test_each_state_has_its_words(
    figures: Figures, state: str, more: dict[str, object], text: str, action: str
) -> None:
    """What a model does, what can be done about it, and why it waits or failed."""
    (shown,) = figures.of(Models=[model("a", state, **more)], Gpus=[])["models"]
    assert (shown["text"], shown["action"]) == (text, action)
    assert shown["detail"] == {"queued": "b", "failed": "no file"}.get(state, "")


def test_a_state_of_a_later_version_is_no_model(figures: Figures) -> None:
    """Words may be added on the bus: a model in a state that is not known is neither loaded nor an error."""
    shown = figures.of(Models=[model("a", "dreaming")], Gpus=[])
    assert shown["models"] == []


def test_favourites_come_in_their_order(figures: Figures) -> None:
    """Those that are loaded, or that no longer exist, are left out."""
    models = [model("a"), model("b"), model("c", "ready"), model("d", LastUsedUSec=5)]
    shown = figures.of(Models=models, Gpus=[], favourites=("b", "gone", "c", "a"))
    assert [choice["id"] for choice in shown["choices"]] == ["b", "a"]


def test_no_more_favourites_than_fit_the_screen(figures: Figures) -> None:
    """The first ten that are not loaded."""
    names = [f"m{number:02}" for number in range(14)]
    models = [model(name, "ready" if name == "m00" else "unloaded") for name in names]
    shown = figures.of(Models=models, Gpus=[], favourites=tuple(names))
    assert [choice["id"] for choice in shown["choices"]] == names[1:11]


def test_without_favourites_the_last_used_come_first(figures: Figures) -> None:
    """Five at most, then by name, with what they need where that is known."""
    models = [model(name) for name in "fedcba"] + [model("z", LastUsedUSec=9, VramEstimate=3 * GIB)]
    shown = figures.of(Models=models, Gpus=[])
    assert [choice["id"] for choice in shown["choices"]] == ["z", "a", "b", "c", "d"]
    assert [choice["text"] for choice in shown["choices"]] == ["3.0 GiB", "", "", "", ""]
    assert shown["choices"][0]["accessible"] == "Load z"


def test_favourites_that_are_no_longer_there_count_as_none(figures: Figures) -> None:
    """The menu is not empty because of them."""
    shown = figures.of(Models=[model("a", LastUsedUSec=1), model("b")], Gpus=[], favourites=("gone",))
    assert [choice["id"] for choice in shown["choices"]] == ["a", "b"]
    loaded = figures.of(Models=[model("a", "ready"), model("b")], Gpus=[], favourites=("a",))
    assert loaded["choices"] == []


def test_how_many_more_there_are_is_told(figures: Figures) -> None:
    """Those that gpud has not named, and those that it has and for which there is no room; with where to find them."""
    models = [model(f"m{number}") for number in range(9)] + [model("a", "ready")]
    shown = figures.of(Models=models, Gpus=[], Others=4990)
    assert len(shown["choices"]) == 5
    assert shown["more"] == "4,994 more: “gpudctl models list”"
    assert figures.of(Models=models, Gpus=[])["more"] == "4 more: “gpudctl models list”"
    assert figures.of(Models=models[:3], Gpus=[])["more"] == ""


def test_a_small_screen_has_all_that_matters(figures: Figures) -> None:
    """The menu cannot be scrolled: rows that have no room are counted, those that matter least first."""
    states = ("failed", "queued", "unloading", "loading", "busy", "ready", "failed")
    models = [model(f"{state}-{number}", state, Error="long") for number, state in enumerate(states)]
    idle = [model(f"m{number}", LastUsedUSec=9 - number) for number in range(9)]
    both = [gpu(1, foreign_bytes=GIB), gpu(1, Uuid="GPU-2")]
    small = figures.of(Models=models + idle, Gpus=both, height=768)
    assert [row["id"] for row in small["models"]] == ["busy-4", "ready-5"]
    assert (small["hidden"], small["choices"], small["more"]) == ("5 more: “gpudctl status”", [], "")
    large = figures.of(Models=models + idle, Gpus=both, height=2160)
    assert (len(large["models"]), large["hidden"], len(large["choices"])) == (7, "", 5)
    one = figures.of(Models=models[4:5] + idle, Gpus=both[:1], height=768)
    assert (len(one["models"]), one["hidden"], len(one["choices"])) == (1, "", 4)
    assert one["more"] == "5 more: “gpudctl models list”"


def test_gpus_are_counted(figures: Figures) -> None:
    """For words about one or several; the machine's memory is none."""
    host = gpu(GIB, Uuid="host")
    counts = [
        figures.of(Models=[], Gpus=gpus)["gpus"] for gpus in ([], [host], [gpu(1), host], [gpu(1), gpu(1, Uuid="2")])
    ]
    assert counts == [1, 1, 1, 2]


def test_a_failed_model_can_be_tried_again(figures: Figures) -> None:
    """It is both told of and offered."""
    shown = figures.of(Models=[model("a", "failed")], Gpus=[])
    assert [row["id"] for row in shown["models"]] == ["a"]
    assert [choice["id"] for choice in shown["choices"]] == ["a"]
    assert not shown["checked"]


def test_the_gpu_is_given_away(figures: Figures) -> None:
    """By Yield: the switch is on, and it is this widget's to switch off."""
    shown = figures.of(State="yielded", Yielded={"Why": "a game"}, Models=[model("a")], Gpus=[])
    assert (shown["yielded"], shown["keeper"], shown["subtitle"]) == (True, "", "Given away")
    assert shown["icon"] == "gpud-away-symbolic"


def test_another_program_keeps_the_gpu_free(figures: Figures) -> None:
    """By an inhibition, which Resume does not end: it is said who does."""
    holds = [{"What": "unload:evict", "Application": "x"}, {"What": "load", "Application": "steam", "Reason": "r"}]
    shown = figures.of(State="yielded", Yielded={}, Holds=holds, Models=[], Gpus=[])
    assert (shown["yielded"], shown["keeper"]) == (True, "steam")


def test_several_models_are_counted(figures: Figures) -> None:
    """The active one has its name on the button; all of them can be unloaded at once."""
    models = [model("a", "ready"), model("b", "busy"), model("c", "unloading")]
    shown = figures.of(ActiveModel="b", Models=models, Gpus=[])
    assert shown["subtitle"] == "b and 1 more"
    assert shown["several"]
    assert not figures.of(Models=[model("a", "ready"), model("c", "unloading")], Gpus=[])["several"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"State": "suspending"}, "Going to sleep"),
        ({"State": "unavailable"}, "Not available"),
        ({"State": "loading", "Models": [model("a", "loading")]}, "Loading a"),
        ({"State": "loading", "Models": [model("a", "queued")]}, "a waits"),
        ({"State": "unloading", "Models": [model("a", "unloading")]}, "Unloading"),
    ],
)
def test_the_button_says_what_happens(figures: Figures, status: dict[str, object], words: str) -> None:
    """One line for each state of the daemon."""
    assert figures.of(**status)["subtitle"] == words


@pytest.mark.parametrize(
    ("degraded", "words"),
    [
        ("", ""),
        ("cpu-fallback", "A model runs on the processor instead of the GPU"),
        ("driver-mismatch", "restart the computer"),
        ("over-budget", "More memory is in use"),
        ("gpu-unavailable", "The GPU does not answer"),
        ("state-not-kept", "perhaps because a disk is full"),
        ("cuda-unavailable", "does not let programs compute"),
        ("backend-missing", "gpudctl doctor"),
        ("moonstruck", "(moonstruck)"),
    ],
)
def test_what_is_wrong_is_told(figures: Figures, degraded: str, words: str) -> None:
    """With what to do; a word of a later version is passed on."""
    note = figures.of(State="idle", Degraded=degraded)["note"]
    assert words in note
    assert bool(note) == bool(degraded)


def test_a_gpu_that_cannot_be_used_is_told(figures: Figures) -> None:
    """Also where gpud gives no reason."""
    assert "gpudctl doctor" in figures.of(State="unavailable", Degraded="")["note"]


def test_a_small_gpu_is_told_in_mebibytes(figures: Figures) -> None:
    """Below one GiB nothing is rounded to 0.0."""
    shown = figures.of(Models=[], Gpus=[gpu(100 * MIB, 512 * MIB)], looked=True)
    assert shown["devices"][0]["text"] == "100 of 512 MiB used"
