"""Scripts: the prompts of a conversation that nobody types."""

import os
from pathlib import Path
from typing import Any

from .. import files, resource, texts
from ..settings import quoted

SCRIPTS = resource("assets/scripts")


def scripts() -> dict[str, Path]:
    """The bundled scripts by name."""
    return {path.stem: path for path in sorted(SCRIPTS.glob("*.txt"))}


def read_script(name: str) -> tuple[list[str], str]:
    """The prompts of a bundled script or a file, and its digest.  Raises ValueError with what to do."""
    path = scripts().get(name, Path(name))
    # os.path answers for any string, also for one that can be no path.
    if not os.path.isfile(path):
        raise ValueError(
            f"there is no script {quoted(name)}: give a file with one prompt a line, or one of: {', '.join(scripts())}"
        )
    return script_from_bytes(files.contents(path, texts.MAX_BYTES), path.name)


def script_from_bytes(data: bytes, name: str) -> tuple[list[str], str]:
    """The prompts of a script, and its digest: a line each, or JSONL whose `turns` are lists of prompts."""
    text = texts.from_bytes(data, name if not name.endswith(".npy") else f"{name}.txt")
    # Newlines alone end a line: U+2028 and its like are part of what is said.
    lines = [(i, line.strip()) for i, line in enumerate((text.content or "").split("\n"), 1) if line.strip()]
    if not name.endswith((".jsonl", ".json")) and not lines[0][1].startswith("{"):
        return [line for _, line in lines], text.sha256
    prompts: list[str] = []
    for number, line in lines:
        try:
            turns = files.decoded(line, dict[str, Any], "")["turns"]
        except (ValueError, KeyError) as e:
            raise ValueError(
                f'line {number} of {name} is not JSON with turns: write {{"turns": ["…", "…"]}} in every line'
            ) from e
        if not isinstance(turns, list) or not all(isinstance(t, str) and t.strip() for t in turns):
            raise ValueError(f"line {number} of {name}: turns must be a list of prompts, none of them empty")
        prompts += turns
    if not prompts:
        raise ValueError(f"{name} has no prompts: write at least one line")
    return prompts, text.sha256
