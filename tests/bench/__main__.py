"""`make bench`: print every figure beside its mark.  Timings are medians of alternating runs: a slow minute hits all.

`python -m tests.bench engine`, `… ranked`, `… chat`, `… page`, `… maps`, `… emergence` or `… learn` prints one part.
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    wanted = sys.argv[1:] or ["engine", "ranked", "chat", "page", "maps", "emergence", "learn"]
    if "engine" in wanted:
        from . import engine

        engine.main()
    if "ranked" in wanted:
        from . import ranked

        ranked.main()
    if "chat" in wanted:
        from . import chat

        chat.main()
    if "page" in wanted:
        from . import page

        page.main()
    if "maps" in wanted:
        from . import maps

        maps.main()
    if "emergence" in wanted:
        from . import emergence

        emergence.main()
    if "learn" in wanted:
        from . import learn

        learn.main()


main()
