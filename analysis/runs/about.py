"""What a run folder says of itself in run.json: what was asked, how far it came, and of which model and text.

Its numbers are read elsewhere (reader.py): whoever lists runs needs none of them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .. import files
from ..settings import quoted
from .facts import ModelFacts
from .spec import Spec, unknown
from .status import status_of
from .switches import Switch


@dataclass
class About:
    """What run.json must say."""

    spec: Spec
    status: str = ""
    heads: tuple[int, int] | None = None
    begins: str | None = None
    as_text: tuple[str, ...] = ()
    started: str | None = None
    text_sha256: str | None = None
    weights_sha256: str | None = None
    process: dict[str, Any] | None = None
    samples: int = 0
    maps: tuple[str, ...] = ()
    switches: tuple[Switch, ...] = ()
    kind: str = ""
    """Empty in folders of older versions."""
    settings: dict[str, Any] | None = None
    """What a result was asked besides its Spec."""
    model: ModelFacts | None = None

    def __post_init__(self) -> None:
        for switch in self.switches:
            if not 0 <= switch.lane < len(self.spec.policies):
                raise ValueError(f"it would switch lane {switch.lane}, which there is not")


def about_of(path: Path) -> dict[str, Any]:
    """What a run folder says of itself, with the status that it really has.  Raises ValueError where it is none."""
    path = Path(path)
    return read(path, contents(path))[1]


def contents(path: Path) -> bytes:
    """The bytes of the run.json of a run folder.  Raises ValueError where it has none."""
    if not os.path.exists(file := path / "run.json"):
        raise ValueError(f"{path} holds no run: it has no readable run.json")
    return files.contents(file)


def read(path: Path, data: bytes) -> tuple[About, dict[str, Any]]:
    """What a run folder says of itself in the bytes of its run.json: what it must say, and all that it says, with the
    status that it really has.  Raises ValueError where it is none."""
    wrong = f"{(file := path / 'run.json')} is not that of a run"
    must, about = files.decoded(data, About, wrong), files.decoded(data, dict[str, Any], wrong)
    if new := unknown(about["spec"]):
        raise ValueError(
            f"{file} asks for {quoted(new[0])}, which nobody here knows: open the run with the version that wrote it"
        )
    return must, {**about, "status": status_of(about, path)} if "status" in about else about


def spec_of(path: Path) -> Spec:
    """The Spec of a run folder.  Raises ValueError where it is none."""
    return msgspec.convert(about_of(path), About).spec
