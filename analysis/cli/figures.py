"""Commands that put a run on paper, or on a page that replays it: `figure`, `report` and `site`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import out, say
from .waiting import waiting


def figure(
    name: Annotated[str, typer.Argument(help="name:key=value,key=value; see figures")],
    run: Annotated[
        Path,
        options.path(
            "folder of a run, stretch, grid, trainings, recall or verdict, or its name in the library", needed=True
        ),
    ],
    out_file: Annotated[Path, options.path("a .pdf, .svg, .png, .csv or .npz file", "--out", needed=True)],
    venue: Annotated[str, typer.Option(help="neurips, iclr, icml, acl, ieee or slides: how wide it is")] = "neurips",
    points: Annotated[float | None, typer.Option(help="size of the text (default: 8, on slides 14)")] = None,
    dpi: Annotated[int, typer.Option(help="of PNG files, and of pictures inside the others")] = 300,
) -> None:
    """Make a figure for a paper."""
    from .. import figures
    from ..figures.export import export
    from ..figures.sheet import Layout
    from ..runs import library

    chosen, layout = figures.parse(name), Layout(venue, points, dpi)
    with waiting(out, "Drawing"):
        about = export(chosen, library.named(run), out_file, layout)
    say(f"{chosen.title}: {out_file}")
    for words in filter(None, (about["missing"], f"\n{about['caption']}", f"\n{about['bibtex']}")):
        say(words)


def report(
    run: Annotated[Path, options.path("folder of a run, or its name in the library", needed=True)],
    out_file: Annotated[Path, options.path("an .html file", "--out", needed=True)],
    lane: Annotated[int, typer.Option(help="whose text is shown")] = 0,
    stretch: Annotated[Path | None, options.path("folder of a captured stretch, for maps")] = None,
    head: Annotated[list[str] | None, typer.Option(help="layer.head of a map")] = None,
) -> None:
    """Write one page that replays a run, and opens without network or Python."""
    from ..figures.report import report as write
    from ..runs import library

    with waiting(out, "Writing"):
        write(library.named(run), out_file, lane=lane, stretch=stretch, heads=head or ())
    say(f"The report: {out_file}, {out_file.stat().st_size / 1e6:.1f} MB")


def site(
    out_folder: Annotated[Path, options.path("a folder", "--out")] = Path("site"),
) -> None:
    """Write the recordings of the gallery as a static site, which any web server can serve."""
    from ..figures.site import site as write

    with waiting(out, "Writing"):
        pages = write(out_folder)
    say(f"{len(pages)} recordings and {out_folder / 'index.html'}")
