"""What the address of a page may ask for: each parameter is checked by the setting that it belongs to.

An address may come from anybody, so the names in it never reach the file system or the network: what they stand for is
bundled, or in memory already.  What is wrong is a ValueError, and becomes one sentence on the page beside what is set
instead (`wrong`).  No Streamlit in here.
"""

from collections.abc import Collection, Sequence

from analysis import texts
from analysis.policies import Policy, parse
from analysis.settings import quoted


def policy(written: str) -> Policy:
    """A policy that an address or a press on a page names.  Raises ValueError where it is none, or reads a file."""
    found = parse(written)
    if found.file:
        raise ValueError(
            f"{found.name} would read the file {quoted(found.file)}, and pages read no files by name: upload it beside "
            "the lane's settings, or use the command line"
        )
    if found.first not in ("own", "newlines", "bos"):
        text(found.first)
    return found


def lanes(written: Sequence[str], most: int, verb: str) -> list[str]:
    """Policies as they are written, at most so many; `verb`: what lanes do."""
    if len(written) > most:
        raise ValueError(f"at most {most} lanes {verb} at a time, not {len(written)}")
    return [str(policy(p)) for p in written]


def text(name: str) -> str:
    """The name of a bundled text."""
    if name not in texts.plays():
        raise ValueError(f"there is no bundled text {quoted(name)}")
    return name


def model(name: str, known: Collection[str]) -> str:
    """The name of a model that is in use here already, or comes with Sinkscope."""
    if name != "embedded" and name not in known:
        raise ValueError(
            f"the model {quoted(name)} is not in use here, and an address fetches none: write its name under Model "
            "yourself, if you trust it"
        )
    return name


def number(name: str, written: str, low: int, high: int) -> int:
    """A whole number in digits."""
    if not (written.isascii() and written.isdecimal() and len(written) <= 12 and low <= int(written) <= high):
        raise ValueError(f"{name} must be a whole number from {low:,} to {high:,}, not {quoted(written)}")
    return int(written)


def wrong(e: Exception, instead: str = "") -> str:
    """What to say on the page."""
    return f"The address of this page asks for something that cannot be: {e}.{' ' * bool(instead)}{instead}"
