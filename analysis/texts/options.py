"""What a person chooses of how a text becomes tokens."""

from collections.abc import Iterable

from ..settings import quoted

BOS = {"auto": "as the tokenizer does by itself", "on": "always", "off": "never"}
"""Whether a text begins with BOS."""
SPECIAL = {"text": "text, like all else", "tokens": "control tokens"}
"""What a special or added token's name is where it stands in a text: `<|endoftext|>`, `<think>`."""


def checked(name: str, value: str | bool, choices: Iterable[str]) -> str:
    """A setting of how text becomes tokens, as it is written now: older runs had BOS on or off, as true or false.

    Raises ValueError where there is no such choice.
    """
    value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {quoted(value)}")
    return value
