"""A chat template rendered in a process of its own, with little time and little memory.

A template is a program that comes with a model's folder.  Transformers keeps it from files and from Python, but not
from a loop without end or a text without end, and no thread can be stopped in the middle of `10 ** 10 ** 10`.  This
file is also the program that the other process runs: it imports nothing of Sinkscope.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

SECONDS = 5
"""Of a processor, for all texts of a template together; one of a model takes a hundredth."""
PATIENCE = 60
"""Seconds of a clock, also on a machine that has much else to do."""
MEMORY = 2**29
"""Bytes beside what the program itself takes."""
LONGEST = 2**20
"""Characters of a template, and of what it writes."""


class TemplateFailed(Exception):
    """A template that cannot be rendered; says why in a few words."""


def rendered(template: str, special: tuple[tuple[str, str], ...], asked: tuple[tuple[tuple[str, ...], bool], ...]):
    """What a template writes, for each of some conversations.

    `special`: the tokenizer's special tokens by name, as a template knows them; `asked`: what was said in turns, and
    whether an answer is to follow.  Raises TemplateFailed where it fails, or needs more than a template may take.
    """
    return _rendered(template, special, asked, time.strftime("%Y-%m-%d"))


@lru_cache(maxsize=64)
def _rendered(template: str, special: tuple, asked: tuple, day: str) -> tuple[str, ...]:
    """The same, kept for a `day`: some templates write the date."""
    if len(template) > LONGEST:
        raise TemplateFailed("it is too long")
    task = json.dumps({"template": template, "special": dict(special), "asked": asked, "seconds": SECONDS})
    try:
        # Nothing of this process: no folder of modules, and one thread for a library that would begin many.
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            input=task.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise TemplateFailed("it does not come to an end") from e
    except OSError as e:
        raise TemplateFailed(f"no process could be started for it, {e.strerror}") from e
    with contextlib.suppress(ValueError, KeyError, TypeError):
        answer = json.loads(done.stdout)
        if "failed" in answer:
            raise TemplateFailed(answer["failed"])
        return tuple(answer["texts"])
    raise TemplateFailed("it takes more time or memory than a template may")


def _environment() -> dict[str, str]:
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _limit(seconds: int) -> None:
    """Bound what is left of this process: so many seconds of a processor, and its memory.

    Where a system knows no such bounds, its time alone is bounded.
    """
    with contextlib.suppress(ImportError):
        import resource

        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds += int(spent.ru_utime + spent.ru_stime)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with contextlib.suppress(ValueError, OSError, FileNotFoundError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            room = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (room, room))


def _texts(template: str, special: dict[str, str], asked: Sequence, seconds: int) -> list[str]:
    """Templates of models that see pictures, too, may know of contents in parts only: they fail with a text, or pass
    over it."""
    _limit(seconds)
    try:
        plain, failed = _written(template, special, asked, lambda text: text), None
    except Exception as e:
        plain, failed = [], e
    if plain and asked[0][0][0] in plain[0]:
        return plain
    with contextlib.suppress(Exception):
        parts = _written(template, special, asked, lambda text: [{"type": "text", "text": text}])
        if asked[0][0][0] in parts[0]:
            return parts
    if failed is not None:
        raise failed
    return plain


def _written(template: str, special: dict[str, str], asked: Sequence, content: Callable[[str], Any]) -> list[str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts = []
    for said, answer in asked:
        turns = [{"role": ("user", "assistant")[i % 2], "content": content(text)} for i, text in enumerate(said)]
        more: dict[str, Any] = {"add_generation_prompt": answer, **special}
        texts.append(render_jinja_template([turns], chat_template=template, **more)[0][0])
        if sum(map(len, texts)) > LONGEST:
            raise MemoryError
    return texts


def main() -> None:
    """The program of the other process: a task on standard input, texts or a reason on standard output."""
    out = sys.stdout
    # What a library prints is no answer.
    sys.stdout = sys.stderr
    try:
        answer = {"texts": _texts(**json.load(sys.stdin))}
    except (MemoryError, RecursionError):
        answer = {"failed": "it takes more time or memory than a template may"}
    except BaseException as e:
        answer = {"failed": _reason(e)}
    json.dump(answer, out)


def _reason(e: BaseException) -> str:
    """What is wrong with a template, in a few words."""
    from jinja2 import TemplateAssertionError, TemplateError, TemplateSyntaxError, UndefinedError

    if type(e) is TemplateError:
        # Templates raise it themselves, and no other (raise_exception).
        return "it refuses a conversation of prompts and answers alone"
    kinds = {
        TemplateAssertionError: "it uses what chat templates do not have",
        TemplateSyntaxError: "it is not well-formed",
        UndefinedError: "it asks for what a conversation does not have",
    }
    return next((why for kind, why in kinds.items() if isinstance(e, kind)), "it fails as it is rendered")


if __name__ == "__main__":
    main()
