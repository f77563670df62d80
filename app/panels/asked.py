"""What an address says that policies are asked, where a page has several lanes and one model, and what of it a run has
otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis.models.dtypes import AUTO
from analysis.policies import parse

from .. import address
from ..controls import MODEL, Chosen
from ..jobs.registry import REGISTRY


@dataclass(frozen=True)
class AskedOfLanes:
    """What an address says of settings, by name, of a model and of lanes; what it does not say is as usual.

    `most`: lanes, at most; `do`: what they do, in a sentence.
    """

    parameters: address.Parameters
    usual: Mapping[str, Any]
    lanes: tuple[str, ...]
    most: int
    do: str

    def linked(self) -> tuple[dict[str, Any], list[str]]:
        """What the address asks, and what is wrong with the rest of it."""
        asked = st.query_params
        found, problems = address.values(self.parameters, asked)
        model, unloaded = Chosen().linked(asked, REGISTRY.models())
        now = {**self.usual, **found, "model": model, "lanes": list(self.lanes)}
        try:
            if named := asked.get_all("lane"):
                now["lanes"] = address.lanes(named, self.most, self.do)
        except ValueError as e:
            problems.append(str(e))
        return now, [*problems, *unloaded]

    def link(self, now: Mapping[str, Any]) -> dict[str, str | list[str]]:
        """The same as an address says it: only what is not as usual."""
        said: dict[str, str | list[str]] = {**now["model"].link(), **address.said(self.parameters, now, self.usual)}
        if list(now["lanes"]) != list(self.lanes):
            said["lane"] = list(now["lanes"])
        return said

    def unfollowed(self, has: Mapping[str, Any]) -> str:
        """What to say of what the address asks otherwise than a run has it, as `linked` gives it."""
        return unfollowed(self.parameters, has, has["model"], has["lanes"])


def unfollowed(of: address.Parameters, has: Mapping[str, Any], model: Chosen, lanes: Sequence[str] = ()) -> str:
    """What to say where the address of a run asks for something else than that run has, which is what the page shows.

    `has`: what the run has of these parameters; `model`, `lanes`: the same of its model, and its policies.
    """
    asked = st.query_params
    of, has = {**of, **MODEL}, {**has, **model._asdict()}
    names = [name for name in of if not all(_is(of[name], said, has.get(name)) for said in asked.get_all(name))]
    names += ["lane"] * (bool(lanes) and "lane" in asked and not _are(asked.get_all("lane"), lanes))
    if not names:
        return ""
    *before, last = names
    said = f"{', '.join(before)} and {last}" if before else last
    return f"The run that this address names has its own {said}: what the address says of that is not followed."


def _is(parameter: address.Parameter, written: str, value: Any) -> bool:
    """Whether what is written stands for a value."""
    said = "" if value is None else parameter.write(value)
    # What `auto` stood for was decided where the run was read.
    if written in (said, AUTO):
        return True
    try:
        return parameter.read(written) == parameter.read(said)
    except ValueError:
        return False


def _are(written: Sequence[str], lanes: Sequence[str]) -> bool:
    try:
        return [parse(p) for p in written] == [parse(p) for p in lanes]
    except ValueError:
        return False
