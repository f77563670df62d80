"""`make bench`: print every figure beside its mark.  Timings are medians of alternating runs: a slow minute hits all.

`python -m tests.bench engine`, `… ranked`, `… chat`, `… page`, `… maps`, `… emergence` or `… learn` prints one part.
"""

import os
import sys
from importlib import import_module

os.environ.setdefault("HF_HUB_OFFLINE", "1")


PARTS = ("engine", "ranked", "chat", "page", "maps", "emergence", "learn")


def main() -> None:
    wanted = sys.argv[1:] or PARTS
    if unknown := set(wanted) - set(PARTS):
        sys.exit(f"there is no part {', '.join(sorted(unknown))}; choose of: {', '.join(PARTS)}")
    for part in PARTS:
        if part in wanted:
            import_module(f"{__package__}.{part}").main()


main()
