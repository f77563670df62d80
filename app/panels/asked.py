"""What an address says that policies are asked, where a page has several lanes and one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from .. import address
from ..controls import Chosen
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
