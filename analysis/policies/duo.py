"""DuoAttention: some heads keep everything, the others sinks + window (Xiao et al. 2024, arXiv:2410.10819)."""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import ClassVar

from typing_extensions import override

from .base import Banded, Policy, setting
from .dense import Dense
from .streaming import Streaming

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_ROW = rf"{_NUMBER}( {_NUMBER})*"
_ROWS = re.compile(rf"{_ROW}(; ?{_ROW})*", re.ASCII)


def numbers(rows: str) -> tuple[tuple[float, ...], ...]:
    """Rows as `scores` says them."""
    return tuple(tuple(float(number) for number in row.split()) for row in rows.split(";"))


def rows_of(text: str) -> str:
    """What `scores` says for the rows of numbers in a file's text.  Raises ValueError where it has something else."""
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    rows = "; ".join(" ".join(line) for line in lines if line)
    if not _ROWS.fullmatch(rows):
        raise ValueError("that is no file of scores: write a row for each layer and a number for each KV head")
    return rows


@dataclass(frozen=True)
class Duo(Policy):
    """Keeps everything in `full` percent of all KV heads, and sinks + window in the others.

    The paper learns which heads retrieve; here they are those that look most at the first tokens, measured on the
    beginning of the text: a head that waits on the sink waits for something that may be far away, one that never does
    looks at its neighbours.  Or those that somebody rates highest: a row for each layer, a number for each KV head, as
    the paper's authors publish them in files.  Sizes and positions are those that the authors' scripts read with.
    """

    name: ClassVar[str] = "duo"
    title: ClassVar[str] = "Duo"
    store: ClassVar[str] = "split"
    quantizable: ClassVar[bool] = True

    full: int = setting(50, "Percent of the KV heads that keep everything.", low=0, high=100)
    sinks: int = setting(64, "First tokens that the other heads keep for ever.", low=0, high=1024)
    window: int = setting(256, "Newest tokens that the other heads keep.", low=1)
    positions: str = setting(
        "text", "How distances to the sinks are counted in the other heads.", choices=("cache", "text")
    )
    scores: str = setting(
        "measured",
        "What rates the heads: measured, a row of numbers for each layer (0.1 0.9; 0.8 0.2), or a file of such rows.",
        pattern=r"[^,\x00-\x1f]+",
        file=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_residual(self.window)

    @cached_property
    def parts(self) -> tuple[Banded, Banded]:
        """What the heads that keep everything do, and what the others do."""
        return Dense(), Streaming(sinks=self.sinks, window=self.window, positions=self.positions)

    @property
    def measured(self) -> bool:
        """Whether the heads are rated by the text itself."""
        return self.scores == "measured"

    @property
    def given(self) -> tuple[tuple[float, ...], ...] | None:
        """The numbers that stand in the setting itself, a row for each layer; None where it says something else."""
        return numbers(self.scores) if _ROWS.fullmatch(self.scores) else None

    @property
    def file(self) -> str:
        """The path of the file that rates the heads; empty where none does."""
        return "" if self.measured or self.given else self.scores

    @property
    @override
    def plain(self) -> str:
        chosen = ""
        if self.file:
            chosen = f", by {self.file if len(self.file) <= 40 else f'…/{PurePath(self.file).name[-32:]}'}"
        elif self.given:
            # Two that are rated otherwise are told apart.
            chosen = f", by numbers {hashlib.sha256(self.scores.encode()).hexdigest()[:4]}"
        positions = "" if self.positions == "text" else ", cache positions"
        return f"Duo {self.full} % full, {self.sinks} + {self.window}{positions}{chosen}"

    @property
    @override
    def capacity(self) -> int | None:
        return None if self.full else self.sinks + self.window

    @override
    def at_budget(self, tokens: int) -> "Policy":
        return super().at_budget(tokens) if self.full else self._with_window(tokens - self.sinks, tokens)

    @override
    def first_protected(self, read: int) -> int:
        return min(self.sinks, read)

    @override
    def with_room(self, tokens: int) -> "Duo":
        return replace(self, window=self.window + tokens)
