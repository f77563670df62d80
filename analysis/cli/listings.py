"""Commands that list what there is, with the settings of each."""

from collections.abc import Mapping
from dataclasses import Field
from typing import Annotated, Any

import typer
from rich.table import Table

from ..policies import POLICIES, Policy
from ..settings import MOST
from .console import print_table, say

Accept = Annotated[
    bool, typer.Option("--accept", envvar="ACCEPT_GEMMA_TERMS", help="accept the terms without being asked")
]


def figures() -> None:
    """The figures, with their settings."""
    from ..figures import FIGURES

    table = Table("Figure", "Made of", "Settings", "What it shows")
    for name, kind in FIGURES.items():
        table.add_row(name, kind.needs, settings_text(kind.settings()), " ".join((kind.__doc__ or "").split()))
    print_table(table)


def models() -> None:
    """What may be written for --model."""
    from ..models.kinds import KINDS

    table = Table("Model", "What it is")
    for name, what in KINDS.items():
        table.add_row(name, what)
    print_table(table)


def terms(
    accept: Accept = False,
) -> None:
    """The terms of the optional model, which you accept before it is installed."""
    from ..models import gemma

    say(gemma.TERMS.read_text(encoding="utf-8"))
    try:
        accepted = accept or typer.confirm(f"Do you accept these terms of {gemma.CALLED}?")
    except typer.Abort:
        accepted = False
    if not accepted:
        raise ValueError(
            "the terms were not accepted, so nothing is installed: answer y, or where nobody is asked, set "
            "ACCEPT_GEMMA_TERMS=yes"
        )


def policies() -> None:
    """The eviction policies, with their settings."""
    table = Table("Policy", "Settings", "What it does")
    for name, policy in POLICIES.items():
        table.add_row(name, settings_text(policy.settings()), " ".join((policy.__doc__ or "").split()))
    interventions = settings_text(Policy.interventions())
    table.add_row(
        "any of them", interventions, "What if: attention or what is stored is changed, to see what sinks are for."
    )
    print_table(table)


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
    from .. import SETUP, texts

    if not texts.plays():
        say(f"No text is here yet: {SETUP} installs the plays.")
        return
    table = Table("Text", "Title", "Size")
    for name, path in texts.plays().items():
        table.add_row(name, texts.title(name), f"{path.stat().st_size / 1000:.0f} kB")
    print_table(table)
