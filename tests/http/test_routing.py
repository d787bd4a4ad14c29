"""Which route a path finds, and how errors look to whom."""

import inspect

import msgspec
import pytest

from gpud.core import errors
from gpud.core.errors import BudgetExceeded, GpudError, NoSuchModel, QueueFull
from gpud.http.exchange import Exchange
from gpud.http.routing import Match, NotAllowed, Route, Router
from gpud.http.shapes import STATUSES, Api, error_value, headers_of, status_of


async def nothing(exchange: Exchange) -> None:
    """Never called here."""


def route(method: str, path: str, *, changes: bool = False) -> Route:
    return Route(method, path, nothing, Api.MANAGEMENT, changes=changes)


ROUTER = Router(
    [
        route("GET", "/models"),
        route("GET", "/models/{name}"),
        route("GET", "/models/status"),
        route("POST", "/models/load"),
        route("GET", "/upstream/{model}/{rest...}"),
        route("GET", "/{rest...}"),
    ]
)


def found(method: str, path: str) -> tuple[str, dict[str, str]]:
    match = ROUTER.find(method, path.split("/")[1:])
    assert isinstance(match, Match)
    return match.route.path, dict(match.parameters)


def test_words_come_before_names_and_names_before_the_rest() -> None:
    """A model that is called like a word is asked for otherwise."""
    assert found("GET", "/models/status") == ("/models/status", {})
    assert found("GET", "/models/tiny") == ("/models/{name}", {"name": "tiny"})
    assert found("GET", "/nothing/at/all") == ("/{rest...}", {"rest": "nothing/at/all"})


def test_the_rest_may_have_parts_or_none() -> None:
    """``/upstream/m/`` is the engine's own first page."""
    assert found("GET", "/upstream/m/v1/models")[1] == {"model": "m", "rest": "v1/models"}
    assert found("GET", "/upstream/m/")[1] == {"model": "m", "rest": ""}


def test_head_is_answered_by_get() -> None:
    """Without a route of its own."""
    assert found("HEAD", "/models")[0] == "/models"


def test_another_method_is_told_which_there_are() -> None:
    """405, not 404."""
    answer = Router([route("POST", "/models/load")]).find("GET", ["models", "load"])
    assert isinstance(answer, NotAllowed)
    assert list(answer.allowed) == ["POST"]
    assert Router([route("POST", "/models/load")]).find("GET", ["models"]) is None


def test_what_changes_something_is_never_asked_with_get() -> None:
    """Such a route cannot even be made."""
    with pytest.raises(ValueError, match="never asked with GET"):
        route("GET", "/unload", changes=True)


def test_no_path_has_two_handlers() -> None:
    """The second would never be found."""
    with pytest.raises(ValueError, match="two routes for GET /a"):
        Router([route("GET", "/a"), route("GET", "/a")])


def test_every_error_has_a_status() -> None:
    """None falls through to an internal error."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GpudError)]
    codes = {kind.code for kind in kinds} - {"failed"}
    assert codes == set(STATUSES)


def test_too_little_memory_is_507_with_both_numbers() -> None:
    """In the words of the original API, and for programs."""
    error = BudgetExceeded("cannot load", need_bytes=8 << 30, available_bytes=3 << 30)
    assert status_of(error) == 507
    value = error_value(Api.MANAGEMENT, error)["error"]
    assert value["type"] == "insufficient_vram"
    assert (value["need_bytes"], value["available_bytes"]) == (8 << 30, 3 << 30)
    assert "need 8.00 GiB, available 3.00 GiB" in value["message"]


def test_a_full_queue_says_when_to_ask_again() -> None:
    """Retry-After."""
    assert headers_of(QueueFull("full", retry_after_s=7.4)) == {"Retry-After": "7"}


@pytest.mark.parametrize("api", list(Api))
def test_every_api_has_errors_that_its_clients_can_read(api: Api) -> None:
    """The message is in all of them, where those clients look for it."""
    value = error_value(api, NoSuchModel('there is no model "x"', hint='did you mean "y"?'))
    text = msgspec.json.encode(value).decode()
    assert 'did you mean \\"y\\"?' in text
    inner = value["error"]
    assert isinstance(inner, str) if api is Api.OLLAMA else isinstance(inner["message"], str)
