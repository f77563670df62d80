"""Commands that read a text: `stream` under several policies, and `capture` for maps."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .. import texts
from ..policies import Policy, parse
from ..runs.facts import ModelFacts
from ..runs.run import Run
from ..runs.spec import Spec
from ..runs.stopped import text_of
from ..runs.summary import summarize
from ..runs.switches import Plan, Switch, carry_out
from . import options
from .console import check_new, new_folder, note, out, right, say
from .ending import Brake, end_run, opened
from .waiting import Bars, loading

if TYPE_CHECKING:
    from ..engine.lane import Lane
    from ..maps.capture import CutOff
    from ..maps.recorder import MapRecorder
    from ..runs.checkpoint import Checkpoints
    from ..runs.folder import Folder


def stream(
    model: options.Model = "embedded",
    text: options.Text = "hamlet",
    tokens: Annotated[int | None, typer.Option(help="read at most so many tokens")] = None,
    policy: options.Policies = None,
    chunk: options.Chunk = 512,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    weights: options.Weights = "model",
    kv_heads: options.KVHeads = None,
    fidelity: Annotated[bool, typer.Option("--fidelity", help="measure lanes against the first: KL, top-1")] = False,
    maps: Annotated[str, typer.Option(help="heads whose attention maps are kept for replays: layer.head,…")] = "",
    out_folder: options.RunFolder = None,
    runs: options.Runs = None,
) -> None:
    """Read a text with one lane for each policy, write a run folder, and print a table."""
    dtype, policies_ = options.dtype_of(dtype, device), tuple(str(parse(p)) for p in policy or options.USUAL)
    more: dict[str, Any] = {"special": special, "fidelity": fidelity}
    spec = Spec(model, text, policies_, tokens, chunk, dtype, device, options.bos_of(bos), weights, kv_heads, **more)
    source, named = texts.read(text), options.heads(maps, "--maps")
    check_new(out_folder)
    with loading(out) as tell:
        from ..engine.stream import open_lanes
        from ..maps.recorder import SIDE, MapRecorder, heads_of
        from ..models.loading import load
        from ..runs.checkpoint import Checkpoints
        from ..runs.folder import Folder

        network = load(**spec.loading, progress=tell)
        read = spec.tokenized(source, network.tokenizer)
        ids, policies = read.ids, [parse(p) for p in spec.policies]
        facts = ModelFacts.of(network)
        heads = heads_of(named, facts)
        lanes = open_lanes(network, ids, policies, history=SIDE if heads else 0, fidelity=fidelity)
    with new_folder(out_folder, Path(source.name).stem, runs) as place:
        run = Run(spec, int(ids[0]))
        run.model, run.begins, run.as_text = facts, read.begins, read.as_text
        of: dict[str, Any] = {"text_sha256": source.sha256, "weights_sha256": network.sha256}
        of |= {"tokens": len(ids), "maps": [f"{layer}.{head}" for layer, head in heads]}
        with opened(lambda: Folder(place, run, **of)) as folder:
            folder.pieces(-1, 0, texts.token_texts(network.tokenizer, ids))
            options.say_read(read)
            for lane, policy_ in enumerate(policies):
                for warning in policy_.cautions(len(ids), network.trained_length):
                    folder.event("warning", lane=lane, text=warning)
                    note(warning)
            options.say_changed(spec)
            recorder = MapRecorder(place, len(lanes), len(ids), heads) if heads else None
            read_on(lanes, folder, Checkpoints(place), recorder)


def read_on(
    lanes: "list[Lane]",
    folder: "Folder",
    checkpoints: "Checkpoints",
    recorder: "MapRecorder | None" = None,
    switches: Sequence[Switch] = (),
) -> None:
    """Let lanes read to the end of their text, switched where that is planned, finish the folder and print a table.
    Ctrl-C, or a polite kill, ends it after the chunk that is being read; a second one at once."""
    from ..engine.stream import next_lane
    from ..runs.checkpoint import Saver
    from ..runs.resume import state_of

    run, total = folder.run, len(lanes[0].context.tokens)
    status, failed, warnings = "finished", dict[int, Exception](), list[str]()
    saver, plan = Saver(checkpoints, warnings.append), Plan(switches)
    try:
        with Bars(out, rates=True) as progress, Brake() as brake:
            bars = [progress.add_task(p.policy.label, total=total, completed=p.position, rate="") for p in lanes]
            while (lane := next_lane([lane for lane in lanes if lane.index not in failed])) is not None:
                try:
                    for due in plan.due(lane):
                        _switch(lane, due, folder, warnings)
                    step = lane.read(run.spec.chunk, plan.limit(lane))
                except Exception as e:
                    # Whatever it is, the other lanes have no part in it.
                    failed[lane.index] = e
                    folder.event("failed", lane=lane.index, position=lane.position)
                    progress.update(bars[lane.index], rate="failed")
                    continue
                folder.append(step)
                if recorder is not None:
                    recorder.record(lane)
                saver.save(lambda: state_of(run, lanes, list(failed)))
                rate = f"{(lane.position - 1) / lane.seconds:,.0f} tokens/s"
                progress.update(bars[lane.index], completed=lane.position, rate=rate)
                if brake.pressed:
                    status = "interrupted"
                    break
    except KeyboardInterrupt:
        # Half a chunk is read, which no checkpoint may hold.
        status, lanes = "interrupted", []
    except Exception:
        saver.close()
        raise
    status = "failed" if failed and status == "finished" else status
    ended = status == "finished" and total != run.spec.tokens
    left = (lambda: state_of(run, lanes, list(failed))) if lanes and not ended else None
    end_run(folder, saver, status, warnings, left, over=ended, table=summary)
    for e in failed.values():
        raise e


def _switch(lane: "Lane", due: Switch, folder: "Folder", warnings: list[str]) -> None:
    try:
        event = carry_out(lane, parse(due.policy), pin=due.pin)
    except ValueError as e:
        # It reads on as before, as it does on a page.
        warnings.append(str(e))
    else:
        folder.event("switch", **event, planned=True)


def summary(run: Run) -> Table:
    """Per lane: perplexity, excess NLL in nats/token against the first lane, cache tokens and bytes, and speed; where
    it was measured, KL divergence and top-1 agreement, too."""
    measured = ("KL", "Top-1") if run.spec.fidelity else ()
    header = ("Tokens", "Perplexity", "Excess NLL", *measured, "Kept", "Cache", "Tokens/s")
    table = Table("Lane", *(right(h) for h in header))
    table.title = f"Computed in {run.spec.arithmetic}"
    of = "Excess NLL and KL divergence" if measured else "Excess NLL"
    table.caption = (
        f"{of}: nats/token against the first lane, over the tokens that both have read, ± standard error over blocks "
        "of 256 tokens"
    )
    for lane in summarize(run):
        if not lane.tokens:
            table.add_row(lane.label, "0", *["–"] * (len(header) - 1))
            continue
        table.add_row(
            lane.label,
            f"{lane.tokens:,}",
            f"{lane.perplexity:.4f}",
            lane.excess_text,
            *((lane.kl_text, lane.agree_text) if measured else ()),
            lane.cached_text,
            f"{lane.cache_bytes / 1e6:,.1f} MB",
            "–" if math.isnan(lane.rate) else f"{lane.rate:,.1f}",
        )
    return table


def capture(
    model: options.Model = "embedded",
    text: options.Text = "hamlet",
    tokens: Annotated[int, typer.Option(help="read at most so many tokens")] = 2048,
    policy: Annotated[str, typer.Option(help="dense, window, streaming or shift: name:key=value,key=value")] = "dense",
    switch: Annotated[list[str] | None, typer.Option(help="POSITION=policy: read on so from there on")] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    out_folder: options.RunFolder = None,
    runs: options.Runs = None,
) -> None:
    """Read a text and keep what every head asked with and answered to, for maps and figures."""
    how: dict[str, Any] = {
        "dtype": options.dtype_of(dtype, device),
        "device": device,
        "bos": options.bos_of(bos),
        "special": special,
    }
    spec, source = Spec(model, text, (str(parse(policy)),), tokens, **how), texts.read(text)
    switches = []
    for asked in switch or []:
        at, equals, then = asked.partition("=")
        if not equals or not (at.isascii() and at.isdigit()):
            raise ValueError(f"--switch is written POSITION=policy, such as 1000=window:window=256, and not {asked!r}")
        switches.append((int(at), parse(then)))
    if len({at for at, _ in switches}) < len(switches):
        raise ValueError("a position is given to --switch twice: name each once")
    check_new(out_folder)
    _capture(spec, source, sorted(switches), lambda: new_folder(out_folder, f"{Path(source.name).stem}-stretch", runs))


def capture_again(place: Path, asked: "CutOff") -> None:
    """Begin a capture again that was killed.  Raises ValueError where its text is another by now."""
    source = text_of(asked.spec.text)
    if asked.text_sha256 and source.sha256 != asked.text_sha256:
        raise ValueError(f"the text {asked.spec.text} is not the one that was to be captured: begin a new capture")
    say("A stretch is of no use before all of it is read, so the capture that was cut off begins again.")
    _capture(
        asked.spec, source, [(at, parse(then)) for at, then in asked.switches], lambda: nullcontext(place), asked.chunk
    )


def _capture(
    spec: Spec,
    source: texts.Text,
    switches: list[tuple[int, Policy]],
    folder: Callable[[], AbstractContextManager[Path]],
    chunk: int = 512,
) -> None:
    """Capture a stretch into the folder that `folder` names, once the model is there."""
    with loading(out) as tell:
        from ..maps import capture as maps
        from ..models.loading import load

        maps.check_policies(parse(spec.policies[0]), switches)
        network = load(**spec.loading, progress=tell)
    read = maps.tokenized(source, network.tokenizer, spec)
    options.say_read(read)
    with folder() as place:
        with Bars(out) as bar:
            task = bar.add_task("Tokens", total=len(read.ids) - 1)
            more: dict[str, Any] = {"switches": switches, "text_sha256": source.sha256, "read": read, "chunk": chunk}
            try:
                for count in maps.capture(network, read.ids, spec, place, **more):
                    bar.update(task, completed=count)
            except KeyboardInterrupt:
                say("Interrupted: part of a stretch is of no use, so nothing of it is kept. Capture it anew.")
                raise typer.Exit(130) from None
        say(f"The stretch lies in {place}")
