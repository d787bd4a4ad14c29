"""What is asked of a server of SafeTensors that runs: whether it is well, what it works on, what it serves, and to
sleep or wake up. Bounded questions; never relays a request.
"""

import json
import logging

from gpud.backends import call, runner
from gpud.backends.dialect import Dialect
from gpud.core.errors import BackendFailed
from gpud.core.facts import Endpoint, Model
from gpud.core.record import replace

log = logging.getLogger(__name__)

SLEEP_S = 120.0
"""Level 1 copies the weights into host memory: some seconds for each ten GiB, and first its last answers end."""


class Talk:
    """With the servers of one kind."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    async def requests(self, endpoint: Endpoint, timeout_s: float) -> tuple[int, int] | None:
        """How many run and how many wait, by its own gauges; None where it has none. Raises Unreachable."""
        answer = await call.request(endpoint, "GET", "/metrics", timeout_s=timeout_s)
        found = [(match["waits"], float(match["value"])) for match in self._dialect.gauges.finditer(answer.body)]
        if answer.status != 200 or not found:
            return None
        waiting = sum(value for waits, value in found if waits)
        return int(sum(value for _, value in found) - waiting), int(waiting)

    async def busy(self, endpoint: Endpoint) -> bool | None:
        try:
            requests = await self.requests(endpoint, runner.ANSWER_S)
        except call.Unreachable:
            return None
        return None if requests is None else sum(requests) > 0

    async def health(self, endpoint: Endpoint, timeout_s: float = runner.ANSWER_S) -> str:
        try:
            answer = await call.request(endpoint, "GET", "/health", timeout_s=timeout_s)
        except call.Unreachable as problem:
            return f"{self._dialect.title} does not answer: {problem}"
        if answer.status == 200:
            return ""
        return f"{self._dialect.title} answers its health check with status {answer.status}"

    async def named(self, model: Model, endpoint: Endpoint, timeout_s: float) -> Endpoint:
        """The endpoint with the name by which the server knows the model. Raises Unreachable, and BackendFailed where
        it serves another one.
        """
        if not self._dialect.names_model:
            return endpoint
        answer = await call.request(endpoint, "GET", "/v1/models", timeout_s=timeout_s)
        if answer.status in (401, 403):
            raise self.unusable(model, f"{call.describe(endpoint)} wants a key ({answer.status})")
        told = answer.json() if answer.status == 200 else None
        listed = told.get("data") if isinstance(told, dict) else None
        served = [one["id"] for one in listed or () if isinstance(one, dict) and isinstance(one.get("id"), str)]
        for name in (model.name, *model.aliases, model.settings.hub_name):
            if name in served:
                return replace(endpoint, model=name)
        raise BackendFailed(
            f'cannot use "{model.name}": {self._dialect.title} at {call.describe(endpoint)} serves '
            f"{', '.join(served) or 'no model'}",
            hint=f'set "model" of "{model.name}" to the name that it serves, or start it with --served-model-name',
            kind="no-such-model",
            preflight=True,
        )

    async def wake(self, model: Model, endpoint: Endpoint) -> None:
        """Raises Unreachable, or BackendFailed when it does not get up."""
        answer = await call.request(endpoint, "POST", "/wake_up", timeout_s=model.load_timeout_s)
        if answer.status >= 400 or await is_asleep(endpoint, runner.ANSWER_S):
            raise BackendFailed(
                f'cannot load "{model.name}": {self._dialect.title} at {call.describe(endpoint)} sleeps and does not '
                f"wake up (POST /wake_up: status {answer.status})",
                hint="see its own log: it may not get its memory back, because others took it",
                kind="asleep",
            )

    async def put_to_sleep(self, model: Model, endpoint: Endpoint) -> None:
        """Its memory is asked for. One that cannot sleep keeps it, and is told so."""
        where = call.describe(endpoint)
        why = "it is not started with --enable-sleep-mode, or without VLLM_SERVER_DEV_MODE=1"
        if not self._dialect.sleeps:
            why = f"{self._dialect.title} has no way to give it back"
        else:
            try:
                # Its last answers end first; a version that does not know the word cuts them, but has none by now.
                answer = await call.request(endpoint, "POST", "/sleep?level=1&mode=wait", timeout_s=SLEEP_S)
                if answer.status < 400:
                    return
                if answer.status != 404:
                    why = f"POST /sleep was answered with status {answer.status}"
            except call.Unreachable as problem:
                if problem.trouble is call.Trouble.REFUSED:
                    return
                why = f"POST /sleep: {problem}"
        log.warning(
            '"%s" is no longer used, and %s at %s keeps its memory: %s', model.name, self._dialect.title, where, why
        )

    def unusable(self, model: Model, trouble: str) -> BackendFailed:
        return BackendFailed(
            f'cannot use "{model.name}": {trouble}',
            hint="start it, or correct its url; gpud did not start it and does not",
            kind="unreachable",
            preflight=True,
        )


async def is_asleep(endpoint: Endpoint, timeout_s: float) -> bool:
    """Raises Unreachable. One that does not know the question does not sleep."""
    answer = await call.request(endpoint, "GET", "/is_sleeping", timeout_s=timeout_s)
    if answer.status != 200:
        return False
    try:
        told = json.loads(answer.body)
    except ValueError:
        return False
    return isinstance(told, dict) and told.get("is_sleeping") is True


async def slept(endpoint: Endpoint) -> bool:
    """The same where whoever does not answer has nothing to be adopted."""
    try:
        return await is_asleep(endpoint, runner.ANSWER_S)
    except call.Unreachable:
        return True
