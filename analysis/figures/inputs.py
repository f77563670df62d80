"""What figures are made of, as it lies in a folder: a run, a captured stretch, a grid, trainings, recall, a verdict."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import files
from ..experiments.grid import says_of_cells
from ..experiments.recall.cells import KIND as RECALL
from ..experiments.recall.cells import TABLE, Row, read_table
from ..experiments.verdict import Plan, Verdict, read_verdict
from ..experiments.verdict.entries import FILE as VERDICT
from ..lab.folder import SavedTraining, command_of
from ..lab.folder import read as read_trainings
from ..lab.recipe import Recipe, names_of
from ..runs.about import about_of, spec_of
from ..runs.library import KINDS
from ..runs.reader import load as load_run
from ..runs.run import Run
from ..texts import titled
from .base import Figure

MADE_OF = {
    "run": "a reading or a conversation",
    "trainings": "trainings",
    "recall": "recall",
    "verdict": "a verdict",
}
"""What figures need, in words, where a folder of another kind would be read as if it was one."""


@dataclass(frozen=True, eq=False)
class FigureInput:
    """What a figure takes its numbers from, and what is known of where that came from."""

    folder: Path
    data: Any
    """By what a figure needs: a Run, an Atlas, the folder of a grid, a list of SavedTraining or of rows of recall, a
    Verdict."""
    about: Mapping[str, Any]

    @cached_property
    def _runs(self) -> list[Run]:
        """Those of a grid that have read something."""
        runs = [load_run(path.parent) for path in sorted(self.data.glob("*/run.json"))]
        return [run for run in runs if run.tracks and len(run.tracks[0].nll)]

    def policies(self, lane: int | None = None) -> list[str]:
        """That one lane of a run or all have read with, or that a stretch was; of a grid those of its runs."""
        if isinstance(self.data, Run):
            tracks = self.data.tracks if lane is None else self.data.tracks[lane:][:1]
            return list(dict.fromkeys(policy for track in tracks for _, policy in track.policies))
        if isinstance(self.data, Path):
            return list(dict.fromkeys(policy for run in self._runs for policy in run.spec.policies))
        if isinstance(self.data, Verdict):
            return [entry.policy for entry in self.data.entries]
        if isinstance(self.data, list):
            return list(dict.fromkeys(row.policy for row in self.data if isinstance(row, Row)))
        if (stretch := getattr(self.data, "stretch", None)) is not None:
            return list(dict.fromkeys(stretch.policies))
        return list(dict.fromkeys(self.about.get("spec", {}).get("policies", ())))

    @property
    def command(self) -> str | None:
        """The command line that computes what this is made of, of a grid one for each run, a line each; None where
        nothing says it."""
        if isinstance(self.data, Run):
            return self.data.spec.command()
        if isinstance(self.data, Path):
            return "\n".join(dict.fromkeys(run.spec.command() for run in self._runs)) or None
        if (stretch := getattr(self.data, "stretch", None)) is not None:
            return stretch.command
        if isinstance(self.data, list) and (trainings := [t for t in self.data if isinstance(t, SavedTraining)]):
            return command_of(trainings)
        if not says_of_cells(self.folder):
            return None
        # Here, since figures are opened and drawn where there is no torch.
        from ..experiments.recall.asked import Asked

        with suppress(ValueError):
            about, spec = about_of(self.folder), spec_of(self.folder)
            settings = about.get("settings") or {}
            return Asked.of(settings).command(spec) if about["kind"] == RECALL else Plan.of(spec, settings).command()
        # A folder of other hands need not say it.
        return None

    @property
    def text(self) -> str | None:
        """The name of the text or its file, or those of all that were read for a verdict; None where nobody says it."""
        return ", ".join(Path(text).name for text in self._texts) or None

    @property
    def title(self) -> str | None:
        """The same, as a caption has it."""
        return ", ".join(map(titled, self._texts)) or None

    @property
    def _texts(self) -> Sequence[str]:
        return self.data.texts if isinstance(self.data, Verdict) else [self.about.get("spec", {}).get("text") or ""]

    def tokens(self, lane: int | None = None) -> int | None:
        """Tokens that one lane of a run has read, or the lane that has read most, as of a grid, or a policy for a
        verdict, or that a stretch has; of all else how many were asked for.  None where nobody says it."""
        if isinstance(self.data, Run | Path):
            runs = [self.data] if isinstance(self.data, Run) else self._runs
            tracks = [track for run in runs for track in (run.tracks if lane is None else run.tracks[lane:][:1])]
            return max((len(track.nll) + 1 for track in tracks if len(track.nll)), default=None)
        if isinstance(self.data, Verdict):
            # Nobody predicts the first one of a text.
            return max((e.tokens for e in self.data.entries), default=0) + len(self.data.texts) or None
        if (stretch := getattr(self.data, "stretch", None)) is not None:
            return stretch.tokens
        return self.about.get("spec", {}).get("tokens")

    def trained(self, figure: Figure) -> str:
        """Which trainings a figure shows, by what recipe, and after how many steps, and of the map of one its layer
        and head; empty where it shows none."""
        if figure.needs != "trainings":
            return ""
        begin, moment = getattr(figure, "training", 0), getattr(figure, "moment", -1)
        shown = self.data[begin:][:1] if hasattr(figure, "training") else self.data
        recipes, steps = [t.recipe for t in shown], [int(n) for t in shown for n in t.curves["step"][moment:][:1]]
        if not steps:
            return ""
        settings = [f.name for f in Recipe.settings() if f.name not in ("attention", "steps")]
        same = [
            f"{name} {getattr(recipes[0], name)}" for name in settings if len({getattr(r, name) for r in recipes}) == 1
        ]
        after = " to ".join(f"{n:,}" for n in sorted({min(steps), max(steps)}))
        heads = (
            [tuple(head) for t in shown for head in t.heads[moment:][:1].tolist()] if hasattr(figure, "moment") else []
        )
        of = "".join(f", layer {layer}, head {head}" for layer, head in heads)
        return f"{', '.join(names_of(recipes))} ({', '.join(same)}), after {after} step{'s' * (max(steps) != 1)}{of}"


def open_input(folder: Path, needs: str) -> FigureInput:
    """What a figure `needs`, from a folder.  Raises ValueError where there is none of the kind."""
    folder = Path(folder)
    _check_kind(folder, needs)
    if needs in ("grid", "recall", "verdict"):
        first = next(iter(sorted(folder.glob("*/run.json"))), None)
        data = folder if needs == "grid" else read_table(folder) if needs == "recall" else read_verdict(folder)
        about = dict(about_of(first.parent)) if first else {}
        if says_of_cells(folder):
            # A cell has read one text under one policy: the folder says of them all.
            own = about_of(folder)
            about |= {name: own[name] for name in ("spec", "text_sha256") if name in own}
        return FigureInput(folder, data, about)
    if needs == "run":
        return FigureInput(folder, load_run(folder), about_of(folder))
    if needs == "trainings":
        trainings = read_trainings(folder)
        # A recipe says all of a model that was trained by it.
        return FigureInput(folder, trainings, {"spec": {"model": [str(t.recipe) for t in trainings]}})
    from ..maps.atlas import Atlas
    from ..maps.stretch import Stretch
    from ..models.loading import load

    stretch = Stretch(folder)
    return FigureInput(folder, Atlas(stretch, load(**stretch.spec.loading)), stretch.about)


def _check_kind(folder: Path, needs: str) -> None:
    """Raises ValueError, with what lies there, where a folder says that it is a run of another kind.

    A folder without what is read first is another matter, which whoever reads it says.
    """
    looked_for = {"recall": folder / TABLE, "verdict": folder / VERDICT}.get(needs)
    if needs not in MADE_OF or not (folder / "run.json").exists() or (looked_for and looked_for.exists()):
        return
    about = files.record(folder / "run.json", dict[str, Any], "that of a run")
    kind = "training" if "recipe" in about else about.get("kind") or "reading"
    own = {"training": "trainings", "reading": "run", "chat": "run"}.get(kind, kind)
    if own != needs and kind in KINDS:
        raise ValueError(f"{folder} is of another kind ({KINDS[kind].lower()}): this is made of {MADE_OF[needs]}")


def check_folder(folder: Path) -> None:
    """Read all that a folder has of runs, results (but for their cells), trainings or a stretch.

    Raises ValueError where it is damaged.
    """
    if (folder / "stretch.json").exists():
        from ..maps.stretch import Stretch

        Stretch(folder)
        return
    whole = (folder / "run.json").exists()
    for place in [folder] if whole else sorted(path.parent for path in folder.glob("*/run.json")):
        if "recipe" in files.record(place / "run.json", dict[str, Any], "that of a run"):
            read_trainings(place)
        elif (about := about_of(place)).get("kind") in (None, "", "reading", "chat") and not about.get("samples"):
            load_run(place)
        if (place / VERDICT).exists():
            read_verdict(place)
        if (place / TABLE).exists():
            read_table(place)
        if (place / "effects.csv").exists():
            from ..experiments.ablation import EFFECTS, read_effects

            read_effects(place / EFFECTS)
        for file in place.glob("*.npz"):
            files.arrays(file, {}, some=True)
