"""A conversation in a terminal: what is typed or scripted goes to every lane, and every answer is written down.

Knows how answers come to a screen and into a run folder; what a conversation is stands in chat.py.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from ..chat.conversation import Conversation, join
from ..engine.step import Step
from ..runs.checkpoint import Saver
from ..runs.folder import Folder
from ..runs.resume import Made
from ..runs.shares import SharesFile
from ..texts import said_as_text, utf8
from .ending import Brake

TOGETHER = 32
"""Tokens of an answer that are written down at a time."""
CUT = {"limit": " …", "stopped": " (stopped)"}


def typed(out: Console) -> Iterator[str]:
    """What a person types, line by line, until the end of input."""
    while True:
        try:
            line = out.input("\n[bold]>[/] ") if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            return
        except UnicodeDecodeError as e:
            raise ValueError(f"what was typed is not {e.encoding}: write it as UTF-8 and try again") from e
        # Python hides bytes that are no text in a line, and a model would be told something else.
        line = utf8(line.encode("utf-8", "surrogateescape"), "what was typed")
        if not line and not sys.stdin.isatty():
            return
        if line.strip():
            yield line


def converse(
    lanes: list[Conversation],
    prompts: Iterable[str],
    folder: Folder,
    saver: Saver,
    out: Console,
    made: Callable[[], Made],
    *,
    chunk: int,
    pending: list[str] | None = None,
) -> None:
    """Say every prompt to every lane; what some lanes have been told already, those that lag behind are told first.

    `made`: what a checkpoint holds just now; `pending`: prompts of a script, which are said in place of `prompts`, and
    each taken out then.  Raises KeyboardInterrupt where a script, or the process, is to end; an answer to what was
    typed just ends.
    """
    brake, shares, scripted = Brake(), SharesFile(folder.path, len(lanes)), pending is not None

    def answer(lane: Conversation, prompt: str, said: int = 0) -> None:
        with brake:
            if pending is not None:
                del pending[:said]
            _answer(lane, prompt, folder, shares, saver, out, made, chunk, brake, scripted)
        if brake.pressed == signal.SIGTERM or (brake.pressed and scripted):
            raise KeyboardInterrupt

    for lane in [lane for lane in lanes if lane.busy]:
        answer(lane, lane.turns[-1].prompt)
    told = max(lanes, key=lambda lane: len(lane.turns)).turns
    for lane in lanes:
        for turn in told[len(lane.turns) :]:
            answer(lane, turn.prompt)
    for prompt in prompts if pending is None else list(pending):
        if scripted:
            out.print(f"\n> {prompt}", style="bold", soft_wrap=True)
        try:
            for lane in lanes:
                lane.check(prompt)
        except ValueError as e:
            if scripted:
                raise
            out.print(f"{e}", style="yellow", soft_wrap=True)
            continue
        if note := said_as_text(lanes[0].check(prompt)[3], "in what was said"):
            folder.event("warning", text=note)
            out.print(f"note: {note}", style="yellow", soft_wrap=True)
        for i, lane in enumerate(lanes):
            answer(lane, prompt, said=int(i == 0))


def _answer(
    lane: Conversation,
    prompt: str,
    folder: Folder,
    shares: SharesFile,
    saver: Saver,
    out: Console,
    made: Callable[[], Made],
    chunk: int,
    brake: Brake,
    scripted: bool,
) -> None:
    run, steps, shown = folder.run, list[Step](), 0
    if not lane.busy:
        folder.event("prompt", lane=lane.lane.index, position=len(lane.tokens), text=prompt)
        lane.ask(prompt)
    if run.first_token is None:
        run.first_token, run.first_role = int(lane.tokens[0]), int(lane.roles.view()[0])
    out.print(f"{lane.policy.label}: ", style="cyan", end="")
    turn = lane.turns[-1]

    def write() -> None:
        if steps:
            folder.append(join(steps))
            steps.clear()

    def state() -> Made:
        # A checkpoint is never ahead of the record.
        write()
        return made()

    def step() -> Step | None:
        try:
            return lane.step(chunk)
        except Exception:
            # As the line after the command says: what was learned until then is kept.
            write()
            out.print()
            raise

    while not (brake.pressed and scripted) and (read := step()) is not None:
        steps.append(read)
        shares.take_in(lane.lane)
        if len(steps) == TOGETHER:
            write()
        saver.save(state)
        if brake.pressed == signal.SIGTERM:
            break
        if brake.pressed and not scripted:
            lane.stop()
        said = lane.said(turn)
        # A character may still lack its last bytes.
        ready = len(said.rstrip("\ufffd")) if lane.busy else len(said)
        out.print(said[shown:ready], end="", soft_wrap=True)
        shown = max(shown, ready)
    write()
    shares.write()
    folder.pieces(lane.lane.index, turn.asked, lane.pieces()[turn.asked :])
    out.print(CUT.get(turn.why or "stopped", ""))
    if turn.why:
        # Otherwise it goes on where the conversation does.
        folder.event("answer", lane=lane.lane.index, position=turn.begin, stop=turn.stop, why=turn.why)
