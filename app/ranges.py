"""Whole numbers in words.  No Streamlit in here."""

from collections.abc import Iterable


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in order, those that follow one another as one range: 3–5, 8."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][-1] + 1:
            found[-1].append(n)
        else:
            found.append([n])
    return ", ".join(f"{of[0]}–{of[-1]}" if len(of) > 1 else f"{of[0]}" for of in found)
