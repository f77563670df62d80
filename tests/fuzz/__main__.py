"""The fuzzers at large: `make fuzz`, or `python -m tests.fuzz [--seed N] [--small]`; prints tries and failures a row.

With a fixed seed the same spoiled files, command lines and moments come again.
"""

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from . import addresses, commands, figures, jobs, kills, pages, parsers, resumes, switches
from .seeds import everything

PARSED, COMMANDS, KILLS, ADDRESSES, DRAWN, THROWN, SWITCHED, RESUMED, SERVED = (
    220,
    2_200,
    28,
    80,
    60,
    300,
    3_000,
    20,
    20,
)
"""Tries of each parser's row, of all commands together, of each command that is killed, of each page and figure.
Exceptions in each kind of job, switches of each that can be switched, runs that are ended and go on, and servers that
are ended."""


def table(title: str, rows: Iterable[parsers.Row]) -> int:
    """Prints a row as soon as it is there; how many failures there were."""
    print(f"\n{title:<34}{'tries':>8}{'ended' if 'kill' in title else 'refused':>10}{'failures':>10}", flush=True)
    total = parsers.Row("all", 0, 0, [])
    for row in rows:
        print(f"  {row.name:<32}{row.tries:>8,}{row.refused:>10,}{len(row.failures):>10}", flush=True)
        for failure in sorted(set(row.failures))[:8]:
            print(f"      {failure[:400]}", flush=True)
        total = parsers.Row("all", total.tries + row.tries, total.refused + row.refused, total.failures + row.failures)
    print(f"  {'all':<32}{total.tries:>8,}{total.refused:>10,}{len(total.failures):>10}", flush=True)
    return len(total.failures)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the same seed, the same tries")
    asked.add_argument("--share", type=float, default=1.0, help="of the tries")
    rows = ("parsers", "commands", "kills", "addresses", "figures", "jobs", "resume", "pages")
    asked.add_argument("--only", choices=rows, help="only these")
    chosen = asked.parse_args()
    print(f"seed {chosen.seed}")
    all_tries = (PARSED, COMMANDS, KILLS, ADDRESSES, DRAWN, THROWN, SWITCHED, RESUMED, SERVED)
    tries = [max(1, round(n * chosen.share)) for n in all_tries]
    failures = 0
    with tempfile.TemporaryDirectory(prefix="sinkscope-fuzz-") as folder:
        os.environ["SINKSCOPE_RUNS"] = str(Path(folder) / "library")
        seeds = everything(Path(folder))
        parsers.prepare(seeds)
        if chosen.only in (None, "parsers"):
            failures += table("parsers", parsers.rows(seeds, chosen.seed, tries[0]))
        if chosen.only in (None, "commands"):
            failures += table("command lines", commands.rows(seeds, chosen.seed, tries[1]))
        if chosen.only in (None, "kills"):
            failures += table("kills", kills.rows(chosen.seed, tries[2]))
        if chosen.only in (None, "addresses"):
            failures += table("pages", addresses.rows(chosen.seed, tries[3]))
        if chosen.only in (None, "figures"):
            failures += table("figures", figures.rows(chosen.seed, tries[4]))
        if chosen.only in (None, "jobs"):
            model = jobs.model_with_words(Path(folder) / "words")
            failures += table("jobs", jobs.rows(model, chosen.seed, tries[5]))
            failures += table("switches while frames are made", switches.rows(model, chosen.seed, tries[6]))
        if chosen.only in (None, "resume"):
            failures += table("killed and resumed", resumes.rows(chosen.seed, tries[7]))
        if chosen.only in (None, "pages"):
            failures += table("servers killed, runs resumed", pages.rows(chosen.seed, tries[8]))
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
