"""Ends `stream`, `chat` and `emergence` at random moments, lets them go on until they are done, and compares with who
was never ended: token by token, within what rounding does, and trainings digit by digit.
"""

import random
import tempfile
from pathlib import Path

import numpy as np

from analysis.lab.folder import about_of, read
from analysis.runs.reader import load

from .jobs import model_with_words
from .kills import PROCESSES, SIGNALS, end, run_command
from .parsers import Row
from .seeds import model as tiny_model

LONGEST = 2.5
"""Seconds within which a command is ended, from when its folder is there, or from when it begins to go on."""
TIMES = 3
"""How often a run is ended before it is let go on to its end, at most."""
CLOSE = 1e-4
EVERY = 0.05
"""Seconds between checkpoints, so that some are there."""
PROMPTS = ("to be or not to be", "what is yours", "hello there my cat", "say the question", "my name is that") * 12


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands that take some seconds."""
    lanes = ["dense", "streaming:sinks=4,window=28", "h2o:budget=24,recent=4", "duo:full=50,sinks=2,window=16"]
    chosen = [word for lane in lanes for word in ("--policy", lane)]
    read = ["stream", "--model", str(folder / "model"), "--text", str(folder / "ids.npy"), "--chunk", "32"]
    talk = ["chat", "--model", str(folder / "words"), "--script", str(folder / "script.txt"), "--max-new", "24"]
    trained = [f"steps=300,width=32,length=64,batch=8,attention={kind}" for kind in ("softmax", "relu")]
    sampled = ["--temperature", "1.5", "--seed", "5"]
    return {
        "stream": [*read, "--device", "cpu", *chosen],
        "chat": [*talk, "--device", "cpu", *chosen],
        "emergence": ["emergence", *trained, "--every", "5"],
        "chat, sampled": [*talk, *sampled, "--device", "cpu", *chosen[:4]],
    }


def often(words: list[str]) -> None:
    """A command that writes checkpoints often."""
    from analysis.runs import checkpoint

    checkpoint.EVERY = EVERY
    run_command(words)


def rows(seed: int, tries: int):
    """Ends each command so often, and lets it go on."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model(folder / "model")
        model_with_words(folder / "words")
        np.save(folder / "ids.npy", np.random.default_rng(seed).integers(3, 250, 4_000))
        (folder / "script.txt").write_text("\n".join(PROMPTS))
        for kind, words in commands(folder).items():
            whole = folder / kind
            if code := go([*words, "--out", str(whole)]):
                yield Row(kind, 0, 0, [f"status {code} of the run that is not ended"])
                continue
            failures, ended = [], 0
            for i in range(tries):
                place, told = folder / f"{kind}-{i}", []
                for time_ in range(chance.randint(1, TIMES)):
                    how, after = chance.choice(SIGNALS), chance.uniform(0, LONGEST)
                    begun = any(place.glob("**/run.json"))
                    if time_ and not begun:
                        break
                    asked = ["resume", str(place)] if begun else [*words, "--out", str(place)]
                    # A model has to be loaded before a run goes on.
                    code = end(asked, place, how, after + begun * chance.uniform(0, 1.5), target=often)
                    ended += code != 0
                    told.append(f"{how.name} after {after:.2f} s, status {code}")
                    if code == 0:
                        break
                if found := wrong(place, whole, code):
                    failures.append(f"{'; '.join(told)}: {found}")
            yield Row(kind, tries, ended, failures)


def go(words: list[str]) -> int:
    process = PROCESSES.Process(target=often, args=(words,))
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0


def wrong(place: Path, whole: Path, code: int) -> str:
    """What is wrong with a folder after it was let go on to its end; empty where it is the whole run."""
    if trained := sorted(file.parent.name for file in place.glob("*/run.json")):
        return _wrong_trainings(place, whole, trained)
    if not (place / "run.json").exists():
        return "" if code else "no run.json"
    try:
        if load(place).status != "finished" and (code := go(["resume", str(place)])):
            return f"going on to the end, status {code}"
        found, expected = load(place), load(whole)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    if found.status != "finished":
        return f"its status is {found.status}"
    if found.first_token != expected.first_token:
        return f"it begins with token {found.first_token}"
    for lane, (a, b) in enumerate(zip(found.tracks, expected.tracks, strict=True)):
        if not np.array_equal(a.token_ids.view(), b.token_ids.view()):
            return f"lane {lane} has other tokens, {len(a.nll)} of {len(b.nll)}"
        if not (apart := float(np.abs(a.nll.view() - b.nll.view()).max())) <= CLOSE:
            return f"lane {lane} is off by {apart:.2g} nats"
        if a.policies != b.policies or not np.array_equal(a.cache_tokens.view(), b.cache_tokens.view()):
            return f"lane {lane} has held other tokens"
    return ""


def _wrong_trainings(place: Path, whole: Path, names: list[str]) -> str:
    """The same of trainings."""
    if any(about_of(place / name).status != "finished" for name in names) and (code := go(["resume", str(place)])):
        return f"going on to the end, status {code}"
    for name in names:
        if (place / name / "curves.csv").read_bytes() != (whole / name / "curves.csv").read_bytes():
            return f"{name} has other curves"
        if not np.array_equal(read(place / name)[0].maps, read(whole / name)[0].maps):
            return f"{name} has other maps"
    return ""
