"""Which cache to choose: policies at several budgets, by how well they predict, what they still recall, and what they
take; a table, paired tests, and a verdict in one sentence.
"""

from .entries import Entry, Pair, Verdict, read_verdict, verdict
from .plan import Plan, listed
from .tables import sentence, table, written

__all__ = ["Entry", "Pair", "Plan", "Verdict", "listed", "read_verdict", "sentence", "table", "verdict", "written"]
