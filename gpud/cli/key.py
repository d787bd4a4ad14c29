"""``gpudctl key``: makes, lists and revokes the API keys that let clients in by HTTP. Needs no daemon.

The only program that ever sees a key is this one, once, when it makes it.
"""

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpud.cli.arguments import PRIORITIES, Parser
from gpud.cli.exits import Usage
from gpud.cli.output import Output, table
from gpud.core.counts import plural
from gpud.core.errors import InvalidArguments

if TYPE_CHECKING:
    from gpud.core.keys import ApiKey, Rate

DESCRIPTION = """\
add: create an API key, print it once, and write its hash to the key file
(http.api_keys_file in gpud.yaml).
list: show the keys and what each may do; the keys themselves are not stored.
revoke: remove a key from the key file.
gpud reads the key file at its start and on "gpudctl reload"; until then,
changes have no effect."""

EXAMPLES = (
    "sudo gpudctl key add laptop && sudo gpudctl reload",
    "gpudctl key add phone --allow tiny --allow 'qwen*' --rate 60/min --file ./keys.yaml",
    "gpudctl key add deploy --may use --may manage",
    "gpudctl key list",
    "sudo gpudctl key revoke laptop && sudo gpudctl reload",
)

Edit = Callable[[Sequence["ApiKey"]], Sequence["ApiKey"]]


def add_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=("add", "list", "revoke"), help="what to do")
    parser.add_argument("name", metavar="NAME", nargs="?", help="add, revoke: name of the key")
    parser.add_argument(
        "--allow",
        metavar="MODEL",
        action="append",
        help='add: allowed model, or the beginning of names and * (default: "*", all); may be repeated',
    )
    parser.add_argument("--rate", metavar="RATE", type=_rate, help="add: request limit, such as 60/min or 5/s")
    parser.add_argument(
        "--priority", choices=PRIORITIES, help="add: priority of its requests, and the highest they may ask for"
    )
    parser.add_argument(
        "--may",
        choices=("use", "manage"),
        action="append",
        help="add: what the key may do: use models, or manage gpud (default: use); may be repeated",
    )
    parser.add_argument("--file", metavar="FILE", help="key file, instead of the configured one")


def _rate(text: str) -> "Rate":
    from gpud.config.kinds import Wrong
    from gpud.config.network import RateOf, rate

    try:
        return rate(text)
    except Wrong:
        raise argparse.ArgumentTypeError(f'"{text}" is not a rate; allowed: {RateOf.allowed}') from None


def run(arguments: Namespace, output: Output) -> int:
    action = arguments.action
    if (action == "list") == bool(arguments.name):
        what = "list takes no name" if arguments.name else f"{action} needs the name of the key"
        raise Usage(f"key: {what}", hint='see "gpudctl key --help"')
    if action != "add" and any((arguments.allow, arguments.rate, arguments.priority, arguments.may)):
        raise Usage(f"key: {action} takes neither --allow, --rate, --priority nor --may", hint="they are for key add")
    path = Path(arguments.file) if arguments.file else configured_file(arguments.bus)
    actions = {"add": add, "list": show, "revoke": revoke}
    return actions[action](path, arguments, output)


def configured_file(bus: str) -> Path:
    """Raises InvalidArguments where none is configured, ConfigInvalid where the configuration cannot be read."""
    from gpud.cli.config import chosen_path
    from gpud.config import load

    config = chosen_path(bus)
    file = load(config).http.api_keys_file
    if not file:
        hint = f"set http.api_keys_file (for example to /etc/gpud/keys.yaml) in {config}, or name it with --file"
        raise InvalidArguments("no file of API keys is configured", hint=hint)
    return Path(file)


def add(path: Path, arguments: Namespace, output: Output) -> int:
    from gpud.cli.keys_file import change
    from gpud.config.api_keys import MAX_KEYS, digest_of, make_key

    key = make_key()
    made = _described(arguments, digest_of(key))

    def add_it(keys: Sequence["ApiKey"]) -> Sequence["ApiKey"]:
        if any(one.name == made.name for one in keys):
            hint = f'"gpudctl key revoke {made.name}" removes it; or choose another name'
            raise InvalidArguments(f'there is a key "{made.name}" in {path} already', hint=hint)
        if len(keys) >= MAX_KEYS:
            text = f"{path} holds {len(keys)} keys; {MAX_KEYS} are allowed"
            raise InvalidArguments(text, hint='revoke those that nobody uses: "gpudctl key list"')
        return (*keys, made)

    change(path, add_it)
    # The key alone goes to standard output, so that a script can take it.
    output.result(key, {"name": made.name, "key": key, "file": str(path)})
    if not output.wants_json:
        output.note(f'added "{made.name}" to {path}; the key is not shown again; "gpudctl reload" activates it')
    return 0


def _described(arguments: Namespace, digest: bytes) -> "ApiKey":
    from gpud.config.api_keys import check_allowed, check_key_name
    from gpud.config.kinds import Wrong
    from gpud.core.facts import Priority
    from gpud.core.keys import EVERYTHING, ApiKey, Right

    allow = tuple(dict.fromkeys(arguments.allow or (EVERYTHING,)))
    try:
        check_key_name(arguments.name)
    except Wrong as wrong:
        raise InvalidArguments(f'"{arguments.name[:80]}" {wrong}') from None
    for pattern in allow:
        try:
            check_allowed(pattern)
        except Wrong as wrong:
            raise InvalidArguments(f'--allow "{pattern[:80]}" {wrong}') from None
    priority = Priority[arguments.priority.upper()] if arguments.priority else None
    may = frozenset(Right(word) for word in arguments.may or ("use",))
    return ApiKey(arguments.name, digest, allow, arguments.rate, priority, may)


def revoke(path: Path, arguments: Namespace, output: Output) -> int:
    from gpud.cli.keys_file import change

    name = arguments.name

    def take_it_away(keys: Sequence["ApiKey"]) -> Sequence["ApiKey"]:
        left = tuple(one for one in keys if one.name != name)
        if len(left) == len(keys):
            names = " ".join(one.name for one in keys) or "none"
            raise InvalidArguments(f'there is no key "{name[:80]}" in {path}', hint=f"there are: {names}")
        return left

    change(path, take_it_away)
    output.result("", {"name": name, "revoked": True, "file": str(path)})
    if not output.wants_json:
        output.note(f'revoked "{name}" in {path}; until "gpudctl reload" it stays valid')
    return 0


def show(path: Path, _: Namespace, output: Output) -> int:
    from gpud.config import load_keys
    from gpud.core.keys import Right

    keys = load_keys(path)
    data = [
        {
            "name": key.name,
            "allow": list(key.allow),
            "rate": str(key.rate) if key.rate else None,
            "priority": key.priority.name.lower() if key.priority is not None else None,
            "may": [str(right) for right in Right if right in key.may],
        }
        for key in keys
    ]
    rows = [
        [
            (key.name, "bold"),
            (" ".join(key.allow), ""),
            (str(key.rate or ""), ""),
            (key.priority.name.lower() if key.priority is not None else "", ""),
            (" ".join(right for right in Right if right in key.may), ""),
        ]
        for key in keys
    ]
    lines = table(output, ("NAME", "MODELS", "RATE", "PRIORITY", "MAY"), rows) if rows else [f"no keys in {path}"]
    output.result("\n".join(lines), {"file": str(path), "keys": data})
    if not output.wants_json and keys:
        output.note(f"{plural(len(keys), 'key')} in {path}")
    return 0
