"""How a command ends when it is asked to: after what it is doing just now."""

import signal
from typing import Self


class Brake:
    """While it is held, Ctrl-C and a polite kill only say that they came, so that a forward pass is not left half done;
    a second one ends it all the same."""

    def __init__(self) -> None:
        self.pressed: int | None = None

    def __enter__(self) -> Self:
        self.pressed = None
        self._before = {s: signal.signal(s, self._press) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _press(self, number: int, _) -> None:
        if self.pressed is not None:
            raise KeyboardInterrupt
        self.pressed = number

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
