"""``gpudctl shell-hook``: prints what registers a shell with gpud, for those who keep their own dotfiles."""

from argparse import Namespace
from pathlib import Path

from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE
from gpud.cli.output import Output

DESCRIPTION = """\
Print the hook that registers an interactive shell with gpud: what only that shell has used is unloaded after its end.
It is one busctl in the background. Put it where your shell reads it at its start, once and for all: starting gpudctl
for it in each shell would take longer than the hook itself. Login shells and fish have it already where gpud is
installed for the whole machine; in place of a copy, other files may read /usr/share/gpud/hooks/gpud.sh or gpud.zsh."""

EXAMPLES = (
    "gpudctl shell-hook bash     # to be appended to ~/.bashrc",
    "gpudctl shell-hook zsh      # to ~/.zshrc",
    "gpudctl shell-hook fish     # to be kept as ~/.config/fish/conf.d/gpud.fish",
)

HOOKS = Path(__file__).resolve().parents[1] / "data" / "hooks"
FILES = {"bash": "gpud.sh", "sh": "gpud.sh", "zsh": "gpud.zsh", "fish": "gpud.fish"}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=tuple(FILES), help="which shell is to read it")


def run(arguments: Namespace, output: Output) -> int:
    text = (HOOKS / FILES[arguments.shell]).read_text(encoding="utf-8").rstrip("\n")
    output.result(text, {"shell": arguments.shell, "hook": text})
    return DONE
