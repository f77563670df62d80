"""Commands that do an experiment: `knockout` of heads, and those of papers once more."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import files, metrics, texts
from ..policies import parse
from ..runs.spec import Spec
from ..texts import with_bos
from . import grids, options
from .console import out, print_table, right, say
from .waiting import Bars, loading


def knockout(
    model: options.Model = "embedded",
    text: options.Text = "hamlet",
    tokens: Annotated[int, typer.Option(help="read so many tokens for every head")] = 2 * metrics.BLOCK + 1,
    policy: options.Policy = "dense",
    kind: Annotated[str, typer.Option(help="values (seen, but empty) or weights (others make up for it)")] = "values",
    layer: Annotated[int | None, typer.Option(help="only the heads of this layer")] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    out_file: Annotated[Path | None, options.path("a CSV file with a row for every head", "--out")] = None,
) -> None:
    """Knock out the sink of one head after the other: what is each worth?  Ctrl-C ends it, and keeps what is known."""
    chosen, source = parse(policy), texts.read(text)
    if out_file is not None and out_file.exists():
        raise ValueError(f"{out_file} exists already: choose another file for --out")
    if layer is not None and layer < 0:
        raise ValueError(f"layer must be at least 0, not {layer}")
    asked: dict[str, Any] = {"device": device, "bos": options.bos_of(bos), "special": special}
    spec = Spec(model, text, (str(chosen),), tokens, dtype=options.dtype_of(dtype, device), **asked)
    with loading(out) as tell:
        from ..experiments.ablation import EffectsFile, heads_of, knock_out_each, without_sink
        from ..models.loading import load

        # What is refused is refused before there is a file.
        without_sink(chosen, kind, 0, 0)
        network = load(**spec.loading, progress=tell)
    heads = heads_of(network, layer)
    read = spec.tokenized(source, network.tokenizer)
    options.say_read(read)
    ids = read.ids
    effects, kept, interrupted = [], None if out_file is None else EffectsFile(out_file), False
    try:
        with Bars(out) as bar:
            task = bar.add_task("Heads", total=len(heads))
            for effect in knock_out_each(network, ids, chosen, kind, heads):
                effects.append(effect)
                if kept is not None:
                    kept.add(effect)
                bar.advance(task)
    except KeyboardInterrupt:
        interrupted = True
        out.print(f"Interrupted after {len(effects)} of {len(heads)} heads.")
    effects.sort(key=lambda e: -e.excess)
    table = Table("Head", right("Excess NLL"), right("±"))
    for e in effects[:20]:
        table.add_row(f"{e.layer}.{e.head}", f"{e.excess:+z.4f}", "–" if math.isnan(e.error) else f"{e.error:.4f}")
    how = f"{chosen.label}, {len(ids):,} tokens {with_bos(read.begins)}"
    table.caption = (
        f"nats/token with the sink's {kind} knocked out in one head, ± standard error over blocks of "
        f"{metrics.BLOCK} tokens, {how}"
    )
    print_table(table)
    if kept is not None:
        kept.finish()
        say(f"{f'{len(effects)} of' if interrupted else 'All'} {len(heads)} heads: {out_file}")
    if interrupted:
        raise typer.Exit(130)


def reproduce(
    name: Annotated[str | None, typer.Argument(help="which experiment; without one, they are listed")] = None,
    model: options.Model = "embedded",
    text: options.Text = "hamlet",
    tokens: Annotated[int | None, typer.Option(help="tokens that each cell reads (default: by experiment)")] = None,
    cache: Annotated[int | None, typer.Option(help="cached tokens, where an experiment has one size")] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    jobs: grids.Jobs = 1,
    backend: grids.Backend = "local",
    address: grids.Address = None,
    out_folder: Annotated[Path | None, options.path("folder (default: NAME in the library)", "--out")] = None,
    runs: options.Runs = None,
) -> None:
    """Do a paper's experiment again: a run folder for each cell, and a table.  Begun again, it goes on."""
    from ..experiments import grid
    from ..experiments.papers import EXPERIMENTS
    from ..runs import library
    from ..tables import as_csv, as_markdown

    if name is None:
        table = Table("Experiment", "What it is", "Paper")
        for key, known in EXPERIMENTS.items():
            table.add_row(key, known.title, known.paper)
        print_table(table)
        return
    grid.check_workers(jobs, backend, address)
    experiment, place = EXPERIMENTS.find(name), out_folder or library.home(runs) / name
    texts.read(text)
    how: dict[str, Any] = {
        "dtype": options.dtype_of(dtype, device),
        "device": device,
        "bos": options.bos_of(bos),
        "special": special,
    }
    cells = experiment.cells(Spec(model, text, ("dense",), tokens, **how), cache)
    if grid.says_of_cells(place):
        raise ValueError(f"{place} holds a run of another kind already: choose another folder for --out")
    left = grid.unfinished(cells, place)

    def write() -> tuple[list[str], list[list[str]]]:
        """Write the table of what is done, and return its header and rows."""
        header, rows = experiment.table(cells, place)
        words = [f"# {experiment.title}", experiment.paper, as_markdown(header, rows), *experiment.remarks(cells)]
        files.write(place / "table.csv", as_csv(header, rows))
        files.write(place / "table.md", "\n\n".join(w.strip() for w in words) + "\n")
        return header, rows

    def done(cell: Any) -> None:
        """Say that a cell is whole, and let the table have it."""
        out.print(f"{cell.label}: done")
        write()

    status = grids.do(cells, len(left), place, done, jobs=jobs, backend=backend, address=address)
    header, rows = write() if any(place.glob("*/run.json")) else (["Policy"], [])
    grids.show(f"{experiment.title}. {experiment.paper}", header, rows)
    for note in experiment.remarks(cells):
        out.print(note, soft_wrap=True)
    grids.end(status, f"Runs and tables lie in {place}")
