"""Options that several commands have, and what they stand for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .. import GEMMA
from .console import note, say

if TYPE_CHECKING:
    from ..runs.spec import Spec
    from ..texts import Tokenized

N = TypeVar("N", int, float)


def named(written: str) -> Path:
    """A file or folder as it was written: an empty variable of a shell would mean the folder that one works in."""
    if not written:
        raise typer.BadParameter("it is empty: name a file or a folder")
    return Path(written)


def left_out(written: str) -> Path:
    """The same, where none need be named."""
    if not written:
        raise typer.BadParameter("it is empty: name a file or a folder, or leave the option out")
    return Path(written)


def path(what: str, *names: str, needed: bool = False) -> Any:
    """An option, by names of its own or by that of its parameter, that takes a file or folder; `what` it is, and
    whether it is `needed`."""
    return typer.Option(*names, parser=named if needed else left_out, metavar="PATH", help=what)


Model = Annotated[
    str, typer.Option(help=f"embedded, tiny-gpt-oss, gemma-270m ({GEMMA}), a hub id, a folder, or a GGUF file")
]
Text = Annotated[str, typer.Option(help="a bundled text, a text file, or a .npy file of token ids")]
Policy = Annotated[str, typer.Option(help="name:key=value,key=value")]
Policies = Annotated[list[str] | None, typer.Option(help="one lane each: name:key=value,key=value")]
Chunk = Annotated[int, typer.Option(help="tokens that go through the model at once; changes no number")]
Dtype = Annotated[str, typer.Option(help="auto (the fastest here), float32, bfloat16 or float16")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
Bos = Annotated[
    bool | None, typer.Option("--bos/--no-bos", help="begin with BOS or not (default: as the tokenizer does)")
]
Special = Annotated[str, typer.Option(help="names of control tokens in a text, such as <|endoftext|>: text or tokens")]
Weights = Annotated[str, typer.Option(help="model (as it came), or packed on a CPU: int8, int4")]
KVHeads = Annotated[int | None, typer.Option(help="average the KV heads down to so many, without training")]
RunFolder = Annotated[Path | None, path("run folder (default: a new one in the library)", "--out")]
Runs = Annotated[Path | None, path("the library of runs (default: $SINKSCOPE_RUNS, or the user's own)")]

USUAL = ("dense", "window:window=256", "streaming:sinks=4,window=252")
"""Policies of which one reads where nobody names any."""


def dtype_of(dtype: str, device: str) -> str:
    """The dtype that is meant, with a word on what `auto` stands for here: a run records what it was read in."""
    if dtype != "auto":
        return dtype
    from ..models.dtypes import decide

    chosen, why = decide(dtype, device)
    note(f"dtype auto is {why}")
    return chosen


def bos_of(asked: bool | None) -> str:
    """What --bos, --no-bos or neither of them means in a Spec."""
    return {None: "auto", True: "on", False: "off"}[asked]


def say_read(read: "Tokenized") -> None:
    """Say what a text begins with, and what of it was read as text though it could have been control tokens."""
    from ..texts import with_bos

    say(f"The text begins {with_bos(read.begins)}.")
    if read.note:
        note(read.note)


def say_changed(spec: "Spec") -> None:
    """Say where numbers are not those of the model as it came."""
    if spec.weights != "model":
        note(f"{spec.arithmetic}: numbers differ a little from the model's own")
    if spec.kv_heads is not None:
        note(f"KV heads are averaged down to {spec.kv_heads}, without the training that it would need")


def heads(written: str, option: str) -> list[str]:
    """Heads with commas between them, as they are written; none where nothing is.  Raises ValueError where one is no
    head of any model."""
    from ..runs.facts import head_of

    names = written.split(",") if written else []
    for name in names:
        try:
            head_of(name)
        except ValueError as e:
            raise ValueError(f"{option}: {e}") from e
    return names


def numbers(written: str, kind: type[N], option: str) -> tuple[N, ...]:
    """Numbers with commas between them.  Raises ValueError where one is none."""
    found = []
    for part in filter(None, (p.strip() for p in written.split(","))):
        try:
            found.append(kind(part))
        except ValueError:
            raise ValueError(f"{option} is written as numbers with commas, such as 5,50, and not {part!r}") from None
    return tuple(found)
