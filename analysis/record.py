"""What a run was asked (Spec), what it learned (Run), and the folder on disk that holds both.

The folder is readable at every moment: tables grow by whole chunks, and a process that is killed loses at most the
chunk that it was writing.  This module knows nothing of models or screens.
"""

import json
import platform
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .policies import parse
from .texts import BOS, SPECIAL, setting

if TYPE_CHECKING:
    from .source import Step

TOKENS = pa.schema(
    [
        ("lane", pa.int32()),
        ("policy", pa.string()),
        ("position", pa.int64()),
        ("token_id", pa.int32()),
        ("nll", pa.float32()),
        ("cache_tokens", pa.int32()),
        ("cache_bytes", pa.int64()),
        ("seconds", pa.float64()),
    ]
)
SINKS = pa.schema(
    [("lane", pa.int32()), ("start", pa.int64()), ("stop", pa.int64()), ("sink_mass", pa.list_(pa.float32()))]
)
TYPED = "what was typed"
"""The text of a conversation that has no script."""
ROLES = ("template", "user", "assistant")
"""Who said a token of a conversation."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen, token by token."""

    max_new: int = 128
    """At most so many tokens an answer."""
    temperature: float = 0.0
    """0: always the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens that were said lately are divided by this."""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new": (self.max_new >= 1, "at least 1 token"),
            "temperature": (0 <= self.temperature <= 100, "from 0 (greedy) to 100"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty <= 10, "above 0 and at most 10"),
            "seed": (0 <= self.seed < 2**63, "0 or more"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}, not {getattr(self, name)}")


def arithmetic(weights: str, dtype: str) -> str:
    """What numbers are computed in: `dtype` alone does not say it of packed weights, which multiply in bfloat16."""
    if weights == "model":
        return dtype
    elsewhere = "" if dtype == "bfloat16" else f", {dtype} elsewhere"
    return f"{weights} weights, bfloat16 products{elsewhere}"


@dataclass(frozen=True)
class Spec:
    """Everything that decides the numbers of a run.  The same Spec gives the same numbers."""

    model: str
    text: str
    policies: tuple[str, ...]
    tokens: int | None = None
    """At most so many tokens are read; None reads the whole text."""
    chunk: int = 512
    dtype: str = "float32"
    device: str = "auto"
    bos: str = "auto"
    """Whether the text begins with BOS: auto (as the tokenizer does by itself), on or off."""
    weights: str = "model"
    """As the model came, or packed: int8, int4."""
    kv_heads: int | None = None
    """KV heads averaged down to so many; None: as the model has them."""
    sampling: Sampling | None = None
    """In a conversation, whose text is a script: how answers are chosen."""
    kv_chunk: int | None = None
    """In a conversation: cached tokens that an answer reads at a time; changes no number."""
    special: str = "text"
    """What names of control tokens in a text, or in what somebody types, are: text or tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(self.policies))
        object.__setattr__(self, "bos", setting("bos", self.bos, BOS))
        setting("special", self.special, SPECIAL)
        if isinstance(self.sampling, dict):
            object.__setattr__(self, "sampling", Sampling(**self.sampling))
        if not self.policies:
            raise ValueError("choose at least one policy, such as streaming:sinks=4,window=252")
        for policy in self.policies:
            parse(policy)
        if self.tokens is not None and self.tokens < 2:
            raise ValueError(f"at least 2 tokens must be read to predict one from another, not {self.tokens}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 token, not {self.chunk}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {self.dtype!r}")
        if self.weights not in ("model", "int8", "int4"):
            raise ValueError(f"weights must be model, int8 or int4, not {self.weights!r}")
        if self.kv_chunk is not None and self.kv_chunk < 1:
            raise ValueError(f"kv_chunk must be at least 1 token, not {self.kv_chunk}")
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            raise ValueError(f"device must be auto, cpu, cuda or mps, not {self.device!r}")

    @property
    def arithmetic(self) -> str:
        """What numbers are computed in, in a few words."""
        return arithmetic(self.weights, self.dtype)

    def command(self) -> str:
        """The command line that this Spec is of, quoted for a shell; one that was typed asks for the words again."""
        chat = self.sampling is not None
        named = {"model": self.model, "script" if chat else "text": self.text}
        if chat and self.text == TYPED:
            del named["script"]
        if chat:
            named |= {f.name: getattr(self.sampling, f.name) for f in fields(Sampling)} | {"kv_chunk": self.kv_chunk}
        else:
            named["tokens"] = self.tokens
        named |= {name: getattr(self, name) for name in ("chunk", "dtype", "device", "weights", "kv_heads")}
        # As one word each, since a value may begin with a dash.
        words = [f"--{name.replace('_', '-')}={value}" for name, value in named.items() if value is not None]
        words += [f"--policy={policy}" for policy in self.policies]
        words += {"auto": [], "on": ["--bos"], "off": ["--no-bos"]}[self.bos]
        words += [f"--special={self.special}"] if self.special != "text" else []
        return shlex.join(["python", "-m", "analysis", "chat" if chat else "stream", *words])

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote; raises ValueError when it is something else."""
        try:
            values = json.loads(text)
            return cls(**values)
        except (TypeError, json.JSONDecodeError) as e:
            raise ValueError(f"this is not the Spec of a run: {e}") from e


class Column:
    """Numbers that one thread appends and others read: what `view` returns never changes."""

    def __init__(self, dtype: Any) -> None:
        self._data, self._count = np.empty(1024, dtype), 0

    def __len__(self) -> int:
        return self._count

    def view(self) -> NDArray:
        return self._data[: self._count]

    def append(self, values: NDArray) -> None:
        stop = self._count + len(values)
        if stop > len(self._data):
            grown = np.empty(stop * 2, self._data.dtype)
            grown[: self._count] = self.view()
            self._data = grown
        self._data[self._count : stop] = values
        self._count = stop

    def truncate(self, count: int) -> None:
        """Forget all but the first numbers.  What was returned before stays, since the rest is written anew."""
        if count < self._count:
            self._data, self._count = self._data[:count].copy(), count


class Track:
    """What one lane has learned: a number for each predicted token, position 1 first."""

    def __init__(self) -> None:
        self.nll = Column(np.float32)
        self.cache_tokens = Column(np.int32)
        self.cache_bytes = Column(np.int64)
        self.seconds = Column(np.float64)
        """When each token was known, since the run began."""
        self.compute = Column(np.float64)
        """Compute seconds of the lane, summed up, when each token was known."""
        self.sums = Column(np.float64)
        """Sums of the first 0, 1, 2 … NLLs: means over any stretch are differences of these."""
        self.sums.append(np.zeros(1))
        self.token_ids = Column(np.int32)
        self.roles = Column(np.int8)
        """In a conversation, who said each token (ROLES)."""
        self.spans: list[tuple[int, int]] = []
        self.sink_mass: list[NDArray[np.float32]] = []
        """Mean sink mass of each chunk, [layers, heads], beside its span."""
        self.policies: list[tuple[int, str]] = []
        """From which position on the lane read under which policy."""

    def append(self, step: "Step", seconds: float) -> None:
        count = len(step.nll)
        spent = np.full(count, step.seconds) if step.each is None else np.cumsum(step.each)
        compute = self.compute.view()[-1] if len(self.compute) else 0.0
        if not self.policies or self.policies[-1][1] != str(step.policy):
            self.policies.append((step.start, str(step.policy)))
        self.token_ids.append(step.token_ids)
        if step.roles is not None:
            self.roles.append(step.roles)
        self.cache_tokens.append(step.cache_tokens)
        self.cache_bytes.append(step.cache_bytes)
        self.seconds.append(seconds - step.seconds + spent)
        self.compute.append(compute + spent)
        self.sums.append(self.sums.view()[-1] + np.cumsum(step.nll, dtype=np.float64))
        # Last, since readers take the length of these for the length of all.
        self.sink_mass.append(step.sink_mass.mean(-1, dtype=np.float32))
        self.spans.append((step.start, step.stop))
        self.nll.append(step.nll)


class Run:
    """A Spec, what its lanes have learned so far, and what happened meanwhile."""

    def __init__(self, spec: Spec, first_token: int | None = None) -> None:
        self.spec = spec
        self.first_token = first_token
        self.begins: str | None = None
        """The BOS that the text really begins with, empty where it has none; None where nobody knows."""
        self.as_text: tuple[str, ...] = ()
        """Names of control tokens that stand in the text, and were read as text."""
        self.first_role = 0
        self.tracks = [Track() for _ in spec.policies]
        self.events: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        """When the run began, whenever it is saved."""

    def append(self, step: "Step") -> None:
        """Take in a step that has just been made."""
        self.tracks[step.lane].append(step, time.perf_counter() - self.began)

    def event(self, what: str, *, lane: int | None = None, position: int | None = None, **more: Any) -> dict[str, Any]:
        """Note that something happened: a switch, a pause, a warning."""
        seconds = round(time.perf_counter() - self.began, 3)
        entry = {"what": what, "lane": lane, "position": position, "seconds": seconds, **more}
        self.events.append(entry)
        return entry


class Folder:
    """The run folder: takes in every step and event as they come, and is finished once.

    Raises ValueError where the folder holds a run already or cannot be written.
    """

    def __init__(self, path: Path, run: Run, *, text_sha256: str, weights_sha256: str) -> None:
        self.path, self.run = path, run
        if (path / "run.json").exists():
            raise ValueError(f"{path} holds a run already: choose another folder for --out")
        self._about = _about(run, text_sha256, weights_sha256)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._write_about("running")
            self._schema = TOKENS if run.spec.sampling is None else TOKENS.append(pa.field("role", pa.string()))
            self._files = [(path / name).open("wb") for name in ("tokens.arrow", "sinks.arrow")]
            self._events = (path / "events.jsonl").open("a", encoding="utf-8")
        except OSError as e:
            raise ValueError(f"{path} cannot be written: {e.strerror}; choose another folder for --out") from e
        self._tokens, self._sinks = (
            pa.ipc.new_stream(file, schema) for file, schema in zip(self._files, (self._schema, SINKS), strict=True)
        )

    def append(self, step: "Step") -> None:
        """Take in a step, in the run and on disk; a signal that ends the program waits until it is in both."""
        with _undisturbed():
            self._append(step)

    def _append(self, step: "Step") -> None:
        first = step.start == 1
        self.run.append(step)
        known = self.run.tracks[step.lane].seconds.view()[-len(step.nll) :]
        count = len(step.nll) + first
        ids, nll, kept, size = step.token_ids, step.nll, step.cache_tokens, step.cache_bytes
        if first:
            # Token 0 is read by every lane and predicted by none.
            ids = np.concatenate(([self.run.first_token or 0], ids)).astype(np.int32)
            nll, kept, size = (np.concatenate(([0], a)).astype(a.dtype) for a in (nll, kept, size))
        unknown = np.zeros(count, bool)
        unknown[0] = first
        columns = [
            np.full(count, step.lane, np.int32),
            pa.array([str(step.policy)] * count),
            np.arange(step.stop - count, step.stop),
            ids,
            pa.array(nll, mask=unknown),
            kept,
            size,
            np.concatenate((known[:1], known)) if first else known,
        ]
        if step.roles is not None:
            roles = [self.run.first_role] * first + step.roles.tolist()
            columns.append(pa.array([ROLES[role] for role in roles]))
        if "heads" not in self._about:
            # Before the numbers, which are not understood without.
            self._about["heads"] = list(step.sink_mass.shape[:2])
            self._write_about("running")
        batch = pa.record_batch(columns, schema=self._schema)
        self._tokens.write_batch(batch)
        mass = pa.array([step.sink_mass.mean(-1, dtype=np.float32).ravel()], SINKS.field("sink_mass").type)
        self._sinks.write_batch(
            pa.record_batch(
                [np.array([step.lane], np.int32), np.array([step.start]), np.array([step.stop]), mass], schema=SINKS
            )
        )
        for file in self._files:
            file.flush()

    def event(self, what: str, **more: Any) -> None:
        """Note an event, in the run and on disk."""
        self._events.write(json.dumps(self.run.event(what, **more)) + "\n")
        self._events.flush()

    def finish(self, status: str) -> None:
        """Turn the growing tables into tokens.parquet and sinks.npz; status: finished, interrupted or failed."""
        for writer in (self._tokens, self._sinks):
            writer.close()
        for file in (*self._files, self._events):
            file.close()
        table, sinks = _growing(self.path, self._schema, self._about.get("heads"))
        pq.write_table(table, self.path / "tokens.parquet")
        arrays = {}
        for lane, (spans, mass) in sinks.items():
            arrays[f"mass_{lane}"], arrays[f"span_{lane}"] = np.stack(mass), np.array(spans)
        np.savez_compressed(self.path / "sinks.npz", **arrays)
        self._write_about(status)
        for name in ("tokens.arrow", "sinks.arrow"):
            (self.path / name).unlink()

    def _write_about(self, status: str) -> None:
        _write(self.path, {**self._about, "status": status})


def save(run: Run, path: Path, *, text_sha256: str, weights_sha256: str) -> None:
    """Put a run that is kept in memory into a folder, or what it has learned since.

    Raises ValueError where the folder holds another run.
    """
    path, about = Path(path), Path(path) / "run.json"
    if about.exists() and json.loads(about.read_text(encoding="utf-8"))["spec"] != json.loads(run.spec.to_json()):
        raise ValueError(f"{path} holds another run: choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    parts, arrays = [], {}
    for lane, track in enumerate(run.tracks):
        count = len(track.nll)
        if not count:
            continue
        first = {"token_ids": run.first_token or 0, "nll": 0, "cache_tokens": 0, "cache_bytes": 0}
        column = {name: np.concatenate(([value], getattr(track, name).view()[:count])) for name, value in first.items()}
        known = track.seconds.view()[:count]
        policies = np.empty(count + 1, object)
        for position, policy in track.policies:
            policies[position if position > 1 else 0 :] = policy
        columns = [
            np.full(count + 1, lane, np.int32),
            pa.array(policies.tolist(), pa.string()),
            np.arange(count + 1),
            column["token_ids"].astype(np.int32),
            pa.array(column["nll"].astype(np.float32), mask=np.arange(count + 1) == 0),
            column["cache_tokens"].astype(np.int32),
            column["cache_bytes"].astype(np.int64),
            np.concatenate((known[:1], known)),
        ]
        parts.append(pa.table(columns, schema=TOKENS))
        spans = [span for span in track.spans[:] if span[1] <= count + 1]
        arrays[f"mass_{lane}"], arrays[f"span_{lane}"] = np.stack(track.sink_mass[: len(spans)]), np.array(spans)
    pq.write_table(pa.concat_tables(parts) if parts else TOKENS.empty_table(), path / "tokens.parquet")
    np.savez_compressed(path / "sinks.npz", **arrays)
    lines = "".join(json.dumps(event) + "\n" for event in list(run.events))
    (path / "events.jsonl").write_text(lines, encoding="utf-8")
    _write(path, {**_about(run, text_sha256, weights_sha256), "status": "saved"})


def _about(run: Run, text_sha256: str, weights_sha256: str) -> dict[str, Any]:
    """What a run folder says of itself."""
    return {
        "spec": asdict(run.spec),
        "arithmetic": run.spec.arithmetic,
        "begins": run.begins,
        "as_text": list(run.as_text),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in ("torch", "transformers")}},
        "text_sha256": text_sha256,
        "weights_sha256": weights_sha256,
        "started": run.started,
    }


def _write(path: Path, about: dict[str, Any]) -> None:
    draft = path / "run.json.part"
    draft.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    draft.replace(path / "run.json")


def load(path: Path) -> Run:
    """The run in a folder, finished or cut off at any moment.  Raises ValueError where there is none."""
    path = Path(path)
    try:
        about = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} holds no run: it has no readable run.json") from e
    known = {f.name for f in fields(Spec)}
    run = Run(Spec(**{k: v for k, v in about["spec"].items() if k in known}))
    run.started = about.get("started", run.started)
    run.begins, run.as_text = about.get("begins"), tuple(about.get("as_text", ()))
    # Where both kinds are there, the process was killed while it wrote the second.
    done = not (path / "tokens.arrow").exists() and (path / "tokens.parquet").exists()
    if done:
        table, sinks = pq.read_table(path / "tokens.parquet"), {}
        with np.load(path / "sinks.npz") as held:
            for lane in range(len(run.tracks)):
                if f"span_{lane}" in held:
                    sinks[lane] = [tuple(s) for s in held[f"span_{lane}"].tolist()], list(held[f"mass_{lane}"])
    else:
        table, sinks = _growing(path, TOKENS, about.get("heads"))
    for lane, track in enumerate(run.tracks):
        rows = table.filter(pa.compute.equal(table["lane"], lane))
        column = {name: rows[name].to_numpy() for name in rows.column_names}
        if not len(column["position"]):
            continue
        run.first_token = int(column["token_id"][0])
        for name in ("token_ids", "nll", "cache_tokens", "cache_bytes", "seconds"):
            getattr(track, name).append(column["token_id" if name == "token_ids" else name][1:])
        if "role" in column:
            track.roles.append(np.array([ROLES.index(r) for r in column["role"][1:]], np.int8))
        track.sums.append(np.cumsum(column["nll"][1:], dtype=np.float64))
        changes = np.flatnonzero(np.r_[True, column["policy"][2:] != column["policy"][1:-1]])
        track.policies = [(int(column["position"][1 + i]), str(column["policy"][1 + i])) for i in changes]
        track.spans, track.sink_mass = sinks[lane]
    events = path / "events.jsonl"
    if events.exists():
        lines = events.read_text(encoding="utf-8").splitlines()
        # The last line of a process that was killed may be cut short.
        run.events = [json.loads(line) for line in lines if line.endswith("}")]
    return run


def _growing(
    path: Path, schema: pa.Schema, heads: list[int] | None
) -> tuple[pa.Table, dict[int, tuple[list[tuple[int, int]], list[NDArray[np.float32]]]]]:
    """The tables of a folder that was not finished: tokens in order, and spans and sink masses of each lane.

    Whatever the moment at which writing ended, both end with the last chunk that stands whole in both.
    """
    table = _in_order(_read_stream(path / "tokens.arrow", schema))
    lanes = table["lane"].to_numpy()
    ends = np.bincount(lanes, minlength=1)
    sinks: dict[int, tuple[list[tuple[int, int]], list[NDArray[np.float32]]]] = {}
    for row in _read_stream(path / "sinks.arrow", SINKS).to_pylist():
        if row["lane"] < len(ends) and row["stop"] <= ends[row["lane"]]:
            spans, mass = sinks.setdefault(row["lane"], ([], []))
            spans.append((row["start"], row["stop"]))
            mass.append(np.array(row["sink_mass"], np.float32).reshape(heads or (1, -1)))
    ends = np.array([sinks[lane][0][-1][1] if lane in sinks else 0 for lane in range(len(ends))])
    return table.filter(pa.array(table["position"].to_numpy() < ends[lanes])), sinks


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and a request to end wait until the block has ended: they would cut what it does in two."""
    if threading.current_thread() is not threading.main_thread():
        # Signals come to the main thread alone.
        yield
        return
    came: list[tuple] = []
    handlers = ((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
    # None: not Python's, and so nothing that could come in between.
    before = {number: handler for number, handler in handlers if handler is not None}
    try:
        for number in before:
            signal.signal(number, lambda *about: came.append(about))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, _ in came:
            # As if it came now, whatever is to be done then.
            signal.raise_signal(number)


def _read_stream(path: Path, schema: pa.Schema) -> pa.Table:
    """All whole batches of a stream that may end anywhere; `schema` where not even its own is there."""
    batches = []
    try:
        with pa.ipc.open_stream(path.read_bytes()) as stream:
            schema = stream.schema
            while True:
                batches.append(stream.read_next_batch())
    except (StopIteration, pa.ArrowInvalid, OSError):
        pass
    return pa.Table.from_batches(batches, schema)


def _in_order(table: pa.Table) -> pa.Table:
    return table.sort_by([("lane", "ascending"), ("position", "ascending")])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
