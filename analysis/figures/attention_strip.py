"""Text coloured by the attention that one token gave it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from ..settings import setting
from ..texts import token_texts
from .base import Figure, Numbers, strongest
from .strip import strip, written_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..maps.atlas import Atlas


@dataclass(frozen=True)
class AttentionStrip(Figure):
    """Tokens of a captured stretch, each on the colour of the attention that one later token gives it in one head."""

    name: ClassVar[str] = "attention-strip"
    title: ClassVar[str] = "Token strip of attention"
    needs: ClassVar[str] = "stretch"
    height: ClassVar[float] = 0.4

    layer: int = setting(-1, "Layer of the head; −1: where the head is that gives most to the first tokens.", low=-1)
    head: int = setting(-1, "The head; −1: the one that gives most to the first tokens.", low=-1)
    query: int = setting(-1, "The token that looks back; −1: the last one.", low=-1)
    tokens: int = setting(120, "How many tokens before it are shown, itself included.", low=1, high=600)

    def resolved(self, source: "Atlas") -> Self:
        """With the head and the token that were left open, and as many tokens as there are."""
        layer, head = strongest(source.stretch.mass, self.layer, self.head)
        query = source.stretch.tokens - 1 if self.query < 0 else self.query
        return replace(self, layer=layer, head=head, query=query, tokens=min(self.tokens, query + 1))

    def numbers(self, source: "Atlas") -> Numbers:
        """Columns `token`, `text` and `attention` [tokens].  Raises ValueError where there is no such head or token."""
        stretch, chosen = source.stretch, self.resolved(source)
        if chosen.query >= stretch.tokens:
            raise ValueError(
                f"the stretch has {stretch.tokens:,} tokens, so none at {chosen.query:,}: choose a smaller one"
            )
        begin, end = max(0, chosen.query + 1 - chosen.tokens), chosen.query + 1
        texts = written_out(token_texts(source.tokenizer, stretch.token_ids[begin:end]))
        row = source.row(chosen.layer, chosen.head, chosen.query)[begin:end]
        return {"token": np.arange(begin, end), "text": texts, "attention": row}

    def draw(self, data: Numbers, *, ax: "Axes | None" = None) -> "Axes":
        """Lines of text, darker where the token gave more."""
        return strip(data, ax=ax)
