"""One line a figure: what was measured, what it should be, and whether it is."""

from .sizes import TOY


def line(name: str, value: float, mark: str, *, unit: str = "", good: bool | None = None, digits: int = 3) -> None:
    verdict = "" if good is None or TOY else ("  ok" if good else "  MISSED")
    print(f"  {name:<66} {value:>10.{digits}f} {unit:<10} {mark}{verdict}", flush=True)


def said(name: str, words: str) -> None:
    """A line that has no mark."""
    print(f"  {name:<66} {words}", flush=True)


def head(text: str) -> None:
    print(f"\n{text}", flush=True)
