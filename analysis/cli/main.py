"""The command line: read a text, or talk, under several policies and write down what happened.

`python -m analysis stream …` is the live page without a page, `chat …` the page of conversations.  Whatever ends
one of them is one line on standard error: exit status 2 for what the person can mend, 1 for our own mistakes.
Transformers is imported only by the commands that need it.
"""

import math
import os
import secrets
import signal
import sys
from collections.abc import Mapping
from dataclasses import Field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table

from .. import errors, files, metrics, texts
from ..policies import POLICIES, Policy, parse
from ..runs.folder import ROLES, TYPED, Folder, Run, Sampling, Spec
from ..runs.summary import summarize
from ..settings import MOST
from ..texts import with_bos
from .waiting import Bars, waiting

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)
out = Console(highlight=False)
UsageError = typer.BadParameter.__base__
ClickException = UsageError.__base__

FOUR = ["dense", "window:window=256", "streaming:sinks=4,window=252"]
Bos = Annotated[
    bool | None, typer.Option("--bos/--no-bos", help="begin with BOS or not (default: as the tokenizer does)")
]
Special = Annotated[str, typer.Option(help="names of control tokens in a text, such as <|endoftext|>: text or tokens")]

TWO = ["streaming:sinks=4,window=60", "window:window=64"]
"""So small that the second of these breaks down within a few questions."""


@app.command()
def stream(
    model: Annotated[str, typer.Option(help="embedded, a hub id, a folder, or a GGUF file")] = "embedded",
    text: Annotated[str, typer.Option(help="a bundled text, a text file, or a .npy file of token ids")] = "hamlet",
    tokens: Annotated[int | None, typer.Option(help="read at most so many tokens")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="one lane each: name:key=value,key=value")] = None,
    chunk: Annotated[int, typer.Option(help="tokens that go through the model at once; changes no number")] = 512,
    dtype: Annotated[str, typer.Option(help="auto (the fastest here), float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    bos: Bos = None,
    special: Special = "text",
    weights: Annotated[str, typer.Option(help="model (as it came), or packed on a CPU: int8, int4")] = "model",
    kv_heads: Annotated[int | None, typer.Option(help="average the KV heads down to so many, without training")] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="run folder (default: a new one in runs/)")] = None,
) -> None:
    """Read a text with one lane for each policy, write a run folder, and print a table."""
    dtype, policies_ = _decided(dtype, device), tuple(str(parse(p)) for p in policy or FOUR)
    spec = Spec(model, text, policies_, tokens, chunk, dtype, device, _bos(bos), weights, kv_heads, special=special)
    source = texts.read(text)
    with waiting(out, "Loading the model") as status:
        from ..engine.stream import next_lane, open_lanes
        from ..models.loading import load

        network = load(model, dtype=dtype, device=device, weights=weights, kv_heads=kv_heads, progress=status.update)
        read = texts.tokenized(source, network.tokenizer, bos=spec.bos, special=special, limit=tokens)
        ids, policies = read.ids, [parse(p) for p in spec.policies]
        lanes = open_lanes(network, ids, policies)
    place = out_folder or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(source.name).stem}"
    run = Run(spec, int(ids[0]))
    run.begins, run.as_text = read.begins, read.as_text
    folder = Folder(place, run, text_sha256=source.sha256, weights_sha256=network.sha256, tokens=len(ids))
    _say_read(read)
    for lane, policy_ in enumerate(policies):
        for warning in policy_.cautions(len(ids), network.trained_length):
            folder.event("warning", lane=lane, text=warning)
            out.print(f"[yellow]note:[/] {warning}", soft_wrap=True)
    _say_changed(spec)
    status, failed = "finished", dict[int, Exception]()
    try:
        with Bars(out, rates=True) as progress:
            bars = [progress.add_task(p.label, total=len(ids), completed=1, rate="") for p in policies]
            while (lane := next_lane([lane for lane in lanes if lane.index not in failed])) is not None:
                try:
                    step = lane.read(chunk)
                except Exception as e:
                    # Whatever it is, the other lanes have no part in it.
                    failed[lane.index] = e
                    folder.event("failed", lane=lane.index, position=lane.position)
                    progress.update(bars[lane.index], rate="failed")
                    continue
                folder.append(step)
                rate = f"{(lane.position - 1) / lane.seconds:,.0f} tokens/s"
                progress.update(bars[lane.index], completed=lane.position, rate=rate)
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception:
        folder.finish("failed")
        raise
    status = "failed" if failed and status == "finished" else status
    folder.finish(status)
    out.print(summary(run))
    out.print(f"{status.capitalize()}. The run lies in {place}", soft_wrap=True, markup=False)
    if status == "interrupted":
        raise typer.Exit(130)
    for e in failed.values():
        raise e


def _decided(dtype: str, device: str) -> str:
    """The dtype that is meant, with a word on what `auto` stands for here: a run records what it was read in."""
    if dtype != "auto":
        return dtype
    from ..models.dtypes import decide

    chosen, why = decide(dtype, device)
    out.print(f"[yellow]note:[/] dtype auto is {why}", soft_wrap=True)
    return chosen


def _bos(asked: bool | None) -> str:
    """What --bos, --no-bos or neither of them means in a Spec."""
    return {None: "auto", True: "on", False: "off"}[asked]


def _say_read(read: texts.Tokenized) -> None:
    """Say what a text begins with, and what of it was read as text though it could have been control tokens."""
    out.print(f"The text begins {with_bos(read.begins)}.", markup=False, soft_wrap=True)
    if read.note:
        out.print(f"note: {read.note}", style="yellow", markup=False, soft_wrap=True)


def _say_changed(spec: Spec) -> None:
    if spec.weights != "model":
        out.print(f"[yellow]note:[/] {spec.arithmetic}: numbers differ a little from the model's own", soft_wrap=True)
    if spec.kv_heads is not None:
        out.print(
            f"[yellow]note:[/] KV heads are averaged down to {spec.kv_heads}, without the training that it would need"
        )


@app.command()
def chat(
    model: Annotated[str, typer.Option(help="embedded, a hub id, a folder, or a GGUF file")] = "embedded",
    policy: Annotated[list[str] | None, typer.Option(help="one lane each: name:key=value,key=value")] = None,
    script: Annotated[str | None, typer.Option(help="prompts, one a line, or JSONL with turns; none: you type")] = None,
    max_new: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token")] = 0.0,
    top_k: Annotated[int, typer.Option(help="only the k most probable tokens; 0: all")] = 0,
    top_p: Annotated[float, typer.Option(help="only the most probable tokens of this probability together")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="divides logits of what was said lately")] = 1.0,
    seed: Annotated[int, typer.Option(help="same seed, same answers")] = 0,
    chunk: Annotated[int, typer.Option(help="tokens of a prompt read at once; changes no number")] = 256,
    kv_chunk: Annotated[int | None, typer.Option(help="cached tokens read at once; changes no number")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the fastest here), float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    bos: Bos = None,
    special: Special = "text",
    weights: Annotated[str, typer.Option(help="model (as it came), or packed on a CPU: int8, int4")] = "model",
    kv_heads: Annotated[int | None, typer.Option(help="average the KV heads down to so many, without training")] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="run folder (default: a new one in runs/)")] = None,
) -> None:
    """Talk without end, one lane for each policy.  Ctrl-C ends an answer, Ctrl-D the conversation."""
    dtype = _decided(dtype, device)
    sampling = Sampling(max_new, temperature, top_k, top_p, repetition_penalty, seed)
    spec = Spec(
        model=model,
        text=script or TYPED,
        policies=tuple(str(parse(p)) for p in policy or TWO),
        chunk=chunk,
        dtype=dtype,
        device=device,
        weights=weights,
        kv_heads=kv_heads,
        sampling=sampling,
        kv_chunk=kv_chunk,
        bos=_bos(bos),
        special=special,
    )
    with waiting(out, "Loading the model") as status:
        from ..chat.conversation import Conversation, Partner, read_script
        from ..models.loading import load
        from .terminal import converse, typed

        prompts, digest = read_script(script) if script else (None, "")
        network = load(model, dtype=dtype, device=device, weights=weights, kv_heads=kv_heads, progress=status.update)
        partner = Partner(network, bos=spec.bos, special=special)
        lanes = [
            Conversation(partner, parse(p), sampling, index=i, kv_chunk=kv_chunk) for i, p in enumerate(spec.policies)
        ]
        for lane in lanes:
            lane.trace()
    place = out_folder or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-chat"
    run = Run(spec)
    run.begins = partner.begins
    folder = Folder(place, run, text_sha256=digest, weights_sha256=network.sha256)
    _say_changed(spec)
    out.print(f"The conversation begins {with_bos(partner.begins)}.", markup=False, soft_wrap=True)
    if note := partner.template.note or partner.template.caution:
        folder.event("warning", text=note)
        out.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    status = "finished"
    try:
        asked = typed(out) if prompts is None else prompts
        converse(lanes, asked, folder, out, chunk=chunk, scripted=prompts is not None)
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception:
        folder.finish("failed")
        raise
    folder.finish(status)
    out.print(spoken(run))
    out.print(f"{status.capitalize()}. The run lies in {place}", soft_wrap=True, markup=False)
    if status == "interrupted":
        raise typer.Exit(130)


def spoken(run: Run) -> Table:
    """Per lane of a conversation: tokens, perplexity of the answers under the model, cache, and speed of answers."""
    table = Table("Lane", *(_right(h) for h in ("Tokens", "Answered", "Perplexity", "Kept", "Cache", "ms/token")))
    table.title = f"Computed in {run.spec.arithmetic}"
    table.caption = "Perplexity and ms/token: of the tokens that the model said, under the model as this lane had it"
    for policy, track in zip(run.spec.policies, run.tracks, strict=True):
        said = track.roles.view() == ROLES.index("assistant")
        if not said.any():
            table.add_row(parse(policy).label, f"{len(said)}", "0", *["–"] * 4)
            continue
        spent = np.diff(track.compute.view(), prepend=0.0)[said]
        table.add_row(
            parse(policy).label,
            f"{len(said) + 1:,}",
            f"{said.sum():,}",
            f"{metrics.perplexity(track.nll.view()[said]):.3f}",
            f"{track.cache_tokens.view()[-1]:,}",
            f"{track.cache_bytes.view()[-1] / 1e6:,.1f} MB",
            f"{spent.sum() / said.sum() * 1e3:,.1f}",
        )
    return table


def summary(run: Run) -> Table:
    """Per lane: perplexity, excess NLL in nats/token against the first lane, cache tokens and bytes, and speed."""
    table = Table("Lane", *(_right(h) for h in ("Tokens", "Perplexity", "Excess NLL", "Kept", "Cache", "Tokens/s")))
    table.title = f"Computed in {run.spec.arithmetic}"
    table.caption = "Excess NLL: nats/token against the first lane, ± standard error over blocks of 256 tokens"
    for lane in summarize(run):
        if not lane.tokens:
            table.add_row(lane.policy.label, "0", *["–"] * 5)
            continue
        table.add_row(
            lane.policy.label,
            f"{lane.tokens:,}",
            f"{lane.perplexity:.4f}",
            lane.excess_text,
            f"{lane.cache_tokens:,}",
            f"{lane.cache_bytes / 1e6:,.1f} MB",
            f"{lane.rate:,.1f}",
        )
    return table


def _right(heading: str) -> Column:
    return Column(heading, justify="right")


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


@app.command()
def knockout(
    model: Annotated[str, typer.Option(help="embedded, a hub id, a folder, or a GGUF file")] = "embedded",
    text: Annotated[str, typer.Option(help="a bundled text, a text file, or a .npy file of token ids")] = "hamlet",
    tokens: Annotated[int, typer.Option(help="read so many tokens for every head")] = 512,
    policy: Annotated[str, typer.Option(help="name:key=value,key=value")] = "dense",
    kind: Annotated[str, typer.Option(help="values (seen, but empty) or weights (others make up for it)")] = "values",
    layer: Annotated[int | None, typer.Option(help="only the heads of this layer")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the fastest here), float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    bos: Bos = None,
    special: Special = "text",
    out_file: Annotated[Path | None, typer.Option("--out", help="a CSV file with a row for every head")] = None,
) -> None:
    """Knock out the sink of one head after the other: what is each worth?  Ctrl-C ends it, and keeps what is known."""
    chosen, source = parse(policy), texts.read(text)
    if out_file is not None and out_file.exists():
        raise ValueError(f"{out_file} exists already: choose another file for --out")
    dtype = _decided(dtype, device)
    with waiting(out, "Loading the model") as status:
        from ..experiments.ablation import Kept, knock_out_each
        from ..models.loading import load

        network = load(model, dtype=dtype, device=device, progress=status.update)
    if layer is not None and not 0 <= layer < network.layers:
        raise ValueError(f"there is no layer {layer}: layers are 0 to {network.layers - 1}")
    read = texts.tokenized(source, network.tokenizer, bos=_bos(bos), special=special, limit=tokens)
    _say_read(read)
    ids = read.ids
    layers = range(network.layers) if layer is None else [layer]
    heads = [(of, head) for of in layers for head in range(network.heads)]
    effects, kept = [], None if out_file is None else Kept(out_file)
    try:
        with Bars(out) as bar:
            task = bar.add_task("Heads", total=len(heads))
            for effect in knock_out_each(network, ids, chosen, kind, heads):
                effects.append(effect)
                if kept is not None:
                    kept.add(effect)
                bar.advance(task)
    except KeyboardInterrupt:
        out.print(f"Interrupted after {len(effects)} of {len(heads)} heads.")
    effects.sort(key=lambda e: -e.excess)
    table = Table("Head", _right("Excess NLL"), _right("±"))
    for e in effects[:20]:
        table.add_row(f"{e.layer}.{e.head}", f"{e.excess:+.4f}", "–" if math.isnan(e.error) else f"{e.error:.4f}")
    how = f"{chosen.label}, {len(ids):,} tokens {with_bos(read.begins)}"
    table.caption = f"nats/token with the sink's {kind} knocked out in one head, {how}"
    out.print(table)
    if kept is not None:
        kept.finish()
        out.print(f"All {len(effects)} heads: {out_file}", soft_wrap=True, markup=False)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="which experiment; without one, they are listed")] = None,
    model: Annotated[str, typer.Option(help="embedded, a hub id, a folder, or a GGUF file")] = "embedded",
    text: Annotated[str, typer.Option(help="a bundled text, a text file, or a .npy file of token ids")] = "hamlet",
    tokens: Annotated[int | None, typer.Option(help="tokens that each cell reads (default: by experiment)")] = None,
    cache: Annotated[int | None, typer.Option(help="cached tokens, where an experiment has one size")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the fastest here), float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    bos: Bos = None,
    special: Special = "text",
    jobs: Annotated[int, typer.Option(help="processes on this machine, each with a GPU of its own if it has any")] = 1,
    backend: Annotated[str, typer.Option(help="local, or a cluster: dask or ray")] = "local",
    address: Annotated[str | None, typer.Option(help="where the cluster is, HOST:PORT")] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="folder (default: runs/NAME)")] = None,
) -> None:
    """Do a paper's experiment again: a run folder for each cell, and a table.  Begun again, it goes on."""
    from ..experiments import grid
    from ..experiments.papers import EXPERIMENTS
    from ..tables import as_csv, as_markdown

    if name is None:
        table = Table("Experiment", "What it is", "Paper")
        for key, known in EXPERIMENTS.items():
            table.add_row(key, known.title, known.paper)
        out.print(table)
        return
    experiment, place = EXPERIMENTS.find(name), out_folder or Path("runs") / name
    texts.read(text)
    how = {"dtype": _decided(dtype, device), "device": device, "bos": _bos(bos), "special": special}
    cells = experiment.cells(Spec(model, text, ("dense",), tokens, **how), cache)
    left = grid.left_of(cells, place)

    def write() -> tuple[list[str], list[list[str]]]:
        heads, rows = experiment.table(cells, place)
        words = [f"# {experiment.title}", experiment.paper, as_markdown(heads, rows), *experiment.notes]
        files.write(place / "table.csv", as_csv(heads, rows))
        files.write(place / "table.md", "\n\n".join(w.strip() for w in words) + "\n")
        return heads, rows

    status = "finished"
    try:
        with Bars(out) as bar:
            task = bar.add_task("Cells", total=len(cells), completed=len(cells) - len(left))
            for cell in grid.run(cells, place, jobs=jobs, backend=backend, address=address):
                bar.advance(task)
                bar.console.print(f"{cell.label}: done", highlight=False)
                write()
    except KeyboardInterrupt:
        status = "interrupted"
    heads, rows = write() if any(place.glob("*/run.json")) else (["Policy"], [])
    table = Table(*heads[:1], *(_right(h) for h in heads[1:]), title=f"{experiment.title}. {experiment.paper}")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    for note in experiment.notes:
        out.print(note, soft_wrap=True)
    again = ": the same command goes on" if status == "interrupted" else ""
    out.print(f"{status.capitalize()}{again}. Runs and tables lie in {place}", soft_wrap=True, markup=False)
    if status == "interrupted":
        raise typer.Exit(130)


@app.command(name="capture")
def capture_stretch(
    model: Annotated[str, typer.Option(help="embedded, a hub id, a folder, or a GGUF file")] = "embedded",
    text: Annotated[str, typer.Option(help="a bundled text, a text file, or a .npy file of token ids")] = "hamlet",
    tokens: Annotated[int, typer.Option(help="read at most so many tokens")] = 2048,
    policy: Annotated[str, typer.Option(help="dense, window or streaming: name:key=value,key=value")] = "dense",
    switch: Annotated[list[str] | None, typer.Option(help="POSITION=policy: read on so from there on")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the fastest here), float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    bos: Bos = None,
    special: Special = "text",
    out_folder: Annotated[Path | None, typer.Option("--out", help="folder (default: a new one in runs/)")] = None,
) -> None:
    """Read a text and keep what every head asked with and answered to, for maps and figures."""
    how = {"dtype": _decided(dtype, device), "device": device, "bos": _bos(bos), "special": special}
    spec, source = Spec(model, text, (str(parse(policy)),), tokens, **how), texts.read(text)
    switches = []
    for asked in switch or []:
        at, equals, then = asked.partition("=")
        if not equals or not at.isdigit():
            raise ValueError(f"--switch is written POSITION=policy, such as 1000=window:window=256, and not {asked!r}")
        switches.append((int(at), parse(then)))
    with waiting(out, "Loading the model") as status:
        from ..maps.capture import capture
        from ..maps.capture import tokenized as read_for_maps
        from ..models.loading import load

        network = load(model, dtype=spec.dtype, device=device, progress=status.update)
    read = read_for_maps(source, network.tokenizer, spec)
    _say_read(read)
    ids = read.ids
    place = out_folder or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(source.name).stem}-stretch"
    with Bars(out) as bar:
        task = bar.add_task("Tokens", total=len(ids) - 1)
        more = {"switches": sorted(switches), "text_sha256": source.sha256, "read": read}
        for count in capture(network, ids, spec, place, **more):
            bar.update(task, completed=count)
    out.print(f"The stretch lies in {place}", soft_wrap=True, markup=False)


@app.command()
def emergence(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="key=value,key=value: attention, steps, seed, rate …; one for each model")
    ] = None,
    every: Annotated[int, typer.Option(help="steps between two measurements")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "cpu",
    out_folder: Annotated[Path | None, typer.Option("--out", help="run folder (default: a new one in runs/)")] = None,
) -> None:
    """Train very small transformers and see whether a sink grows.  Ctrl-C ends it, and keeps what was measured."""
    from ..lab.folder import TrainingWriter
    from ..lab.recipe import ATTENTIONS, Recipe
    from ..lab.training import Training
    from ..models.loading import pick_device

    asked = [Recipe.parse(r) for r in recipes or [""]]
    if every < 1:
        raise ValueError(f"at least 1 step lies between two measurements, not {every}")
    place = out_folder or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-emergence"
    if next(iter([*place.glob("run.json"), *place.glob("*/run.json")]), None):
        raise ValueError(f"{place} holds a run already: choose another folder for --out")
    if len(asked) > 1:
        files.new_folder(place)
    table = Table("Attention", *map(_right, ("Steps", "Weight on token 0", "Its value's norm", "Copied", "All tokens")))
    stopped, failed = False, list[Exception]()
    with Bars(out) as bar:
        for i, recipe in enumerate(asked):
            training = Training(recipe, pick_device(device))
            folder = place if len(asked) == 1 else place / f"{i}-{recipe.attention}"
            measured, task = [], bar.add_task(ATTENTIONS[recipe.attention], total=recipe.steps)
            kept = TrainingWriter(folder, training, every)
            try:
                for now in training.measurements(every):
                    measured.append(now)
                    kept.add(now)
                    bar.update(task, completed=now.step)
            except KeyboardInterrupt:
                stopped = True
            except Exception as e:
                # Whatever it is, the other trainings have no part in it.
                failed.append(e)
            kept.finish("finished" if training.done else "interrupted" if stopped else "failed")
            if measured:
                first, last = measured[0], measured[-1]
                table.add_row(
                    ATTENTIONS[recipe.attention], f"{last.step:,}", f"{first.sink:.2f} → {last.sink:.2f}",
                    f"{first.value:.2f} → {last.value:.2f}", f"{last.copied:.3f}", f"{last.loss:.3f}",
                )  # fmt: skip
            if stopped:
                break
    out.print(table)
    out.print("Losses in nats a token; norms as times those of the other values.")
    ended = "Interrupted" if stopped else "Failed" if failed else "Finished"
    out.print(f"{ended}. It lies in {place}", soft_wrap=True, markup=False)
    if stopped:
        raise typer.Exit(130)
    for e in failed:
        raise e


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="name:key=value,key=value; see figures")],
    run: Annotated[Path, typer.Option(help="folder of a run, a captured stretch, a grid of runs, or of trainings")],
    out_file: Annotated[Path, typer.Option("--out", help="a .pdf, .svg, .png, .csv or .npz file")],
    venue: Annotated[str, typer.Option(help="neurips, iclr, icml, acl, ieee or slides: how wide it is")] = "neurips",
    points: Annotated[float, typer.Option(help="size of the text")] = 8.0,
    dpi: Annotated[int, typer.Option(help="of PNG files, and of pictures inside the others")] = 300,
) -> None:
    """Make a figure for a paper."""
    from .. import figures
    from ..figures.export import export
    from ..figures.sheet import Layout

    chosen, layout = figures.parse(name), Layout(venue, points, dpi)
    with waiting(out, "Drawing"):
        about = export(chosen, run, out_file, layout)
    out.print(f"{chosen.title}: {out_file}", soft_wrap=True, markup=False)
    for words in filter(None, (about["missing"], f"\n{about['caption']}", f"\n{about['bibtex']}")):
        out.print(words, soft_wrap=True, markup=False)


@app.command()
def report(
    run: Annotated[Path, typer.Option(help="folder of a run")],
    out_file: Annotated[Path, typer.Option("--out", help="an .html file")],
    lane: Annotated[int, typer.Option(help="whose text is shown")] = 0,
    stretch: Annotated[Path | None, typer.Option(help="folder of a captured stretch, for maps")] = None,
    head: Annotated[list[str] | None, typer.Option(help="layer.head of a map")] = None,
) -> None:
    """Write one page that tells a run, and opens without network or Python."""
    from ..figures.report import report as write

    with waiting(out, "Writing"):
        write(run, out_file, lane=lane, stretch=stretch, heads=head or ())
    out.print(f"The report: {out_file}, {out_file.stat().st_size / 1e6:.1f} MB", soft_wrap=True, markup=False)


@app.command(name="figures")
def list_figures() -> None:
    """The figures, with their settings."""
    from ..figures import FIGURES

    table = Table("Figure", "Made of", "Settings", "What it shows")
    for name, kind in FIGURES.items():
        table.add_row(name, kind.needs, _settings(kind.settings()), " ".join(kind.__doc__.split()))
    out.print(table)


@app.command()
def models() -> None:
    """What may be written for --model."""
    from ..models.loading import KINDS

    table = Table("Model", "What it is")
    for name, what in KINDS.items():
        table.add_row(name, what)
    out.print(table)


@app.command()
def policies() -> None:
    """The eviction policies, with their settings."""
    table = Table("Policy", "Settings", "What it does")
    for name, policy in POLICIES.items():
        table.add_row(name, _settings(policy.settings()), " ".join(policy.__doc__.split()))
    table.add_row("any of them", _settings(Policy.what_ifs()), "What if: attention is bent, to see what sinks are for.")
    out.print(table)


def _settings(settings: list[Field]) -> str:
    return "\n".join(f"{f.name}={f.default}  {f.metadata['help']}{_reach(f.metadata)}" for f in settings) or "none"


def _reach(rule: Mapping[str, Any]) -> str:
    """The values that a setting may take; nothing where its help says so."""
    if rule["choices"]:
        return f" ({'|'.join(rule['choices'])})"
    if rule["pattern"]:
        return ""
    return f" ({rule['low']} or more)" if rule["high"] == MOST else f" ({rule['low']:,} to {rule['high']:,})"


@app.command(name="texts")
def list_texts() -> None:
    """The bundled texts."""
    table = Table("Text", "Title", "Size")
    for name, path in texts.plays().items():
        table.add_row(name, texts.title(name), f"{path.stat().st_size / 1000:.0f} kB")
    out.print(table)


def main() -> None:
    """Run a command; what the person can mend is one line and exit status 2, all else is raised to end the process."""
    # A polite request to end is Ctrl-C's: whoever works keeps what there is, or removes what is of no use.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except UsageError as e:
        # Without a command, what typer has to say is the help text.
        asked = e.ctx is not None and e.ctx.invoked_subcommand is None and not sys.argv[1:]
        code = (
            print(e.ctx.get_help() if asked else "error: " + " ".join(e.format_message().split()), file=sys.stderr) or 2
        )
    except ClickException as e:
        code = print("error: " + " ".join(e.format_message().split()), file=sys.stderr) or 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        # Whoever read what was said has seen enough; Python would complain once more when it closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except BaseException as e:
        if not errors.mendable(e):
            # Here, since typer puts a hook of its own in its place.
            sys.excepthook = failed
            raise
        code = print("error: " + errors.reason(e, ""), file=sys.stderr) or 2
    sys.exit(code)


def failed(_, e: BaseException, __) -> None:
    """Say in one line that a mistake of ours has ended a command, and put it into the log; the status is then 1."""
    name = f"error {secrets.token_hex(3)}"
    try:
        errors.log_to(file := files.cache_folder() / "errors.log")
        errors.log(e, name)
        name = f"{name} in {file}"
    except Exception:
        # Where even that cannot be written, the line must do.
        name = f"{name} (which could not be written)"
    print("error: " + errors.reason(e, name), file=sys.stderr)
