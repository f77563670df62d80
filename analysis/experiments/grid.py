"""Runs the cells of an experiment, in one process, in several, on several GPUs, or on a cluster, by joblib.

A cell is computed in a temporary folder wherever a worker is, and comes back as files; so a folder of results holds
whole cells only, nobody needs a disk in common, and whoever runs the same grid again goes on where it stopped.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from .. import CLUSTER, files
from ..runs.about import about_of, spec_of
from ..runs.spec import Spec
from ..runs.status import COMPUTING, RUNNING, here, status_of
from . import gpus

if TYPE_CHECKING:
    from ..models.language_model import LanguageModel

TRIES = 3
"""How often a cell whose worker died is begun again."""
BACKENDS = ("local", "dask", "ray")
OF_CELLS = ("recall", "verdict")
"""Kinds of results that are folders of cells."""
PATIENCE = 10
"""Seconds in which a scheduler must answer."""


@runtime_checkable
class Cell(Protocol):
    """What a worker computes: a folder of its own."""

    @property
    def spec(self) -> Spec:
        """Of its model, and all else that must be the same where it is found finished."""
        ...

    @property
    def name(self) -> str:
        """The name of its folder."""
        ...

    def write(self, place: Path, model: "LanguageModel") -> None:
        """Compute it into a new folder, with a run.json that has its Spec."""
        ...


C = TypeVar("C", bound=Cell)


def unfinished(cells: Iterable[C], out: Path, sha256: str = "") -> list[C]:
    """Cells that are not finished in this folder.

    `sha256`: the digest of the model's weights, where that is known.  Raises ValueError where the folder holds
    something else than cells, another run of the same name, or cells that other weights computed.
    """
    left = []
    if os.path.exists(out) and not any(out.glob("*/run.json")) and not says_of_cells(out):
        files.new_folder(out)
    for cell in cells:
        if not os.path.exists(out / cell.name / "run.json"):
            left.append(cell)
        elif (there := spec_of(out / cell.name)) != cell.spec:
            alike = replace(there, bos=cell.spec.bos, special=cell.spec.special) == cell.spec
            what = (
                "that read its text in another way (--bos, --special)" if alike else "of another model, text or length"
            )
            raise ValueError(f"{out / cell.name} holds a run {what}: choose another --out")
        else:
            sha256 = same_weights(out / cell.name, about_of(out / cell.name), sha256)
    return left


def same_weights(place: Path, about: Mapping[str, Any], sha256: str) -> str:
    """The digest of the weights that computed a cell, as its run.json says it; `sha256` where it says none.

    Raises ValueError where that is another than `sha256`, unless this is empty.
    """
    found = about.get("weights_sha256") or sha256
    if sha256 and found != sha256:
        raise ValueError(
            f"{place} was computed with other weights (SHA-256 {found[:12]} …) than the rest, or than the model of "
            f"this name has now ({sha256[:12]} …): choose another --out, or begin anew"
        )
    return found


def says_of_cells(out: Path) -> bool:
    """Whether a folder says in a run.json of its own of what its cells are to be."""
    return os.path.exists(out / "run.json") and about_of(out).get("kind") in OF_CELLS


def run(
    cells: Iterable[C], out: Path, *, jobs: int = 1, backend: str = "local", address: str | None = None
) -> Iterator[C]:
    """Run what is left of the cells and put each into its folder; yields each when it is there.

    `jobs`: processes on this machine, each with a GPU of its own where there are any.  Raises ValueError where a
    cell cannot be run, or the cluster cannot be reached.
    """
    check_workers(jobs, backend, address)
    cells = list(cells)
    left, weights = {cell.name: cell for cell in unfinished(cells, out)}, ""
    for cell in cells:
        if cell.name not in left:
            weights = same_weights(out / cell.name, about_of(out / cell.name), weights)
    names = [cell.name for cell in cells]
    if left:
        with _said(out, names):
            yield from _left(left, weights, out, jobs, backend, address)
    if os.path.exists(out):
        _forget_ended(out, names)


def _left(left: dict[str, C], weights: str, out: Path, jobs: int, backend: str, address: str | None) -> Iterator[C]:
    for attempt in range(1, TRIES + 1):
        # joblib starts as many processes as it is told, also where there is less to do.  One alone would be this one,
        # which is to live on where a cell takes more memory than there is.
        processes = min(jobs, max(2, len(left)))
        try:
            with _workers(backend, processes, address):
                share = backend == "local" and jobs > 1
                work = [joblib.delayed(compute)(cell, share, weights) for cell in left.values()]
                for name, cell in _results(work, one_by_one=backend != "ray"):
                    # Workers on several machines may have several models of one name.
                    weights = same_weights(out / name, json.loads(cell["run.json"]), weights)
                    put(out / name, cell)
                    yield left.pop(name)
            return
        except Exception as e:
            # A cluster begins again by itself, and says so when it gives up.
            if not isinstance(e, TerminatedWorkerError) and type(e).__name__ != "KilledWorker":
                raise
            if attempt == TRIES:
                raise ValueError(
                    f"a worker died {TRIES} times, most likely for want of memory: use fewer --jobs, or a smaller model"
                ) from e


@contextmanager
def _said(out: Path, names: Sequence[str]) -> Generator[None]:
    """While it is held a folder says that cells of these names are still computed, and by whom; afterwards, where not
    all came, how that ended: those that are whole look like all."""
    made, mark = not os.path.exists(out), out / f"{COMPUTING}{secrets.token_hex(4)}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise files.unwritten(out, e) from e
    try:
        files.write(mark, json.dumps({"status": RUNNING, "process": here(), "cells": [*names]}) + "\n")
        yield
    except BaseException as e:
        # Where nothing came there is nothing to be taken for all; a folder of another kind says it in its run.json.
        if any(out.glob("*/run.json")) and not os.path.exists(out / "run.json") and not _there(out, names):
            status = "interrupted" if isinstance(e, KeyboardInterrupt | GeneratorExit) else "failed"
            # On a disk that is full it stays as it is: of a process that soon is not any more.
            with suppress(ValueError):
                files.write(mark, json.dumps({"status": status, "cells": [*names]}) + "\n")
        else:
            _remove_mark(mark, made)
        raise
    _remove_mark(mark, made)


def _remove_mark(mark: Path, made: bool) -> None:
    with suppress(OSError):
        mark.unlink(missing_ok=True)
        if made:
            # Only where it is empty.
            mark.parent.rmdir()


def _forget_ended(out: Path, names: Sequence[str]) -> None:
    """Remove what commands left that did not come to their end, where all that they were to compute is there.

    `names`: cells that are; what an older version left does not say which it was to compute.
    """
    for mark in out.glob(f"{COMPUTING}*"):
        # Another command may have come to its end as well.
        with suppress(ValueError, OSError):
            about = files.record(mark, dict[str, Any], "that of a grid")
            if _there(out, about.get("cells", names)) and status_of(about, out) != RUNNING:
                mark.unlink(missing_ok=True)


def _there(out: Path, names: Iterable[object]) -> bool:
    """Whether a folder has all cells of these names."""
    return all(os.path.exists(out / str(name) / "run.json") for name in names)


def _results(work: Sequence[Any], *, one_by_one: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What the workers send, each as soon as it is there; or, where that cannot be, a handful at a time."""
    if one_by_one:
        yield from joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")(work)
        return
    count = joblib.effective_n_jobs(-1)
    for begin in range(0, len(work), count):
        yield from joblib.Parallel(batch_size=1)(work[begin : begin + count])


def compute(cell: Cell, share: bool = False, sha256: str = "") -> tuple[str, dict[str, bytes]]:
    """A cell's name, and the files of its run folder.  `share`: leave the other GPUs to other workers; `sha256`: the
    digest of the weights that computed the cells that are there; empty: there are none.

    Raises ValueError where the model or the text cannot be read, or the weights are others.
    """
    if share:
        gpus.take_one()
    model = _model(cell.spec)
    if sha256:
        same_weights(Path(cell.name), {"weights_sha256": sha256}, model.sha256)
    return cell.name, made(lambda place: cell.write(place, model))


def made(write: Callable[[Path], object]) -> dict[str, bytes]:
    """The files of a new folder that `write` makes somewhere else than where they are to lie."""
    with tempfile.TemporaryDirectory() as folder:
        write(place := Path(folder) / "cell")
        return {p.name: p.read_bytes() for p in place.iterdir()}


def _model(spec: Spec) -> "LanguageModel":
    return _loaded(tuple(spec.loading.items()))


@lru_cache(maxsize=1)
def _loaded(how: tuple[tuple[str, Any], ...]) -> "LanguageModel":
    """A worker loads a model once for all its cells."""
    from ..models.loading import load

    model = load(**dict(how))
    # Kept from now on: while a cell is computed, the files may go, or others take their place.
    _ = model.sha256
    return model


def put(place: Path, made: Mapping[str, bytes]) -> None:
    """Write all files of a cell at once, or none; one that is there stays.

    Raises ValueError where the disk does not take them.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as draft:
            whole = Path(draft) / "cell"
            whole.mkdir()
            for name, data in made.items():
                (whole / name).write_bytes(data)
            try:
                whole.rename(place)
            except OSError:
                # Where the same command was begun twice, the other may have it already.
                if not (place / "run.json").exists():
                    raise
    except OSError as e:
        raise files.unwritten(place, e) from e


def take_over(asked: Iterable[Cell], source: Path, sha256: str, place: Path) -> None:
    """Copy those cells of another folder that are the same, and were computed with the weights of this digest.

    Raises ValueError where the disk does not take them, or one is damaged.
    """
    for cell in asked:
        there = source / cell.name
        if not (there / "run.json").exists() or (place / cell.name).exists():
            continue
        if about_of(there).get("weights_sha256") == sha256 and spec_of(there) == cell.spec:
            put(place / cell.name, {file.name: files.contents(file) for file in there.iterdir()})


def check_workers(jobs: int, backend: str, address: str | None) -> None:
    """Raises ValueError where no workers can be meant by this."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1 process, not {jobs}")
    if backend not in BACKENDS:
        raise ValueError(f"there is no backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    if backend == "local" and address:
        raise ValueError("an address is that of a cluster: add --backend dask or --backend ray")


@contextmanager
def _workers(backend: str, jobs: int, address: str | None) -> Generator[None]:
    """Let joblib use the workers that were asked for."""
    if backend == "local":
        threads = max(1, (os.cpu_count() or 1) // jobs)
        more = {"inner_max_num_threads": threads} if jobs > 1 else {}
        with joblib.parallel_config("loky" if jobs > 1 else "sequential", n_jobs=jobs, **more):
            yield
        return
    try:
        connect = {"dask": _dask, "ray": _ray}[backend]
        leave = connect(address)
    except ImportError as e:
        raise ValueError(f"{backend} is not installed: {CLUSTER}") from e
    except (OSError, ConnectionError) as e:
        raise ValueError(f"no {backend} cluster answers at {address}: check --address, and that it runs") from e
    try:
        with joblib.parallel_config(backend, n_jobs=-1):
            yield
    finally:
        leave()


def _dask(address: str | None) -> Callable[[], object]:
    """Connect to a Dask scheduler; returns how to leave it."""
    from distributed import Client

    if address is None:
        raise ValueError("say where the Dask scheduler is: --address HOST:PORT")
    return Client(address, timeout=PATIENCE).close


def _ray(address: str | None) -> Callable[[], object]:
    """Connect to a Ray cluster; returns how to leave it."""
    import ray  # ty: ignore[import-not-found]
    from ray.util.joblib import register_ray  # ty: ignore[import-not-found]

    register_ray()
    ray.init(address=address, logging_level="error")
    return ray.shutdown
