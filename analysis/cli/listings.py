"""Commands that list what there is, with the settings of each."""

from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from rich.table import Table

from .. import texts
from ..models.kinds import KINDS
from ..policies import POLICIES, Policy
from ..settings import MOST
from .console import out


def figures() -> None:
    """The figures, with their settings."""
    from ..figures import FIGURES

    table = Table("Figure", "Made of", "Settings", "What it shows")
    for name, kind in FIGURES.items():
        table.add_row(name, kind.needs, settings_text(kind.settings()), " ".join((kind.__doc__ or "").split()))
    out.print(table)


def models() -> None:
    """What may be written for --model."""
    table = Table("Model", "What it is")
    for name, what in KINDS.items():
        table.add_row(name, what)
    out.print(table)


def policies() -> None:
    """The eviction policies, with their settings."""
    table = Table("Policy", "Settings", "What it does")
    for name, policy in POLICIES.items():
        table.add_row(name, settings_text(policy.settings()), " ".join((policy.__doc__ or "").split()))
    interventions = settings_text(Policy.interventions())
    table.add_row("any of them", interventions, "What if: attention is changed, to see what sinks are for.")
    out.print(table)


def settings_text(settings: list[Field]) -> str:
    """Settings as a table lists them, one a line; their defaults, what they mean, and what they may be."""
    return "\n".join(f"{f.name}={f.default}  {f.metadata['help']}{_reach(f.metadata)}" for f in settings) or "none"


def _reach(rule: Mapping[str, Any]) -> str:
    """The values that a setting may take; nothing where its help says so."""
    if rule["choices"]:
        return f" ({'|'.join(rule['choices'])})"
    if rule["pattern"]:
        return ""
    return f" ({rule['low']} or more)" if rule["high"] == MOST else f" ({rule['low']:,} to {rule['high']:,})"


def bundled() -> None:
    """The bundled texts."""
    table = Table("Text", "Title", "Size")
    for name, path in texts.plays().items():
        table.add_row(name, texts.title(name), f"{path.stat().st_size / 1000:.0f} kB")
    out.print(table)
