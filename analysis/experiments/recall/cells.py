"""A map of recall as a grid of cells, one for each policy and text, and the table that they make.

Cells are named by all that decides their text, so they are kept, and found again, by their settings (grid.py).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ... import files
from ...palette import labels
from ...policies import parse as parse_policy
from ...runs.spec import Spec
from ...settings import quoted
from . import TASKS
from .base import ASKING, Place, Sample, Task
from .encoding import Encoded, Tokens

if TYPE_CHECKING:
    from ...models.language_model import LanguageModel

KIND = "recall"
"""What run.json of a cell says it is."""
TABLE = "recall.parquet"
LONGEST, MOST_REPEATS, MOST_CELLS = 2**20, 10_000, 1_000_000


class Row(msgspec.Struct, frozen=True):
    """The answer to one question, as `recall.parquet` has it."""

    task: str
    """With those settings that are not as they are unless said."""
    policy: str
    length: int
    """Tokens that the text was to have; of a file of one's own those that it has."""
    depth: float | None
    """Where the fact stands, in % of its room, or of the tokens before the question; None where nothing says it."""
    repeat: int
    seed: int
    hit: bool
    nll: float
    """Mean of the answer's tokens, in nats."""
    answer: str
    said: str
    distance: int | None
    """Tokens from the end of the fact to the answer."""
    wrong: int | None
    """The first wrong token of what was said; None where it is right."""
    kept: float | None
    """Share of the fact's tokens that the KV heads still held when the answer had been read."""


SCHEMA = pa.schema(
    [
        ("task", pa.string()), ("policy", pa.string()), ("length", pa.int32()), ("depth", pa.float64()),
        ("repeat", pa.int32()), ("seed", pa.int64()), ("hit", pa.bool_()), ("nll", pa.float64()),
        ("answer", pa.string()), ("said", pa.string()), ("distance", pa.int32()), ("wrong", pa.int32()),
        ("kept", pa.float64()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class RecallCell:
    """One policy reading one text of a task."""

    spec: Spec
    task: str
    place: Place
    seed: int
    asking: str = "aware"
    decode: bool = False
    source: str = ""
    """Digest of what the text is made of, where that is a file."""

    @property
    def name(self) -> str:
        """The name of its folder: of all that decides its text and how it is asked."""
        policy, how = self.spec.policies[0], (self.task, self.asking, self.decode, self.source)
        digest = hashlib.sha256(json.dumps((policy, *self.place, self.seed, *how)).encode()).hexdigest()[:12]
        depth = "" if self.place.depth is None else f"-{self.place.depth:g}"
        written = f"{self.task}-{policy}-{self.place.length}{depth}-{self.place.repeat}"
        return f"{re.sub(r'[^-A-Za-z0-9_.+=]+', '-', written)[:100]}-{digest}"

    @property
    def of_task(self) -> Task:
        """The task, with its settings.  Raises ValueError where there is none such."""
        return TASKS.parse(self.task)

    @property
    def size(self) -> int:
        """Tokens of its text, about; 1 where the text says that itself."""
        return max(1, self.place.length)

    def text(self, tokenizer: Any) -> tuple[Sample, Encoded]:
        """What is asked, and its text as tokens.  Raises ValueError where the text cannot be made."""
        tokens = Tokens(tokenizer, str(self.spec.bos), self.spec.special)
        sample = self.of_task.sample(self.place, self.seed, tokens)
        return sample, tokens.encode(sample)

    def rows(self, model: "LanguageModel", told: Callable[[int], object] = lambda tokens: None) -> Iterator[Row]:
        """Ask, and say of each question how it was answered.  `told`: see scoring.answers.

        Raises ValueError where the text cannot be made, or not be read.
        """
        from .scoring import answers

        spec, policy, tokenizer = self.spec, parse_policy(self.spec.policies[0]), cast(Any, model.tokenizer)
        sample, text = self.text(tokenizer)
        found = answers(
            model, text, policy, stays=sample.stays, asking=self.asking, decode=self.decode, chunk=spec.chunk, told=told
        )
        for asked, exchange, answer in zip(text.asked, sample.exchanges, found, strict=True):
            depth = self.place.depth
            if depth is None and asked.needle is not None:
                depth = 100 * asked.needle[0] / asked.question
            yield Row(
                task=self.task, policy=spec.policies[0], length=self.place.length or len(text.ids), depth=depth,
                repeat=self.place.repeat, seed=self.seed, hit=answer.hit, nll=answer.nll,
                answer=exchange.answer.strip(), said=str(tokenizer.decode(list(answer.said))).strip(),
                distance=answer.distance, wrong=answer.wrong, kept=answer.kept,
            )  # fmt: skip

    def about(self, rows: Sequence[Row], model: "LanguageModel") -> str:
        """What run.json of its folder says."""
        said: dict[str, Any] = {"spec": asdict(self.spec), "kind": KIND, "status": "finished"}
        said |= {"weights_sha256": model.sha256, "asking": self.asking, "decode": self.decode}
        return json.dumps(said | {"rows": msgspec.to_builtins(rows)}, indent=2) + "\n"

    def write(self, place: Path, model: "LanguageModel", told: Callable[[int], object] = lambda tokens: None) -> None:
        """Ask, and write down what was answered.  `told`: see scoring.answers.

        Raises ValueError where the text cannot be made, or not be read.
        """
        about = self.about(list(self.rows(model, told)), model)
        place.mkdir()
        files.write(place / "run.json", about)


def cells(
    task: Task,
    base: Spec,
    policies: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float],
    repeats: int,
    seed: int,
    *,
    asking: str = "aware",
    decode: bool = False,
) -> list[RecallCell]:
    """Cells for all policies and texts: one policy after the other, dense first, then in the order in which they are
    named.

    `base` says which model reads.  Raises ValueError where there is nothing to do.
    """
    if not 1 <= repeats <= MOST_REPEATS:
        raise ValueError(f"repeats must be 1 to {MOST_REPEATS:,} texts for each length and depth, not {repeats}")
    # As large as a column of the table holds.
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to {2**63 - 1:,}, not {seed:,}")
    if wrong := [d for d in depths if not 0 <= d <= 100]:
        raise ValueError(f"depths must be from 0 to 100 % of the text, not {wrong[0]:g}")
    if asking not in ASKING:
        raise ValueError(f"question must be asked {' or '.join(ASKING)}, not {quoted(asking)}")
    # A map has one place for them.
    if wrong := [(a, b) for a, b in pairwise(sorted({*depths})) if round(a, 1) == round(b, 1)]:
        raise ValueError(f"depths {wrong[0][0]:g} and {wrong[0][1]:g} are one to 0.1 %: leave one of them out")
    if wrong := [n for n in lengths if not 2 <= n <= LONGEST]:
        raise ValueError(f"lengths must be 2 to {LONGEST:,} tokens, not {wrong[0]}")
    # Where dense fails, what others do says nothing of them.
    named = sorted(dict.fromkeys(str(parse_policy(p)) for p in policies), key=lambda policy: policy != "dense")
    if (many := len(named) * len(lengths) * max(1, len(depths)) * repeats) > MOST_CELLS:
        raise ValueError(f"these are {many:,} cells, more than the {MOST_CELLS:,} of a map: choose fewer of something")
    places = list(dict.fromkeys(task.places(lengths, depths, repeats)))
    if not named or not places:
        raise ValueError("name at least one policy and one length, and one depth where the task asks for it")
    return [
        RecallCell(
            replace(base, text=task.short, policies=(policy,)), task.short, place, seed, asking, decode, task.source
        )
        for policy in named
        for place in places
    ]


def check_room(cells: Iterable[RecallCell], tokenizer: Any) -> None:
    """Raises ValueError where the shortest text of a task has no room for what is said in it: before any is read."""
    shortest = dict[str, RecallCell]()
    for cell in cells:
        if cell.place.length < shortest.setdefault(cell.task, cell).place.length:
            shortest[cell.task] = cell
    for cell in shortest.values():
        cell.text(tokenizer)


class _About(msgspec.Struct):
    """What run.json of a cell must say."""

    rows: list[Row]


def rows_of(cells: Iterable[RecallCell], out: Path) -> list[Row]:
    """What was answered in those cells that are finished.  Raises ValueError where a file is damaged."""
    found = []
    for cell in cells:
        file = out / cell.name / "run.json"
        if file.exists():
            found += files.record(file, _About, "that of a cell of recall").rows
    return found


def write_table(rows: Sequence[Row], out: Path) -> None:
    """Write `recall.parquet` into a folder.  Raises ValueError where the disk does not take it."""
    with files.written(out / TABLE) as f:
        pq.write_table(pa.Table.from_pylist(msgspec.to_builtins(rows), SCHEMA), f)


def read_table(folder: Path) -> list[Row]:
    """The rows of a folder's `recall.parquet`.  Raises ValueError where there is none, or it is of something else."""
    with files.opened(folder / TABLE) as f:
        try:
            return msgspec.convert(pq.read_table(f).to_pylist(), list[Row])
        except (pa.ArrowException, msgspec.ValidationError, OSError) as e:
            raise ValueError(f"{folder / TABLE} is not a table of recall: it is damaged, or of something else") from e


def wilson(hits: int, asked: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927), which says something of 0 of 5, too."""
    from scipy.stats import binomtest

    interval = binomtest(hits, asked).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def summary(rows: Sequence[Row], *, most_depths: int = 7) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: policies and lengths down; recalled at each depth, in all with a 95 % interval, and
    the answers' NLL across.  `most_depths`: of more than these none is shown."""
    depths = sorted({row.depth for row in rows if row.depth is not None})
    shown = depths if 1 < len(depths) <= most_depths else []
    header = ["Policy", "Length", *(f"{depth:g} %" for depth in shown), "Recalled", "95 % interval", "NLL", "Kept"]
    policies = list(dict.fromkeys(row.policy for row in rows))
    names = dict(zip(policies, labels([parse_policy(p) for p in policies]), strict=True))
    lines = []
    for policy, length in dict.fromkeys((row.policy, row.length) for row in rows):
        of = [row for row in rows if (row.policy, row.length) == (policy, length)]
        lines.append([names[policy], f"{length:,}", *_line(of, shown)])
    return header, lines


def _line(of: Sequence[Row], depths: Sequence[float]) -> list[str]:
    hits, asked = sum(row.hit for row in of), len(of)
    low, high = wilson(hits, asked)
    each = [[row.hit for row in of if row.depth == depth] for depth in depths]
    kept = [row.kept for row in of if row.kept is not None]
    return [
        *(f"{sum(at)}/{len(at)}" if at else "–" for at in each),
        f"{hits}/{asked}",
        f"{100 * low:.0f} to {100 * high:.0f} %",
        f"{sum(row.nll for row in of) / asked:.3f}",
        f"{100 * sum(kept) / len(kept):.0f} %" if kept else "–",
    ]
