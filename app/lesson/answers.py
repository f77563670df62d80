"""What chapters ask of the embedded model, and its answers: those that were recorded, and those of now.

A question is a function of the model with settings, and its answer plain arrays: so a recorded answer is drawn as a
live one is, and without torch.  No Streamlit in here.
"""

import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import files
from analysis.errors import error_message, log

from . import FOLDER

if TYPE_CHECKING:
    from analysis.models.language_model import LanguageModel

Answer = Mapping[str, NDArray]
RECORDED = FOLDER / "recorded"
"""Where recorded answers lie: `make gallery` makes them."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model: a function of it and of settings, and these settings."""

    ask: FunctionType
    settings: tuple[str | int, ...] = ()

    @property
    def chapter(self) -> str:
        """The chapter in whose file the function stands."""
        return self.ask.__module__.rpartition(".")[2]

    @property
    def asked(self) -> list[str | int]:
        """The function's name and the settings, as a recorded answer has them."""
        return [self.ask.__name__, *self.settings]

    def __str__(self) -> str:
        """The settings by their names."""
        _, *names = inspect.signature(self.ask).parameters
        return ", ".join(f"{name}={value}" for name, value in zip(names, self.settings, strict=True))


@dataclass(frozen=True)
class About:
    """Of what something was recorded: the model, what it computed in, the settings, and the day (ISO 8601)."""

    model: str
    dtype: str
    what: str
    date: str

    def __str__(self) -> str:
        """All of it that is known, in one line."""
        return ", ".join(filter(None, astuple(self)))


@dataclass(frozen=True)
class Recorded:
    """A recorded answer."""

    answer: Answer
    about: About


def record(questions: Iterable[Question], model: "LanguageModel", dtype: str, date: str, folder: Path) -> Path:
    """Ask a model the questions of one chapter, and put the answers into the chapter's file."""
    arrays, about = {}, []
    for i, question in enumerate(questions):
        arrays |= {f"{i}.{name}": array for name, array in question.ask(model, *question.settings).items()}
        about.append({"asked": question.asked} | asdict(About(model.name, dtype, str(question), date)))
        path = folder / f"{question.chapter}.npz"
    with files.written(path) as f:
        np.savez_compressed(f, about=np.array(json.dumps(about)), **arrays)
    return path


def recorded(question: Question) -> Recorded | None:
    """The answer that comes with the project; None where there is none, or it cannot be read."""
    held = _held(RECORDED / f"{question.chapter}.npz")
    return next((found for asked, found in held if asked == question.asked), None)


@cache
def _held(path: Path) -> list[tuple[list[Any], Recorded]]:
    """What was recorded of a chapter: what was asked, and the answer."""
    try:
        with np.load(path) as held:
            abouts = json.loads(str(held["about"]))
            answers = [{} for _ in abouts]
            for name in set(held.files) - {"about"}:
                i, _, array = name.partition(".")
                answers[int(i)][array] = held[name]
    except Exception:
        # Every part of a zip file has errors of its own.
        return []
    pairs = zip(abouts, answers, strict=True)
    return [(about.pop("asked"), Recorded(answer, About(**about))) for about, answer in pairs]


class Answers:
    """Live answers: computed one after the other in a thread of their own, and the newest are kept for all who ask.

    `model`: gives the model that is asked, and may take its time.
    """

    def __init__(self, model: "Callable[[], LanguageModel]", most: int = 32) -> None:
        self._model, self._most, self._lock = model, most, Lock()
        self._thread = ThreadPoolExecutor(1, "answers")
        self._kept: OrderedDict[Question, Future[Answer]] = OrderedDict()

    def ask(self, question: Question) -> Future[Answer]:
        """The answer, which may be still to come.  One that failed is asked again once somebody has taken it."""
        with self._lock:
            if question not in self._kept:
                self._kept[question] = self._thread.submit(self._answer, question)
            self._kept.move_to_end(question)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return self._kept[question]

    def take(self, question: Question) -> Answer:
        """The answer, once it is there.  Raises ValueError with what is wrong where it failed."""
        future = self.ask(question)
        if future.exception() is not None:
            with self._lock:
                self._kept.pop(question, None)
        return future.result()

    def _answer(self, question: Question) -> Answer:
        try:
            return question.ask(self._model(), *question.settings)
        except Exception as e:
            log(e, name := f"chapter {question.chapter}")
            raise ValueError(error_message(e, name)) from e
