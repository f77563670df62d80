"""The command that says which cache to choose: `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import files
from ..runs.spec import Spec
from . import grids, options
from .console import out

USUAL = "window,streaming,h2o:interval=16,snapkv:interval=16"
TASKS = "perplexity,kl,passkey"
Listed = list[str] | None


def compare(
    policies: Annotated[Listed, typer.Option(help="policies with their settings, with commas, but for sizes")] = None,
    budgets: Annotated[str, typer.Option(help="tokens that a cache holds, at most, with commas")] = "64,128,256,512",
    tasks: Annotated[str, typer.Option(help="perplexity, kl, and tasks of `recall`")] = TASKS,
    model: options.Model = "embedded",
    text: Annotated[Listed, typer.Option(help="what is read for perplexity; once more for more texts")] = None,
    tokens: Annotated[int, typer.Option(help="read so many tokens of each text")] = 2048,
    lengths: Annotated[str, typer.Option(help="tokens of the texts of recall, with commas")] = "512,1024",
    depths: Annotated[str, typer.Option(help="where the fact stands, in %, with commas")] = "5,50,95",
    repeats: Annotated[int, typer.Option(help="texts for each length and depth")] = 2,
    seed: Annotated[int, typer.Option(help="decides all texts of recall", min=0)] = 0,
    question: Annotated[str, typer.Option(help="aware: read on; blind: nothing is evicted from it on")] = "aware",
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
    out_folder: Annotated[Path | None, options.path("default: compare in the library", "--out")] = None,
    runs: options.Runs = None,
) -> None:
    """Which cache to choose: policies at several budgets, by perplexity and by what they recall.  Begun again, it goes
    on."""
    from .. import texts as known_texts
    from ..experiments import grid
    from ..experiments.verdict import Plan, listed, tables, verdict
    from ..experiments.verdict.kept import folder_of
    from ..runs import library

    read = text or ["hamlet"]
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
    grid.check_workers(jobs, backend, address)
    left = grids.left(plan.cells, place)
    options.say_changed(plan.spec)
    with grids.opened(folder_of(plan, place)) as folder:
        status = grids.do(plan.cells, left, place, jobs=jobs, backend=backend, address=address)
        found = verdict(plan, place)
        for name, written in tables.written(found).items():
            files.write(place / name, written)
        folder.finish(status)
    header, rows = tables.table(found, narrow=out.width < 110)
    grids.show(f"Policies at budgets, {found.model}", header, rows, tables.caption(found))
    out.print(("" if status == "finished" else "So far: ") + tables.sentence(found), soft_wrap=True)
    grids.end(status, f"Cells and tables lie in {place}")
