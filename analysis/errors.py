"""What an exception means to a person, at the borders that none may pass: a job's thread, the command line, a page.

Inside, code raises ValueError with a sentence that says what to do.  At a border everything is caught, whatever its
type, since nobody knows what a library will raise.
"""

import errno
import logging
import logging.handlers
import re
from pathlib import Path

LOG = logging.getLogger("sinkscope")
LONGEST = 600
"""Characters of a sentence: libraries put whole files into what they say."""
_PLAIN = re.compile(r"\w+(?![\w/\\]|\.\w)")
"""A first word that is none of a path or a file name."""
_NO_MEMORY = re.compile(r"out of memory|not enough memory|alloc_failed|\ballocate\b", re.IGNORECASE)

_ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EFBIG: "make room on that disk",
    errno.EACCES: "check who may read and write it, or name another place",
    errno.EPERM: "check who may read and write it, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "it may have been moved or removed: make it again, or name another one",
    errno.EMFILE: "close other programs or raise the limit of open files",
}


def sentence(e: BaseException | str) -> str:
    """What an exception says, as a sentence."""
    text = " ".join(str(e).split())
    # The name of a file is written as it is.
    if _PLAIN.match(text):
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?", "…")) else ".")


def advice(e: OSError, otherwise: str) -> str:
    """What to do about what a system says; `otherwise`: where that is not known."""
    return otherwise if e.errno is None else _ADVICE.get(e.errno, otherwise)


def out_of_memory(e: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device: torch says the first as a plain RuntimeError."""
    return isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and bool(_NO_MEMORY.search(str(e))))


def mendable(e: BaseException) -> bool:
    """Whether the person can do something about it; otherwise the mistake is ours."""
    return bool(str(e).strip() and isinstance(e, ValueError | OSError)) or out_of_memory(e)


def error_message(e: BaseException, name: str, again: str = "begin again") -> str:
    """One sentence for the person; `name`: under which it stands in the log, and `again`: what to try first, where the
    mistake is ours."""
    return sentence(reason(e, name, again))


def reason(e: BaseException, name: str, again: str = "begin again") -> str:
    """The same in one line, as it follows a colon."""
    if out_of_memory(e):
        return "out of memory: use smaller caches, fewer lanes or bfloat16, or close other programs"
    if not mendable(e):
        return (
            f"something failed inside Sinkscope ({type(e).__name__}): {again}, and if it comes back, report what "
            f"the log says of {name}"
        )
    if isinstance(e, OSError) and e.strerror:
        place = f"{e.filename}: " if e.filename is not None else ""
        return f"{place}{e.strerror[:1].lower()}{e.strerror[1:]}: {advice(e, 'try again')}"
    text = " ".join(str(e).split())
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"


def log(e: BaseException, name: str) -> None:
    """Put an exception into the log under a name, with its trace where the mistake is ours or nobody's."""
    if isinstance(e, ValueError) and mendable(e):
        LOG.info("%s: %s", name, e)
    else:
        LOG.error("%s: %s: %s", name, type(e).__name__, e, exc_info=e)


def log_to(file: Path) -> None:
    """Let the log go into a file, which stays small, and nowhere else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=10**6, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.propagate = False
