"""What a map of recall was asked, as its folder says it, and how what is missing of it is computed.

The folder is that of a result (runs/result.py) with one folder for each cell in it (cells.py), and a table of them all.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from ...runs.result import Keep, ResultFolder
from ...runs.run import Run
from ...runs.spec import Spec
from ...texts import Text, Tokenized, begins
from ..grid import put, unfinished
from . import TASKS
from .base import Task
from .cells import KIND, RecallCell, Row, cells, rows_of, write_table
from .encoding import Tokens
from .own import QUESTIONS, Own

if TYPE_CHECKING:
    from ...models.language_model import LanguageModel


@dataclass(frozen=True)
class Asked:
    """Which texts are read, and how they are asked; the Spec says by which model and under which policies."""

    task: str
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    repeats: int
    seed: int
    asking: str = "aware"
    decode: bool = False

    @classmethod
    def of(cls, settings: Any) -> "Asked":
        """The same from what a folder says.  Raises ValueError where it says something else."""
        try:
            return msgspec.convert(settings, cls)
        except msgspec.ValidationError as e:
            raise ValueError(f"it does not say what of recall it is: {e}") from e

    @property
    def settings(self) -> dict[str, Any]:
        """What a folder says of it."""
        return msgspec.json.decode(msgspec.json.encode(self))

    @property
    def of_task(self) -> Task:
        """The task, with its settings.  Raises ValueError where there is none such."""
        return TASKS.parse(self.task)

    @property
    def text(self) -> Text:
        """What the texts are made of, as runs know texts; its SHA-256 is empty where that is no file."""
        task = self.of_task
        return Text(task.short, task.title, None, None, task.source)

    def check_file(self, folder: Path) -> None:
        """Raises ValueError where it asks from a file that does not lie in its folder: that may be from other hands."""
        task = self.of_task
        if isinstance(task, Own) and task != Own(str(folder.absolute() / QUESTIONS)):
            raise ValueError("its questions are not in its folder: ask them anew")

    def beginning(self, spec: Spec, tokenizer: Any) -> Tokenized:
        """What all texts begin with, as tokens.  Raises ValueError where this tokenizer cannot find an answer."""
        first = np.array(Tokens(tokenizer, str(spec.bos), spec.special).opening, np.int32)
        return Tokenized(first, begins(tokenizer, first), ())

    def cells(self, spec: Spec) -> list[RecallCell]:
        """All cells, dense first.  Raises ValueError where they cannot be."""
        return cells(
            self.of_task, spec, spec.policies, self.lengths, self.depths, self.repeats, self.seed,
            asking=self.asking, decode=self.decode,
        )  # fmt: skip

    def folder(self, spec: Spec, place: Path) -> ResultFolder:
        """The folder of its cells, which says from now on that they are computed; there may be some of them already.

        Raises ValueError where it cannot be written, somebody writes it, or it holds something else.
        """
        return ResultFolder(
            place, KIND, Run(spec), text_sha256=self.text.sha256, weights_sha256="", settings=self.settings,
            new=not os.path.exists(place),
        )  # fmt: skip

    def command(self, spec: Spec) -> str:
        """The command line that computes the same, quoted for a shell."""
        words = [f"--policy={policy}" for policy in spec.policies] + ["--decode"] * self.decode
        numbers = {name: getattr(self, name) for name in ("lengths", "depths", "repeats", "seed")}
        return spec.command_line("recall", self.task, *words, **numbers, question=self.asking)


class Answered(NamedTuple):
    """What is known of a cell; `whole`: whether that is all."""

    cell: RecallCell
    rows: tuple[Row, ...]
    whole: bool


def kept_answers(
    keep: Keep,
    model: "LanguageModel",
    asked: list[RecallCell],
    known: Path | None,
    told: Callable[[RecallCell, int], object] = lambda cell, tokens: None,
) -> Iterator[Answered]:
    """All cells as their answers come: first those of the folder `known`, as far as it has them; each of the others is
    put into a folder by `keep` when it is whole, and the table after it.

    `told`: hears how many tokens of a cell were read just now, and may raise to end the work.  Raises ValueError where
    `known` has cells of another model or other weights under the same name, or is damaged.
    """
    left = asked if known is None else unfinished(asked, known, model.sha256)
    missing, rows = {cell.name for cell in left}, list[Row]()
    for cell in asked:
        if known is not None and cell.name not in missing:
            found = tuple(rows_of([cell], known))
            rows += found
            yield Answered(cell, found, True)
    for cell in left:
        found = ()
        for row in cell.rows(model, partial(told, cell)):
            found = (*found, row)
            yield Answered(cell, found, False)
        rows += found
        keep(partial(_put, cell.name, cell.about(found, model)))
        keep(partial(_tabulate, rows))
        yield Answered(cell, found, True)


def _put(name: str, about: str, folder: ResultFolder) -> None:
    put(folder.path / name, {"run.json": about.encode()})


def _tabulate(rows: list[Row], folder: ResultFolder) -> None:
    write_table(rows, folder.path)
