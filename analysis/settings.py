"""Settings that a person may write: a frozen dataclass whose fields say their range and their help text; and registries
of what a person chooses by name.

Policies and figures are such.  `str(x)` is the way to write one on a command line, and pages make their widgets of the
fields.  Knows nothing of what is set.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeVar

MOST = 2**24
"""The largest whole number that a setting takes unless it says otherwise: more tokens than any text has."""
LONGEST = 2**16
"""Characters of a setting, or of all that are written together, at most."""


def quoted(value: object) -> str:
    """What a person wrote, to be put into a sentence: between quotes, and never longer than a line."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def setting(
    default: float | str,
    help: str,
    *,
    low: float = 0,
    high: float = MOST,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    file: bool = False,
    intervention: bool = False,
    rare: bool = False,
):
    """A dataclass field for one setting: its default, its help text, and the values that it may take.

    `file`: it may be a file's path.  `intervention`: it changes attention rather than saying what is kept.  `rare`: it
    is written only where it is not the default, as interventions are, and has a name wherever it is given.
    """
    rule = {"help": help, "low": low, "high": high, "choices": choices, "pattern": pattern, "file": file}
    rule |= {"intervention": intervention, "rare": rare or intervention}
    return field(default=default, metadata=rule, kw_only=rare or intervention)


@dataclass(frozen=True)
class Settings:
    """Named settings, checked when they are made."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in (int, float) and not isinstance(value, (int, float)) and isinstance(value, Real):
                # A number of another library, such as numpy's, becomes Python's own.
                value = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, f.name, value)
            if wrong := self._wrong(f, value):
                raise ValueError(f"{self.name}: {f.name} {wrong}")

    @staticmethod
    def _wrong(f: Field, value: object) -> str:
        """What a setting must be and is not; empty where it is."""
        rule = f.metadata
        if rule["choices"]:
            return (
                "" if value in rule["choices"] else f"must be one of {', '.join(rule['choices'])}, not {quoted(value)}"
            )
        if rule["pattern"]:
            fits = isinstance(value, str) and len(value) <= LONGEST and re.fullmatch(rule["pattern"], value, re.ASCII)
            return "" if fits else f"cannot be {quoted(value)}. {rule['help']}"
        if isinstance(value, bool) or not isinstance(value, (int, float) if f.type is float else int):
            return f"must be {'a number' if f.type is float else 'a whole number'}, not {quoted(value)}"
        # No comparison is true of what is not a number.
        if not rule["low"] <= value:
            return f"must be at least {rule['low']}, not {_shown(value)}"
        return "" if value <= rule["high"] else f"must be at most {rule['high']}, not {_shown(value)}"

    @classmethod
    def settings(cls) -> list[Field]:
        """What says what is kept."""
        return [f for f in fields(cls) if not f.metadata["intervention"]]

    @classmethod
    def parse(cls, settings: str) -> Self:
        """Read `key=value,key=value`; raises ValueError with the settings that exist when a key is unknown."""
        if len(settings) > LONGEST:
            raise ValueError(f"{cls.name}: its settings are longer than the {LONGEST:,} characters that are read")
        kinds: dict[str, Any] = {f.name: f.type for f in fields(cls)}
        values: dict[str, float | str] = {}
        for part in filter(None, (p.strip() for p in settings.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if key not in kinds or not equals:
                known = ", ".join(f.name for f in sorted(fields(cls), key=lambda f: f.metadata["intervention"]))
                raise ValueError(
                    f"{cls.name} has no setting {quoted(part)}; write key=value, where key is one of: {known}"
                )
            if key in values:
                raise ValueError(f"{cls.name}: {key} is given twice")
            if kinds[key] in (int, float):
                try:
                    values[key] = kinds[key](value)
                except ValueError:
                    kind = "a number" if kinds[key] is float else "a whole number"
                    raise ValueError(f"{cls.name}: {key} must be {kind}, not {quoted(value)}") from None
            else:
                values[key] = value
        return cls(**values)

    def __str__(self) -> str:
        settings = ",".join(f"{f.name}={getattr(self, f.name)}" for f in self._shown)
        return f"{self.name}:{settings}" if settings else self.name

    @property
    def _shown(self) -> list[Field]:
        """What is written, interventions last."""
        inside = sorted(fields(self), key=lambda f: f.metadata["intervention"])
        return [f for f in inside if not f.metadata["rare"] or getattr(self, f.name) != f.default]


def _shown(number: float) -> str:
    """A number that somebody wrote, short enough for a line."""
    return f"{number}" if abs(number) < 1e15 or isinstance(number, float) else "a number of more than 15 digits"


T = TypeVar("T")
S = TypeVar("S", bound=Settings)


class Registry(dict[str, T]):
    """What a person chooses from by name, in the order in which it is listed."""

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        """`kind`: what one of them is called in a sentence, such as policy."""
        super().__init__(entries)
        self.kind = kind

    @classmethod
    def of_classes(cls, kind: str, base: type[S], module: Mapping[str, object]) -> "Registry[type[S]]":
        """The subclasses of `base` among a module's globals that have a `name` of their own, in the order of its
        lines."""
        classes = [c for c in module.values() if isinstance(c, type) and issubclass(c, base) and "name" in vars(c)]
        return Registry(kind, {c.name: c for c in classes})

    def find(self, name: str) -> T:
        """The entry with that name.  Raises ValueError with the names that exist, and those that are like it."""
        if name not in self:
            near = difflib.get_close_matches(name[:80].lower(), self, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"there is no {self.kind} {quoted(name)}{meant}; choose one of: {', '.join(self)}")
        return self[name]

    def parse(self: "Registry[type[S]]", text: str) -> S:
        """Read `name:key=value,key=value`.  Raises ValueError where the name, a key or a value is wrong."""
        name, _, settings = text.partition(":")
        return self.find(name.strip()).parse(settings)


def told_apart(names: Sequence[str], of: Sequence[Settings], but: Sequence[str] = ()) -> list[str]:
    """The same names; where several have one, with the settings that differ, `but` for some."""
    found = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        settings = dict.fromkeys(f.name for i in same for f in of[i].settings() if f.name not in but)
        values = {s: [getattr(of[i], s, "none") for i in same] for s in settings}
        differing = [s for s, taken in values.items() if len(set(taken)) > 1]
        for k, i in enumerate(same):
            found[i] = ", ".join((name, *(f"{s} {values[s][k]}" for s in differing)))
    return found
