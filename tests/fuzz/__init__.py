"""Whatever a person may write or hand over, tried at random."""

import zlib
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def fresh() -> int:
    """A seed that the code decides: other tries for each change of it, and the same for whoever tests it again."""
    found = 0
    for place in sorted(path for part in ("analysis", "app") for path in (_ROOT / part).rglob("*.py")):
        found = zlib.crc32(place.read_bytes(), found)
    return found % 10**6
