"""A conversation in a terminal: what is typed or scripted goes to every lane, and every answer is written down.

Knows how answers come to a screen and into a run folder; what a conversation is stands in chat.py.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from ..chat.conversation import Conversation, Turn, join
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
    pending: list[str] | None,
) -> None:
    """Say every prompt to every lane; what some lanes have been told already, those that lag behind are told first.

    `made`: what a checkpoint holds just now; `pending`: prompts of a script, which are said in place of `prompts`, and
    each taken out then.  Raises KeyboardInterrupt where a script, or the process, is to end; an answer to what was
    typed just ends.
    """
    terminal = _Terminal(lanes, folder, saver, out, made, chunk, pending)
    for lane in [lane for lane in lanes if lane.busy]:
        terminal.answer(lane, lane.turns[-1].prompt)
    told = max(lanes, key=lambda lane: len(lane.turns)).turns
    for lane in lanes:
        for turn in told[len(lane.turns) :]:
            terminal.answer(lane, turn.prompt)
    for prompt in prompts if pending is None else list(pending):
        terminal.tell(prompt)


class _Terminal:
    """What lanes are told here and answer, on the screen and in a run folder."""

    def __init__(
        self,
        lanes: list[Conversation],
        folder: Folder,
        saver: Saver,
        out: Console,
        made: Callable[[], Made],
        chunk: int,
        pending: list[str] | None,
    ) -> None:
        self.lanes, self.folder, self.saver, self.out = lanes, folder, saver, out
        self.made, self.chunk, self.pending = made, chunk, pending
        self.scripted = pending is not None
        self.brake, self.shares = Brake(), SharesFile(folder.path, len(lanes))

    def tell(self, prompt: str) -> None:
        """Say a prompt to every lane, where all can be told it."""
        if self.scripted:
            self.out.print(f"\n> {prompt}", style="bold", soft_wrap=True)
        try:
            for lane in self.lanes:
                lane.check(prompt)
        except ValueError as e:
            if self.scripted:
                raise
            self.out.print(f"{e}", style="yellow", soft_wrap=True)
            return
        if note := said_as_text(self.lanes[0].check(prompt)[3], "in what was said"):
            self.folder.event("warning", text=note)
            self.out.print(f"note: {note}", style="yellow", soft_wrap=True)
        for i, lane in enumerate(self.lanes):
            self.answer(lane, prompt, said=int(i == 0))

    def answer(self, lane: Conversation, prompt: str, said: int = 0) -> None:
        """Let a lane answer; so many prompts of a script are said by that."""
        with self.brake:
            if self.pending is not None:
                del self.pending[:said]
            self._answer(lane, prompt)
        if self.brake.pressed == signal.SIGTERM or (self.brake.pressed and self.scripted):
            raise KeyboardInterrupt

    def _answer(self, lane: Conversation, prompt: str) -> None:
        turn, steps, shown = self._begin(lane, prompt), list[Step](), 0

        def write() -> None:
            if steps:
                self.folder.append(join(steps))
                steps.clear()

        def state() -> Made:
            # A checkpoint is never ahead of the record.
            write()
            return self.made()

        def step() -> Step | None:
            try:
                return lane.step(self.chunk)
            except Exception:
                # As the line after the command says: what was learned until then is kept.
                write()
                self.out.print()
                raise

        while not (self.brake.pressed and self.scripted) and (read := step()) is not None:
            steps.append(read)
            self.shares.take_in(lane.lane)
            if len(steps) == TOGETHER:
                write()
            self.saver.save(state)
            if self.brake.pressed == signal.SIGTERM:
                break
            if self.brake.pressed and not self.scripted:
                lane.stop()
            said = lane.said(turn)
            # A character may still lack its last bytes.
            ready = len(said.rstrip("\ufffd")) if lane.busy else len(said)
            self.out.print(said[shown:ready], end="", soft_wrap=True)
            shown = max(shown, ready)
        write()
        self._end(lane, turn)

    def _begin(self, lane: Conversation, prompt: str) -> Turn:
        """Ask a lane, unless it is in the middle of its answer."""
        run = self.folder.run
        if not lane.busy:
            self.folder.event("prompt", lane=lane.index, position=len(lane.tokens), text=prompt)
            lane.ask(prompt)
        if run.first_token is None:
            run.first_token, run.first_role = int(lane.tokens[0]), int(lane.roles.view()[0])
        self.out.print(f"{lane.policy.label}: ", style="cyan", end="")
        return lane.turns[-1]

    def _end(self, lane: Conversation, turn: Turn) -> None:
        """Write down what goes beside the tokens of an answer, and how it ended."""
        self.shares.write()
        self.folder.pieces(lane.index, turn.asked, lane.pieces()[turn.asked :])
        self.out.print(CUT.get(turn.why or "stopped", ""))
        if turn.why:
            # Otherwise it goes on where the conversation does.
            self.folder.event("answer", lane=lane.index, position=turn.begin, stop=turn.stop, why=turn.why)
