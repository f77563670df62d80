"""What a policy forgets: tasks by the name that a person writes.  A new one is a new file and its line below."""

# In the order in which they are listed.
# isort: off
from ...settings import Registry
from .base import Task
from .passkey import PassKey
from .needle import Needle
from .streameval import StreamEval
from .multikey import MultiKey
from .copy import Copy
from .pairs import Pairs
from .instruction import Instruction
from .own import Own
# isort: on

TASKS = Registry.of_classes("task", Task, globals())


def parse(text: str) -> Task:
    """The task written as `name:key=value,key=value`.  Raises ValueError with what exists when it is not known."""
    return TASKS.parse(text)
