"""Texts of others as text: the one place where what somebody wrote is kept from being Markdown.  No Streamlit in here.

Most of what Streamlit shows is Markdown, in which a name can be a picture that a browser fetches, a link, a colour or
an icon.  Components set text as text and need none of this.
"""

import re

_SIGNS = re.compile(
    r"[\\`*\[$~]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside a word it is one of its letters
    r"|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|:(?=[A-Za-z])"  # tags, entities, colours
)
"""What begins something anywhere in a line, where it does."""
_LINE = re.compile(r"^(\d{1,9}(?=[.)]))?([-+.)=#>|])", re.ASCII)
"""What makes a list or a heading of a line that begins so."""
_JOINED = re.compile(
    r"(?<=:)(?=[\w+/-]+:)"  # emoji and icons
    r"|(?<=http:)(?=//)|(?<=https:)(?=//)|(?<=www)(?=\.)|(?<=.)(?=@)"  # links
    r"|(?<=(?<!\S)[-<>~])(?=(?:->|[-=>])(?!\S))",  # arrows and signs of order
    re.IGNORECASE,
)
"""Where a sign that nobody sees goes between two characters: Streamlit looks for these when escapes are gone."""
JOINER = "\u2060"


def plain(text: object) -> str:
    """A text, a name or an error as Markdown that shows its very characters, in one line."""
    line = _JOINED.sub(JOINER, " ".join(str(text).split()))
    return _LINE.sub(lambda m: f"{m[1] or ''}\\{m[2]}", _SIGNS.sub(r"\\\g<0>", line))


def markup(text: object) -> str:
    """The same for labels of plotly, which knows a few tags and puts numbers in place of %{…}."""
    line = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return line.replace("%{", f"%{JOINER}{{")
