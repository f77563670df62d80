"""What a conversation keeps in the library: every lane's tokens, how they look, and where answers ended.

What was typed is not written but as tokens and their texts, and into the checkpoint from which it goes on.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.chat.conversation import Conversation, Switch, join
from analysis.chat.partner import Partner
from analysis.engine.step import Step
from analysis.runs.facts import ModelFacts
from analysis.runs.rows import RecordedRow, RowsFile
from analysis.runs.run import Run
from analysis.runs.shares import SharesFile
from analysis.runs.spec import Spec

from .kept import RunKeeper

if TYPE_CHECKING:
    from analysis.maps.recent import HeadRow
    from analysis.models.language_model import LanguageModel
    from analysis.runs.folder import Folder

TOGETHER = 32
"""Tokens of an answer that are written at a time."""


class Transcript(RunKeeper):
    """The run folder of a conversation."""

    def __init__(self, name: str, spec: Spec) -> None:
        super().__init__(name)
        self.run = Run(spec)
        self._unwritten: list[list[Step]] = [[] for _ in spec.policies]
        """Newest steps of each lane."""
        self._shares: SharesFile | None = None
        self._rows: RowsFile | None = None

    def open_for(self, partner: Partner, *, text_sha256: str) -> None:
        """Begin the folder; `text_sha256`: of the script, where there is one."""
        self.run.model, self.run.begins = ModelFacts.of(partner.model), partner.begins
        self.begin_run(self.run, partner.model, text_sha256=text_sha256)
        self.write(self._open_details)

    def go_on_with(self, run: Run, folder: "Folder", model: "LanguageModel") -> None:
        """Take over a conversation that goes on, and its folder."""
        self.run = run
        self.go_on(folder, model)
        self.write(self._open_details)

    def _open_details(self, folder: "Folder") -> None:
        lanes = len(self.run.tracks)
        self._shares, self._rows = SharesFile(folder.path, lanes), RowsFile(folder.path, lanes)

    def take_in(self, lane: Conversation, step: Step) -> None:
        """Take in what a lane has read or said."""
        self.write(lambda _: self._take_in(lane, step))

    def _take_in(self, lane: Conversation, step: Step) -> None:
        index = lane.lane.index
        if self.run.first_token is None:
            self.run.first_token, self.run.first_role = int(lane.tokens[0]), int(lane.roles.view()[0])
        if step.start == lane.turns[-1].begin:
            # Where the answer is given again, what was kept of it is cut off here.
            self._write(index)
        if self._shares is not None:
            self._shares.take_in(lane.lane)
        self._unwritten[index].append(step)
        if len(self._unwritten[index]) >= TOGETHER:
            self._write(index)
        if not lane.busy:
            self._turn(lane)

    def turn(self, lane: Conversation) -> None:
        """Write the newest turn of a lane, which has ended or goes no further here."""
        self.write(lambda _: self._turn(lane))

    def _turn(self, lane: Conversation) -> None:
        index, turn = lane.lane.index, lane.turns[-1]
        self._write(index)
        if self._shares is not None:
            self._shares.write()
        self.pieces(index, turn.asked, lane.pieces()[turn.asked :])
        if turn.why:
            self.note("answer", lane=index, position=turn.begin, stop=turn.stop, why=turn.why)

    def row(self, lane: int, row: "HeadRow") -> None:
        """Keep what a token that somebody clicked looked back at."""
        kept = RecordedRow(lane, row.layer, row.head, row.token, row.positions.astype(np.uint32), row.weights)
        self.write(lambda _: self._rows and self._rows.add(kept))

    def again(self, lane: int, begin: int) -> None:
        """Note that an answer is given again, which begins at a text position."""
        self.write(lambda _: self._rows and self._rows.forget(lane, begin))
        self.note("again", lane=lane, position=begin)

    def switch(self, lane: int, switch: Switch) -> None:
        """Note that a lane goes on under another policy."""
        # What it read before stands in the record by itself: joined steps are of one policy.
        self.write(lambda _: self._write(lane))
        self.note("switch", lane=lane, position=switch.position, policy=str(switch.policy), how=switch.how)

    def flush(self) -> None:
        """Write all that was taken in."""
        for index in range(len(self._unwritten)):
            self.write(lambda _, index=index: self._write(index))

    def note(self, what: str, **more: Any) -> None:
        """Note an event, such as a switch."""
        self.event(self.run.event(what, **more))

    def _write(self, index: int) -> None:
        if steps := self._unwritten[index]:
            self._unwritten[index] = []
            joined = join(steps)
            self.step(joined, self.run.append(joined))
