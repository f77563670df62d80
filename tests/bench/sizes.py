"""How large a benchmark is: in full, or a toy that shows in seconds whether every part of it still runs."""

import os
from typing import TypeVar

TOY = os.environ.get("SINKSCOPE_BENCH") == "toy"
"""In the environment, so that the processes which a benchmark starts are as small as it is."""

Size = TypeVar("Size")


def size(full: Size, toy: Size) -> Size:
    """The first in a benchmark that is to be measured, the second in one that is only to run."""
    return toy if TOY else full
