"""``gpudctl shell-hook``: prints what registers a shell with gpud, for those who keep their own dotfiles."""

from argparse import Namespace
from pathlib import Path

from gpud.cli.arguments import Parser
from gpud.cli.exits import DONE
from gpud.cli.output import Output

DESCRIPTION = """\
Print the hook that registers an interactive shell with gpud: after the shell
ends, gpud unloads what only that shell has used. The hook starts one busctl in
the background. Put it into a startup file of your shell, once; calling gpudctl
there would take longer than the hook itself. If gpud is installed for the
whole machine, login shells and fish already have the hook; other startup files
may source /usr/share/gpud/hooks/gpud.sh or gpud.zsh instead of a copy."""

EXAMPLES = (
    "gpudctl shell-hook bash     # append to ~/.bashrc",
    "gpudctl shell-hook zsh      # append to ~/.zshrc",
    "gpudctl shell-hook fish     # save as ~/.config/fish/conf.d/gpud.fish",
)

HOOKS = Path(__file__).resolve().parents[1] / "data" / "hooks"
FILES = {"bash": "gpud.sh", "sh": "gpud.sh", "zsh": "gpud.zsh", "fish": "gpud.fish"}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=tuple(FILES), help="shell to print the hook for")


def run(arguments: Namespace, output: Output) -> int:
    text = (HOOKS / FILES[arguments.shell]).read_text(encoding="utf-8").rstrip("\n")
    output.result(text, {"shell": arguments.shell, "hook": text})
    return DONE
