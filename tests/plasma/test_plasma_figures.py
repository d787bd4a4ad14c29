"""What the Plasma widget shows for what gpud says of itself, worked out by its own module, in another engine."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
MODULE = TOP / "desktop/plasma/package/contents/ui/figures.mjs"
GIB = 1 << 30

Call = Callable[..., Any]


@pytest.fixture
def call() -> Call:
    """Call a function of the module."""
    assert shutil.which("gjs"), "gjs is missing: tools/packages test installs it"

    def call(name: str, *values: object) -> Any:
        done = subprocess.run(
            ["gjs", "-m", Path(__file__).with_name("figures_program.js"), MODULE.as_uri()],
            input=json.dumps([name, values]) + "\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def gpu(used: float, foreign: float = 0, uuid: str = "GPU-1") -> dict[str, Any]:
    return {"Uuid": uuid, "Name": uuid, "VramTotal": 8 * GIB, "VramUsed": used * GIB, "VramForeign": foreign * GIB}


def model(name: str, state: str = "unloaded", **more: object) -> dict[str, Any]:
    return {"Id": name, "State": state, **more}


def shown(call: Call, *, favourites: tuple[str, ...] = (), **status: object) -> Any:
    return call("figures", status, {"favourites": favourites, "amber": 85, "red": 90})


def test_an_empty_answer_shows_nothing(call: Call) -> None:
    """Records may lack any key."""
    now = shown(call)
    assert (now["state"], now["active"], now["devices"], now["percent"], now["level"]) == ("", None, [], 0, "")
    assert (now["present"], now["offered"], now["configured"], now["yielded"], now["kept"]) == ([], [], 0, False, False)


def test_the_fullest_gpu_decides(call: Call) -> None:
    """Sums are told, and the color is that of the GPU that fails first; the machine's memory is none."""
    now = shown(call, Models=[model("a", "ready")], Gpus=[gpu(7.3, 1), gpu(1, uuid="GPU-2"), gpu(8, uuid="host")])
    assert (now["percent"], now["level"]) == (91, "red")
    assert (now["used"], now["total"], now["foreign"]) == (8.3 * GIB, 16 * GIB, GIB)
    assert [device["name"] for device in now["devices"]] == ["GPU-1", "GPU-2"]
    assert not now["onHost"]
    assert shown(call, Gpus=[gpu(4, uuid="host")])["onHost"]


@pytest.mark.parametrize(("used", "level"), [(6.79, ""), (6.81, "amber"), (7.19, "amber"), (7.21, "red"), (9, "red")])
def test_amber_and_red(call: Call, used: float, level: str) -> None:
    """From 85 and 90 percent on, and not before."""
    now = shown(call, Models=[model("a", "ready")], Gpus=[gpu(used)])
    assert now["level"] == level
    assert now["percent"] <= 100


def test_old_figures_warn_nobody(call: Call) -> None:
    """While nothing is loaded gpud does not measure: what it had measured before is not shown either."""
    status = {"Models": [model("a")], "Gpus": [gpu(8)]}
    preferences = {"favourites": [], "amber": 85, "red": 90}
    old = call("figures", status, preferences)
    assert (old["fresh"], old["level"], old["percent"], old["measured"]) == (False, "", 0, False)
    # Whoever has just opened the popup has had gpud look.
    looked = call("figures", status, preferences, "", True)
    assert (looked["fresh"], looked["level"], looked["percent"], looked["measured"]) == (False, "", 100, True)


def test_what_is_there_can_be_ended(call: Call) -> None:
    """A model is unloaded, a load stopped, a wait given up by its job; what others wait for is only shown."""
    models = [
        model("a", "busy", VramBytes=5, NeedBytes=9),
        model("b", "loading", NeedBytes=9, Progress=0.5),
        model("c", "queued"),
        model("d", "queued", WaitsFor="a"),
        model("e", "unloading"),
        model("f", "something new"),
    ]
    now = shown(
        call, Models=models, Jobs=[{"Id": 3, "Kind": "load", "Model": "c"}, {"Id": 4, "Kind": "unload", "Model": "d"}]
    )
    rows = {row["name"]: row for row in now["present"]}
    assert {name: (row["job"], row["canEnd"]) for name, row in rows.items()} == {
        "a": (0, True),
        "b": (0, True),
        "c": (3, True),
        "d": (0, False),
        "e": (0, False),
    }
    assert (rows["a"]["size"], rows["b"]["size"], rows["b"]["progress"], rows["d"]["waitsFor"]) == (5, 9, 0.5, "a")
    assert [row["name"] for row in now["offered"]] == ["f"]
    assert now["loadedCount"] == 1


def test_favourites_come_first_in_their_order(call: Call) -> None:
    """The others follow by when they were used, and are not among the first."""
    models = [
        model("a", LastUsedUSec=1),
        model("b", LastUsedUSec=9),
        model("c", "failed", Error="x", ErrorHint="y"),
        model("d"),
    ]
    offered = shown(call, Models=models, favourites=("d", "c", "gone"))["offered"]
    assert [(row["name"], row["first"]) for row in offered] == [("d", True), ("c", True), ("b", False), ("a", False)]
    assert (offered[1]["failed"], offered[1]["error"]) == (True, "x; y")


def test_what_would_be_needed_is_shown_before_it_is_loaded(call: Call) -> None:
    """What is reserved for a model, else what gpud foresees; 0 where nobody knows."""
    models = [model("a", VramEstimate=2), model("b", VramEstimate=2, NeedBytes=3), model("c")]
    now = shown(call, Models=[*models, model("d", "loading", VramEstimate=4)])
    assert [row["size"] for row in now["offered"]] == [2, 3, 0]
    assert [row["size"] for row in now["present"]] == [4]


def test_without_favourites_what_was_used_last_comes_first(call: Call) -> None:
    """Eight of them at once; favourites that are no longer configured count as none."""
    models = [model(f"m{number:02}", LastUsedUSec=number) for number in range(10)]
    offered = shown(call, Models=models, favourites=("gone",))["offered"]
    assert [row["name"] for row in offered if row["first"]] == [f"m{number:02}" for number in range(9, 1, -1)]
    assert len(offered) == 10


def test_a_search_shows_what_it_found(call: Call) -> None:
    """gpud names favourites and what has failed whatever is searched for: of those what has the words in its name."""
    models = [model("Qwen3-8b"), model("b", Aliases=["my-qwen"]), model("c", "failed"), model("d"), model("e", "ready")]
    preferences = {"favourites": ["d", "b"], "amber": 85, "red": 90}
    now = call("figures", {"Models": models, "Others": 3, "ModelCount": 5000}, preferences, " QWEN")
    assert [(row["name"], row["first"]) for row in now["offered"]] == [("b", True), ("Qwen3-8b", True)]
    assert ([row["name"] for row in now["present"]], now["others"], now["configured"]) == (["e"], 3, 5000)


def test_what_is_not_seen_at_one_glance_is_searched(call: Call) -> None:
    """With more than eight to choose from, favourites or not; and while something is searched, whatever is found."""
    eight, nine = ([model(f"m{number}") for number in range(count)] for count in (8, 9))
    assert not shown(call, Models=eight)["searches"]
    assert shown(call, Models=eight, Others=1)["searches"]
    assert shown(call, Models=nine, favourites=("m1",))["searches"]
    assert not shown(call, Models=[model("a", "ready"), *eight])["searches"]
    assert call("figures", {"Models": eight}, {"favourites": [], "amber": 85, "red": 90}, "nothing")["searches"]


def test_what_was_not_measured_is_not_zero(call: Call) -> None:
    """A GPU whose driver sleeps, or that does not say what is used; nor is anything where no GPU is known."""
    silent = {"Uuid": "GPU-2", "Name": "two", "VramTotal": 8 * GIB}
    loaded = [model("a", "ready")]
    now = shown(call, Models=loaded, Gpus=[gpu(1), silent, gpu(9, uuid="host")])
    assert [device["measured"] for device in now["devices"]] == [True, False]
    assert (now["measured"], now["gpus"]) == (False, 2)
    assert not shown(call)["measured"]
    one = shown(call, Models=loaded, Gpus=[gpu(1)])
    assert (one["measured"], one["gpus"], shown(call, Gpus=[gpu(9, uuid="host")])["gpus"]) == (True, 1, 1)


def test_who_gave_the_gpus_away_decides_who_takes_them_back(call: Call) -> None:
    """What Yield gave away, Resume takes back; what a program inhibits, only that program."""
    assert (
        shown(call, State="yielded", Yielded={"SinceUSec": 1})["yielded"],
        shown(call, State="yielded")["kept"],
    ) == (True, True)
    assert shown(call, State="yielded")["yielded"] is False
    assert shown(call, State="yielded", Yielded={"SinceUSec": 1})["kept"] is False


def test_how_a_load_has_ended(call: Call) -> None:
    """While its job is there it has not; then the model tells, and where it does not, the daemon has to be asked."""
    job = {"Id": 7, "Kind": "load", "Model": "a"}
    assert call("outcome", {"Jobs": [job], "Models": [model("a", "loading")]}, 7, "a") is None
    assert call("outcome", {"Models": [model("a", "ready")]}, 7, "a")["result"] == ""
    failed = call("outcome", {"Models": [model("a", "failed", Error="it broke", ErrorHint="mend it")]}, 7, "a")
    assert failed == {"result": "failed", "text": "it broke; mend it"}
    assert call("outcome", {"Models": [model("a")]}, 7, "a")["result"] == "unknown"
    assert call("outcome", {"Models": []}, 7, "a")["result"] == "unknown"


def test_a_word_of_a_command_line_stays_one(call: Call) -> None:
    """Whatever the name of a model has in it, a shell takes it for one word, and for that one."""
    for word in ("a", 'it\'s; $(rm -rf /) `x` "y"\n', "''", ""):
        quoted = call("quoted", word)
        done = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True)
        assert done.stdout == word


def test_values_lose_their_wrapping(call: Call) -> None:
    """Numbers and texts come from Plasma as objects with a value; records and lists are kept."""
    wrapped = {
        "A": {"value": 5},
        "B": [{"value": "x"}, {"C": {"value": True}}],
        "D": {},
        "E": {"value": {"F": {"value": 0}}},
    }
    assert call("plain", wrapped) == {"A": 5, "B": ["x", {"C": True}], "D": {}, "E": {"F": 0}}
    assert call("plain", None) is None


def test_a_favourite_is_turned(call: Call) -> None:
    """Added at the end, or taken out."""
    assert call("turned", ["a"], "b") == ["a", "b"]
    assert call("turned", ["a", "b"], "a") == ["b"]
