"""What is compared, as cells of a grid: each policy at each budget reads each text, and each text of each task.

A reading has two lanes, dense and the policy, so that both are compared token by token; a cell of recall is the same as
that of the command `recall`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from ... import files
from ...policies import parse as parse_policy
from ...runs.spec import Spec
from ...settings import MOST, Registry
from ...texts import Text
from ...texts import read as read_text
from ..papers import write_run
from ..recall import TASKS
from ..recall.cells import RecallCell
from ..recall.cells import cells as recall_cells

if TYPE_CHECKING:
    from ...models.language_model import LanguageModel

READING = ("perplexity", "kl")
"""What is measured by reading a text, of which `kl` tells top-1 agreement, too; all other tasks are those of recall."""
SECONDS = "seconds.json"
"""File with the compute seconds of each lane of a reading."""
KIND = "verdict"
"""What run.json of the folder of a comparison says it is."""
DENSE = "dense"


def listed(written: Sequence[str]) -> list[str]:
    """Names with settings as a person lists them: `window,streaming:sinks=4,positions=text` are two.

    A part that has an equals sign and no colon goes on with the settings of the one before.
    """
    found: list[str] = []
    for part in (part.strip() for text in written for part in text.split(",")):
        if found and "=" in part and ":" not in part.partition("=")[0]:
            found[-1] += f",{part}"
        elif part:
            found.append(part)
    return found


@dataclass(frozen=True)
class ReadingCell:
    """One text, read dense and under one policy, or dense alone."""

    spec: Spec

    @property
    def name(self) -> str:
        """The name of its folder."""
        text, policy = self.spec.text, self.spec.policies[-1]
        digest = hashlib.sha256(json.dumps((text, policy, self.spec.fidelity)).encode()).hexdigest()[:12]
        return f"{re.sub(r'[^-A-Za-z0-9_.+=]+', '-', f'{Path(text).name}-{policy}')[:100]}-{digest}"

    @property
    def size(self) -> int:
        """Tokens that all of its lanes read, about; of a text that is read to its end 1 for each."""
        return len(self.spec.policies) * (self.spec.tokens or 1)

    def write(self, place: Path, model: "LanguageModel", told: Callable[[int], object] = lambda tokens: None) -> None:
        """Read into a run folder.  `told`: see write_run.  Raises ValueError where the text cannot be read."""
        run = write_run(place, self.spec, model, told)
        spent = [float(track.compute.view()[-1]) for track in run.tracks]
        files.write(place / SECONDS, json.dumps(spent) + "\n")


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder says of a plan, but for its Spec."""

    policies: tuple[str, ...]
    budgets: tuple[int, ...]
    tasks: tuple[str, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    repeats: int
    seed: int
    asking: str


@dataclass(frozen=True)
class Plan:
    """What is compared: policies as a person names them, each at each budget, and dense.

    `base` says which model reads, and how; texts are read up to its `tokens`.  `tasks`: of READING, or tasks of recall
    with their settings; `lengths`, `depths`, `repeats`, `seed` and `asking` are those of recall.
    """

    base: Spec
    policies: tuple[str, ...]
    budgets: tuple[int, ...]
    tasks: tuple[str, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    repeats: int = 1
    seed: int = 0
    asking: str = "aware"

    def __post_init__(self) -> None:
        if not self.policies or not self.budgets or not self.tasks or not self.texts:
            raise ValueError("name at least one policy, one budget, one task and one text")
        if wrong := [budget for budget in self.budgets if not 1 <= budget <= MOST]:
            raise ValueError(f"budgets must be 1 to {MOST:,} tokens, not {wrong[0]}")
        # What cannot be compared is refused at once.
        known = Registry("task", dict.fromkeys((*READING, *TASKS)))
        for task in self.tasks:
            known.find(task.partition(":")[0].strip())
        for task in self.recalled:
            self.recall(task, DENSE)
        if len(self.members) == 1:
            raise ValueError("dense is what policies are compared with: name one more policy")

    @classmethod
    def of(cls, spec: Spec, settings: Mapping[str, Any]) -> Self:
        """The same from what a folder says.  Raises ValueError where it says something else."""
        try:
            said = msgspec.convert(settings, _Settings)
        except msgspec.ValidationError as e:
            raise ValueError(f"it does not say what is compared: {e}") from e
        plan = cls(replace(spec, policies=(DENSE,)), **msgspec.structs.asdict(said))
        if plan.spec != spec:
            raise ValueError("it does not say what is compared: its policies are not those of its Spec")
        return plan

    @property
    def settings(self) -> dict[str, Any]:
        """What a folder says of it besides its Spec."""
        names = _Settings.__struct_fields__
        return msgspec.json.decode(msgspec.json.encode({name: getattr(self, name) for name in names}))

    @property
    def spec(self) -> Spec:
        """By which model, and under which policies, as a folder says it."""
        return replace(self.base, text=self.texts[0], policies=tuple(self.members))

    @property
    def text(self) -> Text:
        """All that is read, as runs know texts.  Raises ValueError where one of them is not there."""
        named = ", ".join(dict.fromkeys(self.texts))
        digests = [read_text(name).sha256 for name in dict.fromkeys(self.texts)] if self.reads else []
        one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return Text(named, named, None, None, one if digests else "")

    @cached_property
    def members(self) -> dict[str, int | None]:
        """All policies that are compared, and the budget of each; None: dense, which has none."""
        named = [parse_policy(p) for p in self.policies]
        found: dict[str, int | None] = {DENSE: None}
        for policy in (p for p in named if str(p) != DENSE):
            found |= {str(policy.at_budget(budget)): budget for budget in sorted(set(self.budgets))}
        return found

    @property
    def reads(self) -> bool:
        """Whether texts are read."""
        return any(task in READING for task in self.tasks)

    @cached_property
    def recalled(self) -> list[str]:
        """The tasks of recall, as they are written in tables."""
        return list(dict.fromkeys(TASKS.parse(task).short for task in self.tasks if task not in READING))

    def readings(self, policy: str) -> list[ReadingCell]:
        """The cells in which a policy reads texts."""
        lanes = (DENSE,) if policy == DENSE else (DENSE, policy)
        texts = dict.fromkeys(self.texts) if self.reads else ()
        fidelity = "kl" in self.tasks and len(lanes) > 1
        return [ReadingCell(replace(self.base, text=text, policies=lanes, fidelity=fidelity)) for text in texts]

    def recall(self, task: str, policy: str) -> list[RecallCell]:
        """The cells in which a policy is asked for what a task hid."""
        places = self.lengths, self.depths, self.repeats, self.seed
        return recall_cells(TASKS.parse(task), replace(self.base, tokens=None), [policy], *places, asking=self.asking)

    @cached_property
    def cells(self) -> list[ReadingCell | RecallCell]:
        """All cells, dense first: what it fails says nothing of a policy."""
        return [
            cell
            for policy in self.members
            for cell in (*self.readings(policy), *(c for task in self.recalled for c in self.recall(task, policy)))
        ]

    def command(self) -> str:
        """The command line that computes the same, quoted for a shell."""
        words = [f"--policies={policy}" for policy in self.policies] + [f"--text={text}" for text in self.texts]
        names = ("budgets", "tasks", "lengths", "depths", "repeats", "seed")
        numbers = {name: getattr(self, name) for name in names}
        return self.base.command_line("compare", *words, tokens=self.base.tokens, **numbers, question=self.asking)
