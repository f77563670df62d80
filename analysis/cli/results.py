"""What `resume` does with results: it computes what is missing of knock-outs, measures, costs, recall and verdicts."""

from pathlib import Path

import typer

from .. import COMMAND
from . import options
from .console import as_word, out, say
from .ending import Brake
from .waiting import Bars, loading


def go_on(path: Path) -> None:
    """Complete the result in a folder.  Ctrl-C, or a polite kill, ends it after the part that is being computed."""
    from ..runs.result import ResultFolder, stopped

    asked = stopped(path)
    spec = asked.spec
    with loading(out) as tell:
        from ..experiments.resume import completed, source_of

        source = source_of(asked)

        from ..models.loading import load

        network = load(**spec.loading, progress=tell)
    asked.check(source.sha256, network.sha256)
    options.say_changed(spec)
    folder, ended = ResultFolder.reopened(path), "finished"
    if not folder.weights_sha256:
        folder.know(weights_sha256=network.sha256)
    try:
        with Bars(out) as bar, Brake() as brake:
            # Bars and lines say whole numbers.
            task = bar.add_task(f"{asked.kind.capitalize()}, in %", total=100)
            for share in completed(lambda what: what(folder), asked, network, source):
                bar.update(task, completed=int(100 * share))
                if brake.pressed:
                    ended = "interrupted"
                    break
    except KeyboardInterrupt:
        ended = "interrupted"
    except Exception:
        folder.finish("failed")
        raise
    folder.finish(ended)
    say(f"{ended.capitalize()}. The result lies in {path}")
    if ended == "interrupted":
        say(f"To go on: {COMMAND} resume {as_word(path)}")
        raise typer.Exit(130)
