"""``gpudctl config``: looks at the configuration's files, without the daemon."""

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE, FAILED, Usage
from gpud.cli.output import Output
from gpud.core.counts import plural
from gpud.core.errors import ConfigInvalid, GpudError

if TYPE_CHECKING:
    from gpud.config import Config

DESCRIPTION = """\
check: report every problem of the configuration, and warn about settings that
are allowed but probably not intended.
show: print the effective configuration, defaults included, with secrets
masked; with KEY, print only that value.
Both read the files themselves: gpud.yaml and gpud.d/*.yaml beside it. The
daemon need not be running; it may still use an older state of the files until
"gpudctl reload"."""

EXAMPLES = (
    "gpudctl config check && sudo gpudctl reload",
    "gpudctl config check ./gpud.yaml",
    "gpudctl config show idle.timeout",
    "gpudctl config show models.qwen3-8b",
    "gpudctl config show --file ./gpud.yaml gpu",
)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=("check", "show"), help="what to do")
    parser.add_argument(
        "argument", metavar="FILE|KEY", nargs="?", help="check: file to check; show: key to print (a.b.c)"
    )
    parser.add_argument("--file", metavar="FILE", help="configuration file, instead of the one that gpud reads")


def run(arguments: Namespace, output: Output) -> int:
    if arguments.action == "check":
        if arguments.file and arguments.argument:
            raise Usage("config: two files to check", hint="name one of them")
        return check(Path(arguments.argument or arguments.file or chosen_path(arguments.bus)), output)
    return show(Path(arguments.file or chosen_path(arguments.bus)), arguments.argument, output)


def chosen_path(bus: str) -> Path:
    """The file that the wanted gpud reads: the user's own with --user, and where only that one is there."""
    from gpud.config import default_path

    kind = bus or os.environ.get("GPUD_BUS", "")
    if kind in ("user", "system"):
        return default_path(kind == "user")
    system, user = default_path(False), default_path(True)
    return user if user.exists() and not system.exists() else system


def unreadable(path: Path) -> bool:
    """Whether it is not for whoever asks: it may hold keys."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def check(path: Path, output: Output) -> int:
    from gpud.config import load_keys, warnings

    try:
        config = _load(path)
        keys = Path(config.http.api_keys_file)
        # Whoever must not read the keys is warned of that; gpud itself would not start without them.
        if config.http.api_keys_file and (not keys.exists() or os.access(keys, os.R_OK)):
            load_keys(keys)
    except ConfigInvalid as invalid:
        if output.wants_json:
            output.json({"valid": False, "file": str(path), "problems": list(invalid.problems), "warnings": []})
        else:
            output.text("\n".join(invalid.problems))
            if unreadable(path):
                output.note(f"gpudctl: {path} was not checked: only root and its group may read it; use sudo")
                return FAILED
            output.note(f"gpudctl: {plural(len(invalid.problems), 'problem')}; gpud would refuse this configuration")
        return FAILED
    said = warnings(config)
    models = list(config.models)
    names = f" ({', '.join(models[:8])}{', …' if len(models) > 8 else ''})" if models else ""
    valid = f"{plural(len(models), 'model')}{names} in {_files(config)}" if config.sources else "nothing configured yet"
    lines = [*(f"warning: {one}" for one in said), f"OK: {valid}"]
    data = {
        "valid": True,
        "file": str(path),
        "sources": list(config.sources),
        "models": models,
        "problems": [],
        "warnings": list(said),
    }
    output.result("\n".join(lines), data)
    return DONE


def show(path: Path, key: str | None, output: Output) -> int:
    from gpud.config import render

    try:
        config = _load(path)
    except ConfigInvalid:
        if not unreadable(path):
            raise
        raise GpudError(f"cannot show {path}: only root and its group may read it", hint="use sudo") from None
    text = render(config, key)
    if output.wants_json:
        import yaml

        output.json({"file": str(path), "key": key or "", "value": yaml.safe_load(text)})
    else:
        output.text(text.rstrip("\n"))
    return DONE


def _load(path: Path) -> "Config":
    from gpud.config import load

    return load(path, known_engines=engines())


def engines() -> list[str]:
    """The engines there are: those that gpud brings, and those of installed packages."""
    from importlib.metadata import entry_points

    from gpud.core.engines import BUILT_IN

    return [*BUILT_IN, *sorted(entry_points(group="gpud.backends").names)]


def _files(config: "Config") -> str:
    first, *more = config.sources
    return first + (f" and {plural(len(more), 'file')} in gpud.d" if more else "")
