"""The commands, and the border of the command line.

A command's module is imported when somebody asks for that command, and torch, transformers, pyarrow and matplotlib only
by what needs them while it runs: so lists and help are there at once.  Whatever ends a command is one line on standard
error: exit status 2 for what the person can mend, 1 for our own mistakes.
"""

import io
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command
from typing_extensions import override

from .. import errors
from .console import out

HELP = "The command line: read a text, or talk, under several policies and write down what happened."
COMMANDS = {
    "app": "page.app",
    "setup": "page.setup",
    "stream": "reading.stream",
    "chat": "chat.chat",
    "resume": "resume.resume",
    "knockout": "experiments.knockout",
    "reproduce": "experiments.reproduce",
    "recall": "recall.recall",
    "compare": "compare.compare",
    "capture": "reading.capture",
    "emergence": "lab.emergence",
    "tiny": "lab.tiny",
    "gallery": "gallery.gallery",
    "figure": "figures.figure",
    "report": "figures.report",
    "site": "figures.site",
    "figures": "listings.figures",
    "models": "listings.models",
    "terms": "listings.terms",
    "policies": "listings.policies",
    "texts": "listings.bundled",
    "runs": "runs.app",
}
"""Module and function, or group of commands; in the order in which they are listed."""
UsageError: Any = typer.BadParameter.__base__
ClickException: Any = UsageError.__base__


@cache
def command(name: str) -> Any:
    """The command, or group of commands, of this name, from its module.  Raises KeyError where there is none."""
    module, function = COMMANDS[name].split(".")
    found = getattr(import_module(f".{module}", __package__), function)
    if isinstance(found, typer.Typer):
        return get_command(found)
    alone = typer.Typer(add_completion=False)
    # Where a line of a docstring ends means nothing, and typer would end a line of the help there.
    paragraphs = (found.__doc__ or "").split("\n\n")
    alone.command(name, help="\n\n".join(" ".join(words.split()) for words in paragraphs))(found)
    return get_command(alone)


class Commands(Mapping[str, Any]):
    """The commands by name, each of them imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        return command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Group(TyperGroup):
    """All commands; one that Ctrl-C ends before it has anything to keep, or to say of it, says that at least."""

    @override
    def make_context(self, *words: Any, **how: Any) -> Any:
        try:
            return super().make_context(*words, **how)
        except KeyboardInterrupt:
            raise typer.Exit(interrupted()) from None

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(interrupted()) from None


def interrupted() -> int:
    """Say that Ctrl-C has ended a command, unless nobody reads what it says any more; returns the exit status."""
    if not out.broken:
        print("Interrupted.", file=sys.stderr)
    return 130


listed: Any = Commands()
app = Group(name="sinkscope", commands=listed, help=HELP, no_args_is_help=True)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run a command; what the person can mend is one line and exit status 2, all else is raised to end the process."""
    # A polite request to end is Ctrl-C's: whoever works keeps what there is, or removes what is of no use.
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal or a file cannot hold is a question mark there, and ends no work.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
    except ClickException as e:
        # Without a command, the help has been printed by now, and nothing is left to say.
        if said := " ".join(e.format_message().split()):
            print("error: " + said, file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = interrupted()
    except BrokenPipeError:
        # Whoever read what was said has seen enough; Python would complain once more when it closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except BaseException as e:
        if not errors.mendable(e):
            sys.excepthook = failed
            raise
        code = print("error: " + as_option(errors.reason(e, "")), file=sys.stderr) or 2
    # Python notes where Ctrl-C ends the evaluation of a text, as of a dataclass that a library makes, and kills itself
    # when all is over, though it was caught: the next evaluation has it forget.
    eval("None")
    sys.exit(128 + signal.SIGPIPE if out.broken else code)


def as_option(sentence: str) -> str:
    """A sentence that begins with the name of a setting, with the option that was written for it in its place."""
    name, _, rest = sentence.partition(" ")
    option = f"--{name.replace('_', '-')}"
    written = any(word == option or word.startswith(f"{option}=") for word in sys.argv)
    return f"{option} {rest}" if written and rest.startswith("must ") else sentence


def failed(_, e: BaseException, __) -> None:
    """Say in one line that a mistake of ours has ended a command, and put it into the log; the status is then 1."""
    name = f"error {secrets.token_hex(3)}"
    from .. import files

    try:
        errors.log_to(file := files.cache_folder() / "errors.log")
        errors.log(e, name)
        name = f"{name} in {file}"
    except Exception:
        # Where even that cannot be written, the line must do.
        name = f"{name} (which could not be written)"
    print("error: " + errors.reason(e, name), file=sys.stderr)
