"""What the addresses of the pages that read and talk say, beside their run, model, lanes and view.

No Streamlit in here.
"""

from analysis.chat.scripts import scripts
from analysis.settings import quoted

from .address import HASH, Parameter, Parameters, given_text, real, whole

MOST_TOKENS = 2**31 - 1
"""In a text, or a place in one."""
TEXT = Parameter(given_text)
AT: Parameters = {"at": whole("at", 1, MOST_TOKENS)}
"""The moment of a recording."""
READ: Parameters = {"text": TEXT, **AT}
"""The page that reads: its text, and the moment of a recording."""


def _script(name: str) -> str:
    if name not in scripts() and not HASH.fullmatch(name):
        raise ValueError(f"there is no bundled script {quoted(name)}")
    return name


SAMPLING: Parameters = {
    "max_new": whole("max_new", 1, 4096),
    "temperature": real("temperature", 0.0, 2.0),
    "top_k": whole("top_k", 1, 1000),
    "top_p": real("top_p", 0.05, 1.0),
    "repetition_penalty": real("repetition_penalty", 1.0, 2.0),
    "seed": whole("seed", 0, 2**31),
}
"""How answers are sampled."""
CHAT: Parameters = {"script": Parameter(_script), "kv_chunk": whole("kv_chunk", 1, 65536), **SAMPLING}
