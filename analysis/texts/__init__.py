"""What is read, and how it becomes tokens."""

from .bos import begins, begun, bos_of, opening, with_bos
from .decoding import token_texts
from .options import BOS, SPECIAL, checked
from .sources import MAX_BYTES, Text, from_bytes, play, plays, read, title, titled, utf8
from .tokens import Tokenized, encode, said_as_text, tokenize, tokenized
