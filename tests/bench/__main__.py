"""`make bench`: print every figure beside its mark.  Timings are medians of alternating runs: a slow minute hits all.

`python -m tests.bench engine` prints one part, and so do ranked, fidelity, caches, chat, page, maps, emergence, learn,
replay, lives, viewers, keeping and quality; growth, which takes an hour, and gpu run only where they are named.  What
stands beside a peer is one table in the end, and `--json FILE` writes all figures with the machine.  With `--toy` a
part runs once at sizes that say nothing, and judges nothing: it shows that the part still runs.
"""

import argparse
import os
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


PARTS = (
    "engine",
    "ranked",
    "fidelity",
    "caches",
    "chat",
    "page",
    "maps",
    "emergence",
    "learn",
    "replay",
    "lives",
    "viewers",
    "keeping",
    "quality",
)
BY_HAND = ("growth", "gpu")
"""Parts that take too long to run unasked, or need a GPU, but for a toy."""


def main() -> None:
    asked = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.split("\n")[0])
    asked.add_argument("part", nargs="*", help=f"of {', '.join(PARTS + BY_HAND)}; all but the last two unless said")
    asked.add_argument("--toy", action="store_true", help="once, at toy sizes")
    asked.add_argument("--json", type=Path, help="where to write all figures, with the machine")
    asked.add_argument("--tokens", type=int, help="that growth reads (default: a million)")
    chosen = asked.parse_args()
    if unknown := set(chosen.part) - {*PARTS, *BY_HAND}:
        asked.error(f"there is no part {', '.join(sorted(unknown))}; choose of: {', '.join(PARTS + BY_HAND)}")
    if chosen.json and not chosen.json.absolute().parent.is_dir():
        asked.error(f"there is no folder {chosen.json.parent}")
    if chosen.toy:
        os.environ["SINKSCOPE_BENCH"] = "toy"
    if chosen.tokens:
        os.environ["SINKSCOPE_BENCH_TOKENS"] = f"{chosen.tokens}"
    from .report import finish, part

    for name in PARTS + BY_HAND:
        if name in (chosen.part or (PARTS + BY_HAND if chosen.toy else PARTS)):
            part(name)
            import_module(f"{__package__}.{name}").main()
    finish(chosen.json)


main()
