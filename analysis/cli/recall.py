"""The command that asks what a policy forgets: `recall`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..policies import parse
from ..runs.spec import Spec
from . import options
from .console import out, right, say
from .listings import settings_text
from .waiting import Bars

USUAL = ["dense", "window:window=256", "streaming:sinks=4,window=252"]


def recall(
    name: Annotated[str | None, typer.Argument(metavar="TASK", help="name:key=value; without one, listed")] = None,
    model: options.Model = "embedded",
    policy: options.Policies = None,
    lengths: Annotated[str, typer.Option(help="tokens of the texts, with commas")] = "256,512,1024",
    depths: Annotated[str, typer.Option(help="where the fact stands, in %, with commas")] = "5,50,95",
    repeats: Annotated[int, typer.Option(help="texts for each length and depth")] = 1,
    seed: Annotated[int, typer.Option(help="decides all texts", min=0)] = 0,
    question: Annotated[str, typer.Option(help="aware: read on; blind: nothing is evicted from it on")] = "aware",
    decode: Annotated[bool, typer.Option("--decode", help="generate the answers, token by token")] = False,
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
    out_folder: Annotated[Path | None, typer.Option("--out", help="default: recall-TASK in the library")] = None,
    runs: options.Runs = None,
) -> None:
    """Hide something in texts, and ask for it under each policy: recall.parquet, and a table.  Begun again, it goes
    on."""
    from ..experiments import grid
    from ..experiments.recall import TASKS, cells
    from ..experiments.recall.asked import Asked
    from ..runs import library

    if name is None:
        table = Table("Task", "Settings", "What is asked")
        for key, known in TASKS.items():
            table.add_row(
                key, settings_text(known.settings()), " ".join((known.__doc__ or "").split("\n\n")[0].split())
            )
        out.print(table)
        return
    task = TASKS.parse(name)
    policies = [str(parse(p)) for p in policy or USUAL]
    spec = Spec(
        model, task.short, tuple(policies), None, chunk, options.dtype_of(dtype, device), device, options.bos_of(bos),
        weights, kv_heads, special=special,
    )  # fmt: skip
    at = tuple(options.numbers(lengths, int, "--lengths")), tuple(options.numbers(depths, float, "--depths"))
    asked = Asked(task.short, *at, repeats, seed, question, decode)
    wanted = asked.cells(spec)
    place = out_folder or library.home(runs) / f"recall-{task.name}"
    left, status = grid.unfinished(wanted, place), "finished"
    options.say_changed(spec)
    folder = asked.folder(spec, place)
    try:
        with Bars(out) as bar:
            doing = bar.add_task("Cells", total=len(wanted), completed=len(wanted) - len(left))
            for _ in grid.run(wanted, place, jobs=jobs, backend=backend, address=address):
                bar.advance(doing)
    except KeyboardInterrupt:
        status = "interrupted"
    except BaseException:
        folder.finish("failed")
        raise
    if rows := cells.rows_of(wanted, place):
        cells.write_table(rows, place)
        # A narrow terminal has no room for many columns.
        header, lines = cells.summary(rows, most_depths=7 if out.width >= 110 else 0)
        table = Table(*header[:1], *(right(h) for h in header[1:]), title=task.title)
        table.caption = "NLL: nats per token of the answer. Kept: share of the fact in the cache when it was given"
        for line in lines:
            table.add_row(*line)
        out.print(table)
    folder.finish(status)
    again = ": the same command goes on" if status == "interrupted" else ""
    say(f"{status.capitalize()}{again}. Cells and {cells.TABLE} lie in {place}")
    if status == "interrupted":
        raise typer.Exit(130)
