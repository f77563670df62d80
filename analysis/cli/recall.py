"""The command that asks what a policy forgets: `recall`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..policies import parse
from ..runs.spec import Spec
from . import grids, options
from .console import out, print_table
from .listings import settings_text


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
    chunk: options.Chunk = 512,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    weights: options.Weights = "model",
    kv_heads: options.KVHeads = None,
    jobs: grids.Jobs = 1,
    backend: grids.Backend = "local",
    address: grids.Address = None,
    out_folder: Annotated[Path | None, options.path("default: recall-TASK in the library", "--out")] = None,
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
        print_table(table)
        return
    task = TASKS.parse(name)
    policies = [str(parse(p)) for p in policy or options.USUAL]
    spec = Spec(
        model, task.short, tuple(policies), None, chunk, options.dtype_of(dtype, device), device, options.bos_of(bos),
        weights, kv_heads, special=special,
    )  # fmt: skip
    at = options.numbers(lengths, int, "--lengths"), options.numbers(depths, float, "--depths")
    asked = Asked(task.short, *at, repeats, seed, question, decode)
    wanted = asked.cells(spec)
    place = out_folder or library.home(runs) / f"recall-{task.name}"
    grid.check_workers(jobs, backend, address)
    left = grids.left(wanted, place)
    options.say_changed(spec)
    with grids.opened(asked.folder(spec, place)) as folder:
        status = grids.do(wanted, left, place, jobs=jobs, backend=backend, address=address)
        if rows := cells.rows_of(wanted, place):
            cells.write_table(rows, place)
            # A narrow terminal has no room for many columns.
            header, lines = cells.summary(rows, most_depths=7 if out.width >= 110 else 0)
            caption = "NLL: nats per token of the answer. Kept: share of the fact in the cache when it was given"
            grids.show(task.title, header, lines, caption)
        folder.finish(status)
    grids.end(status, f"Cells and {cells.TABLE} lie in {place}")
