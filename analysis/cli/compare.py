"""The command that says which cache to choose: `compare`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .. import files
from ..runs.spec import Spec
from . import options
from .console import out, right, say
from .waiting import Bars

USUAL = "window,streaming,h2o:interval=16,snapkv:interval=16"
TASKS = "perplexity,kl,passkey"
Listed = list[str] | None


def compare(
    policies: Annotated[Listed, typer.Option(help="policies with their settings, with commas, but for sizes")] = None,
    budgets: Annotated[str, typer.Option(help="tokens that a cache holds, at most, with commas")] = "64,128,256,512",
    tasks: Annotated[str, typer.Option(help="perplexity, kl, and tasks of `recall`")] = "perplexity,passkey",
    model: options.Model = "embedded",
    text: Annotated[Listed, typer.Option(help="what is read for perplexity; once more for more texts")] = None,
    tokens: Annotated[int, typer.Option(help="read so many tokens of each text")] = 2048,
    lengths: Annotated[str, typer.Option(help="tokens of the texts of recall, with commas")] = "512,1024",
    depths: Annotated[str, typer.Option(help="where the fact stands, in %, with commas")] = "5,50,95",
    repeats: Annotated[int, typer.Option(help="texts for each length and depth")] = 2,
    seed: Annotated[int, typer.Option(help="decides all texts of recall", min=0)] = 0,
    question: Annotated[str, typer.Option(help="aware: read on; blind: nothing is evicted from it on")] = "aware",
    chunk: Annotated[int, typer.Option(help="tokens that go through the model at once; changes no number")] = 512,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    weights: options.Weights = "model",
    kv_heads: options.KVHeads = None,
    jobs: Annotated[int, typer.Option(help="processes on this machine, each with a GPU of its own if it has any")] = 1,
    backend: Annotated[str, typer.Option(help="local, or a cluster: dask or ray")] = "local",
    address: Annotated[str | None, typer.Option(help="where the cluster is, HOST:PORT")] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="default: compare in the library")] = None,
    runs: options.Runs = None,
) -> None:
    """Which cache to choose: policies at several budgets, by perplexity and by what they recall.  Begun again, it goes
    on."""
    from .. import texts as known_texts
    from ..experiments import grid
    from ..experiments.verdict import Plan, listed, tables, verdict
    from ..runs import library

    read = listed(text or ["hamlet"])
    for name in read:
        known_texts.read(name)
    spec = Spec(
        model, read[0], ("dense",), tokens, chunk, options.dtype_of(dtype, device), device, options.bos_of(bos),
        weights, kv_heads, special=special,
    )  # fmt: skip
    plan = Plan(
        spec,
        policies=tuple(listed(policies or [USUAL])),
        budgets=options.numbers(budgets, int, "--budgets"),
        tasks=tuple(listed([tasks])),
        texts=tuple(read),
        lengths=options.numbers(lengths, int, "--lengths"),
        depths=options.numbers(depths, float, "--depths"),
        repeats=repeats,
        seed=seed,
        asking=question,
    )
    place = out_folder or library.home(runs) / "compare"
    left, status = grid.unfinished(plan.cells, place), "finished"
    options.say_changed(replace(spec, policies=tuple(plan.members)))
    try:
        with Bars(out) as bar:
            doing = bar.add_task("Cells", total=len(plan.cells), completed=len(plan.cells) - len(left))
            for _ in grid.run(plan.cells, place, jobs=jobs, backend=backend, address=address):
                bar.advance(doing)
    except KeyboardInterrupt:
        status = "interrupted"
    found = verdict(plan, place)
    for name, written in tables.written(found).items():
        files.write(place / name, written)
    header, rows = tables.table(found, narrow=out.width < 110)
    table = Table(*header[:1], *(right(h) for h in header[1:]), title=f"Policies at budgets, {found.model}")
    for row in rows:
        table.add_row(*row)
    table.caption = tables.CAPTION
    out.print(table)
    out.print(tables.sentence(found), soft_wrap=True)
    again = ": the same command goes on" if status == "interrupted" else ""
    say(f"{status.capitalize()}{again}. Cells and tables lie in {place}")
    if status == "interrupted":
        raise typer.Exit(130)
