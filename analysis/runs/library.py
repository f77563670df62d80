"""The library: the folder in which runs lie, what it holds, and what each of them is called.

A folder counts as a run by the names of its files; what somebody put there besides is left alone.  What a run looks
like at a glance is kept beside it (preview.py), so that a list need not read its numbers again.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from .. import COMMAND, errors, files, resource
from ..palette import briefs
from ..policies import parse
from ..settings import quoted
from .about import contents, read
from .held import MARKS, changed, files_of, of_checkpoint, several, version
from .preview import Preview, preview
from .run import NotFinite
from .spec import Spec
from .status import CAPTURING, COMPUTING, LABEL, RUNNING, STOPPED, status_of

KINDS = {
    "reading": "Reading",
    "chat": "Conversation",
    "capture": "Captured stretch",
    "knockouts": "Knock-outs",
    "measures": "Measures",
    "training": "Training",
    "costs": "Costs",
    "recall": "Recall",
    "verdict": "Verdict",
    "grid": "Grid of runs",
}
"""Kinds of runs, as run.json says them, and their names; a grid is a folder of runs."""
GALLERY = resource("assets/gallery")
"""The library of recorded stories that comes with the project."""
LONGEST = 200
"""Characters of a title, or of the name of a folder."""


@dataclass(frozen=True)
class Label:
    """What a person said of a run."""

    title: str = ""
    pinned: bool = False


@dataclass(frozen=True)
class Entry:
    """A run of the library, as a list shows it."""

    name: str
    """Of its folder; unlike those of all others."""
    path: Path
    changed: float
    """When it was written last, in seconds since 1970."""
    size: int
    """Bytes on disk."""
    version: int = 0
    """Another number as soon as one of its files is another."""
    packs: int = 0
    """Bytes that a .zip file of it has, unpacked: a checkpoint stays behind."""
    kind: str = ""
    """One of KINDS; empty where the folder is damaged."""
    problem: str = ""
    """Why it cannot be opened, as a sentence."""
    label: Label = Label()
    status: str = ""
    started: str = ""
    """When it began, ISO 8601 in UTC."""
    model: str = ""
    text: str = ""
    arithmetic: str = ""
    policies: tuple[str, ...] = ()
    preview: Preview | None = None
    """Of a reading or a conversation."""

    @property
    def title(self) -> str:
        """What the person called it, or else what it is of."""
        if self.label.title or not self.kind:
            return self.label.title or self.name
        what = Path(self.text).stem
        if self.kind == "reading":
            return what or self.name
        return f"{KINDS[self.kind]}: {what or self.name}"

    @property
    def lanes(self) -> list[str]:
        """What a list calls its lanes."""
        if self.preview is not None:
            return [lane.name for lane in self.preview.lanes]
        return briefs([parse(policy) for policy in self.policies])

    @property
    def live(self) -> bool:
        """Whether somebody writes it at this moment."""
        return self.status == RUNNING

    @property
    def goes_on(self) -> bool:
        """Whether it stopped before its end, so that it can go on; of a grid only its runs can."""
        return self.status in STOPPED and not self.problem and self.kind != "grid"

    def says(self, words: str) -> bool:
        """Whether all of these words stand in what is known of it."""
        known = (self.title, self.name, self.model, self.text, self.status, KINDS.get(self.kind, "damaged"))
        said = " ".join((*known, self.arithmetic, *self.policies)).casefold()
        return all(word in said for word in words.casefold().split())


def home(path: Path | None = None) -> Path:
    """Where runs lie: the folder that is named, else $SINKSCOPE_RUNS, else runs/ in the user's data folder."""
    if named := path or os.environ.get("SINKSCOPE_RUNS"):
        return Path(os.path.expanduser(named))
    return platformdirs.user_data_path("sinkscope", appauthor=False) / "runs"


def new_folder(stem: str, place: Path | None = None) -> Path:
    """An empty folder for a new run of the library, named by the time and `stem`, and unlike all others.

    Raises ValueError where it cannot be made.
    """
    return unique(home(place), f"{datetime.now():%Y%m%d-%H%M%S}-{slug(stem)}")


def unique(place: Path, name: str) -> Path:
    """A new, empty folder of this name, or one that begins with it.  Raises ValueError where none can be made."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            made = place / (name if number == 1 else f"{name}-{number}")
            # Whoever makes it has it, whatever others do at this moment.
            with suppress(FileExistsError):
                made.mkdir()
                return made
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no path"
        raise ValueError(f"{place} cannot be written ({why}): name another folder by --runs or SINKSCOPE_RUNS") from e
    raise ValueError(f"{place} has thousands of runs called {name}: delete some")


def slug(text: str) -> str:
    """A text as part of the name of a folder, on any system."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", letters).strip("-")[:60] or "run"


def one_line(text: object, most: int = LONGEST) -> str:
    """A text of others as one line, without signs that steer what shows it."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def fits(name: str) -> bool:
    """Whether a folder of the library may have this name: it is one part of a path, plain, and not hidden."""
    return 0 < len(name) <= LONGEST and name.isprintable() and name[0] not in ".~" and not {*name} & {*'/\\:*?"<>|'}


def find(name: str, place: Path | None = None) -> Path:
    """The folder of a run of the library.  Raises ValueError where it has none of that name."""
    path, there = home(place) / name, []
    with suppress(OSError):
        # A name that may come from anybody is compared with those that there are, and reaches no file.
        there = os.listdir(path.parent) if fits(name) else []
    if name not in there or path.is_symlink() or not files_of(path):
        raise ValueError(f"the library has no run {quoted(name)}: {COMMAND} runs lists those that it has")
    return path


def named(path: Path) -> Path:
    """A folder by its path, or a run of the library by its name alone where there is no such path."""
    if len(path.parts) == 1 and not os.path.lexists(path):
        with suppress(ValueError):
            return find(path.name)
    return path


def entry(name: str, place: Path | None = None) -> Entry:
    """A run of the library by its name.  Raises ValueError where it has none of that name."""
    path = find(name, place)
    return _entry(path, files_of(path))


def entries(place: Path | None = None) -> list[Entry]:
    """All runs of the library: those that are pinned first, then the newest.  One that is damaged says so.

    Raises ValueError where the library is no folder, or cannot be read.
    """
    folder = home(place)
    try:
        with os.scandir(folder) as there:
            folders = [Path(f.path) for f in there if fits(f.name) and f.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        # Nobody has made it yet.
        folders = []
    except OSError as e:
        raise ValueError(
            f"{folder} cannot be read ({e.strerror}): name another folder by --runs or SINKSCOPE_RUNS"
        ) from e
    found = [_entry(path, held) for path in folders if (held := files_of(path))]
    return sorted(sorted(found, key=lambda e: (e.started, e.name), reverse=True), key=lambda e: not e.label.pinned)


def rename(name: str, title: str, place: Path | None = None) -> None:
    """Call a run so; an empty title: as it was called at first.  Raises ValueError where that cannot be written."""
    _relabel(find(name, place), title=one_line(title))


def pin(name: str, pinned: bool = True, place: Path | None = None) -> None:
    """Keep a run from being freed by the size limit, or no longer.  Raises ValueError where it cannot be written."""
    _relabel(find(name, place), pinned=pinned)


def _relabel(path: Path, **changed: Any) -> None:
    files.write(path / LABEL, msgspec.json.encode(replace(_label(path), **changed)).decode() + "\n")


def _label(path: Path) -> Label:
    try:
        label = files.record(path / LABEL, Label, "a label")
    except ValueError:
        # What is wrong with it takes nothing from the run.
        return Label()
    return replace(label, title=one_line(label.title))


def _entry(path: Path, held: Mapping[str, os.stat_result]) -> Entry:
    found = Entry(
        path.name,
        path,
        changed(held),
        sum(about.st_size for about in held.values()),
        version(held),
        sum(about.st_size for name, about in held.items() if not of_checkpoint(name)),
        label=_label(path),
    )
    found = replace(found, started=_iso(found.changed))
    try:
        return _recognised(found, held)
    except Exception as e:
        # Whatever other hands made of it, the rest of the list is shown.
        return replace(found, problem=errors.sentence(errors.reason(e, path.name, "delete it")))


def _recognised(found: Entry, held: Mapping[str, os.stat_result]) -> Entry:
    """What the folder says of itself.  Raises ValueError where it is damaged."""
    path = found.path
    if CAPTURING in held and "stretch.json" not in held:
        about = files.record(path / CAPTURING, dict[str, Any], "that of a capture")
        asked = _of_spec(found, about) if "spec" in about else found
        return replace(asked, kind="capture", status=_status(about, path))
    if "stretch.json" in held:
        about = files.record(path / "stretch.json", dict[str, Any], "that of a stretch")
        return replace(_of_spec(found, about), kind="capture", status="finished")
    if "run.json" not in held and not MARKS & held.keys():
        grid = _of_several(found, [path / name for name in several(held)])
        return replace(grid, status=_status_of_cells(path, held, grid.status))
    # Once: a list of hundreds waits for each time that a file is opened.
    data = contents(path)
    about = files.decoded(data, dict[str, Any], f"{path / 'run.json'} is not that of a run")
    if isinstance(about.get("recipe"), dict):
        what = one_line(about["recipe"].get("attention", ""))
        return replace(found, kind="training", text=what, started=_began(found, [about]), status=_status(about, path))
    must, about = read(path, data)
    usual = "chat" if must.spec.sampling else "reading"
    kind = about.get("kind") or usual
    if kind not in KINDS:
        raise ValueError(f"{path} is a run of a kind that nobody here knows: {quoted(kind)}")
    found = replace(_of_spec(found, about, must.spec), kind=kind, status=_status(about, path))
    if kind != usual:
        return found
    try:
        return replace(found, preview=preview(path, held, live=found.live))
    except NotFinite as e:
        return replace(found, problem=errors.sentence(errors.reason(e, path.name)))


def _of_spec(found: Entry, about: Mapping[str, Any], spec: Spec | None = None) -> Entry:
    """With what its Spec says.  Raises ValueError where it has none."""
    spec = spec or _spec(about)
    return replace(
        found,
        started=_iso(about.get("started"), found.started),
        model=one_line(spec.model),
        text=one_line(spec.text),
        arithmetic=spec.arithmetic,
        policies=spec.policies,
    )


def _spec(about: Mapping[str, Any]) -> Spec:
    return files.decoded(msgspec.json.encode(about.get("spec")), Spec, "it does not say what it was asked")


def _of_several(found: Entry, runs: list[Path]) -> Entry:
    """A folder of runs, or of trainings."""
    abouts = [files.record(run, dict[str, Any], "that of a run") for run in runs]
    statuses = [_status(about, run.parent) for about, run in zip(abouts, runs, strict=True)]
    # It has ended as its runs have, when all of them have.
    status = next((s for s in (RUNNING, *STOPPED) if s in statuses), "finished")
    if all(isinstance(about.get("recipe"), dict) for about in abouts):
        what = ", ".join(dict.fromkeys(one_line(about["recipe"].get("attention", "")) for about in abouts))
        return replace(found, kind="training", text=one_line(what), started=_began(found, abouts), status=status)
    each = [_of_spec(found, about) for about in abouts]
    policies = tuple(dict.fromkeys(policy for one in each for policy in one.policies))
    # Whoever puts runs into a folder may take any.
    said = {name: _all(getattr(one, name) for one in each) for name in ("model", "text", "arithmetic")}
    return replace(each[0], kind="grid", policies=policies, status=status, **said)


def _status_of_cells(path: Path, held: Mapping[str, os.stat_result], ended: str) -> str:
    """The status of a folder of runs whose runs have `ended` so: others may be still to come, or were to."""
    found = list[str]()
    for name in [name for name in held if name.startswith(COMPUTING)]:
        # Whoever computes them may just have come to the end.
        with suppress(ValueError):
            found.append(_status(files.record(path / name, dict[str, Any], "that of a grid"), path))
    return next((status for status in (RUNNING, *STOPPED) if status in (*found, ended)), ended)


def _all(named: Iterable[str]) -> str:
    """What several runs have, once where it is the same."""
    names = list(dict.fromkeys(named))
    return names[0] if len(names) == 1 else one_line(", ".join(Path(name).stem for name in names))


def _began(found: Entry, abouts: list[dict[str, Any]]) -> str:
    """When the first of several runs began; of those that do not say it, when they were written."""
    return min(_iso(about.get("started"), found.started) for about in abouts)


def _status(about: Mapping[str, Any], path: Path) -> str:
    """The status that a folder really has, whatever others wrote into it."""
    return one_line(status_of(about, path), 20)


def _iso(moment: object, otherwise: str = "") -> str:
    """A moment in UTC, to the second."""
    with suppress(ValueError, OverflowError, OSError):
        if isinstance(moment, str):
            return datetime.fromisoformat(moment).astimezone(UTC).isoformat(timespec="seconds")
        if isinstance(moment, float):
            return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
    return otherwise
