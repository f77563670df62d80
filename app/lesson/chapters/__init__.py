"""What is played with in each chapter of the lesson: one module each, and one line here."""

from . import chunks, cost, drop, emergence, enough, first, heads, nothing, row

PLAYS = {
    "row": row.draw,
    "first": first.draw,
    "nothing": nothing.draw,
    "drop": drop.draw,
    "enough": enough.draw,
    "cost": cost.draw,
    "chunks": chunks.draw,
    "heads": heads.draw,
    "emergence": emergence.draw,
}
