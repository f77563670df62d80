"""Which part of a map is drawn, and how finely."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """Queries rows[0] … rows[1] − 1 and keys columns[0] … columns[1] − 1 of a stretch, `scale` tokens a cell."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    scale: int = 1

    @classmethod
    def square(cls, begin: int, end: int, cells: int) -> "Region":
        """Tokens begin … end − 1 against themselves, in at most so many cells on a side."""
        scale = 1
        while -(-(end - begin) // scale) > cells:
            scale *= 2
        return cls((begin, end), (begin, end), scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells down and across; the last ones may hold fewer tokens."""
        (top, bottom), (left, right) = self.rows, self.columns
        return -(-(bottom - top) // self.scale), -(-(right - left) // self.scale)
