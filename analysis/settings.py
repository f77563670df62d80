"""Settings that a person may write: a frozen dataclass whose fields say their range and their help text.

Policies and figures are such.  `str(x)` is the way to write one on a command line, and pages make their widgets of the
fields.  Knows nothing of what is set.
"""

import re
from dataclasses import Field, dataclass, field, fields
from typing import ClassVar, Self


def setting(
    default: float | str,
    help: str,
    *,
    low: float = 0,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    what_if: bool = False,
):
    """A dataclass field for one setting: its default, its help text, and the values that it may take.

    `what_if`: it bends attention rather than saying what is kept, and is written only where it bends.
    """
    rule = {"help": help, "low": low, "high": high, "choices": choices, "pattern": pattern, "what_if": what_if}
    return field(default=default, metadata=rule, kw_only=what_if)


@dataclass(frozen=True)
class Settings:
    """Named settings, checked when they are made."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata
            if rule["choices"]:
                if value not in rule["choices"]:
                    raise ValueError(
                        f"{self.name}: {f.name} must be one of {', '.join(rule['choices'])}, not {value!r}"
                    )
            elif rule["pattern"]:
                if not re.fullmatch(rule["pattern"], str(value)):
                    raise ValueError(f"{self.name}: {f.name} cannot be {value!r}. {rule['help']}")
            elif not isinstance(value, (int, float) if f.type is float else int) or isinstance(value, bool):
                kind = "a number" if f.type is float else "a whole number"
                raise ValueError(f"{self.name}: {f.name} must be {kind}, not {value!r}")
            elif value < rule["low"]:
                raise ValueError(f"{self.name}: {f.name} must be at least {rule['low']}, not {value}")
            elif rule["high"] is not None and value > rule["high"]:
                raise ValueError(f"{self.name}: {f.name} must be at most {rule['high']}, not {value}")

    @classmethod
    def settings(cls) -> list[Field]:
        """What says what is kept."""
        return [f for f in fields(cls) if not f.metadata["what_if"]]

    @classmethod
    def parse(cls, settings: str) -> Self:
        """Read `key=value,key=value`; raises ValueError with the settings that exist when a key is unknown."""
        kinds = {f.name: f.type for f in fields(cls)}
        values: dict[str, float | str] = {}
        for part in filter(None, (p.strip() for p in settings.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if key not in kinds or not equals:
                known = ", ".join(f.name for f in sorted(fields(cls), key=lambda f: f.metadata["what_if"]))
                raise ValueError(f"{cls.name} has no setting {part!r}; write key=value, where key is one of: {known}")
            if key in values:
                raise ValueError(f"{cls.name}: {key} is given twice")
            if kinds[key] in (int, float):
                try:
                    values[key] = kinds[key](value)
                except ValueError:
                    kind = "a number" if kinds[key] is float else "a whole number"
                    raise ValueError(f"{cls.name}: {key} must be {kind}, not {value!r}") from None
            else:
                values[key] = value
        return cls(**values)

    def __str__(self) -> str:
        settings = ",".join(f"{f.name}={getattr(self, f.name)}" for f in self._shown)
        return f"{self.name}:{settings}" if settings else self.name

    @property
    def _shown(self) -> list[Field]:
        """What is written."""
        return self.settings()
