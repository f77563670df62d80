"""A chat template taken apart: the text that it writes around what is said."""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .rendering import TemplateFailed, rendered

THOUGHT = re.compile(
    r"(?:[<\[](\w*:?think\w*|thought)[>\]](?:.*?[<\[]/\1[>\]])?"
    r"|<\|START_THINKING\|>(?:.*?<\|END_THINKING\|>)?|<\|channel>thought(?:.*?<channel\|>)?)\s*",
    re.IGNORECASE | re.DOTALL,
)
"""A block in which a model thinks, or the mark that opens one: most models', Command's and Gemma 4's."""

_PLAIN = "what you write is continued as plain text"
_KEPT = "here it stays in the text and in the cache, as it was said"


@dataclass(frozen=True)
class Template:
    """The text of a chat template around what is said: head, prompt, `open`, answer, `close`, prompt, `open` …

    `note`: a sentence for the person where there is no such template; then text is just continued.  `caution`: one
    where the template would write what was said before in another way, and here it stays.
    """

    head: str
    open: str
    close: str
    note: str = ""
    caution: str = ""
    writes_bos: bool = False
    """Whether the head begins with BOS because it is BOS, and not because that token begins each of its turns."""


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The tokenizer's own template, taken apart.  Plain continuation, with a note, where it cannot be.

    Many templates for models that think take the thoughts out of earlier answers, or open one before an answer and not
    in what was said before; some leave it to the model to say whom, or in which channel, it answers.  What was said
    stays here as it was said, so only what the template puts between one answer and the next is asked of it, and that
    is the same.
    """
    if not tokenizer.chat_template:
        return Template("", "", "\n", f"This model has no chat template: {_PLAIN}.")

    p, a, q, b, r = "qPromptOne", "qAnswerOne", "qPromptTwo", "qAnswerTwo", "qPromptThree"
    thought = f"<think>\nqThought\n</think>\n\n{a}"
    # A template is a program that somebody else wrote: it may fail in any way.
    try:
        chosen = _chosen(tokenizer.chat_template)
        special = tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
        asked = (((p,), True), ((p, a, q), True), ((p, a, q, b, r), True), ((p, a), False), ((p, thought, q), True))
        begun, second, longer, answered, thinking = rendered(chosen, special, asked)
        head, found, opened = begun.partition(p)
        before, _, rest = second.partition(a)
        # What stands between a prompt and an earlier answer: what `opened` has not of it is the model's to say.
        earlier = before[len(head + p) :]
        close = rest[: -len(q + opened)]
        whole = head + p + earlier + a + close + q + opened
        third = head + p + earlier + a + close + q + earlier + b + close + r + opened
        # The first of Llama 3's opens an answer whether one is to follow or not.
        last = answered.removesuffix(opened).rstrip()
        # Phi-3's ends the whole text behind the end of its last answer, where no other is to follow.
        once = last.removesuffix(tokenizer.eos_token or "").rstrip()
        last = last if once.endswith(a) else once
        faithful = bool(found) and (second, longer) == (whole, third)
        # Apriel's begins an answer with words that are no thought's mark, and takes them out of earlier ones.
        shorter = bool(earlier.strip()) and opened.startswith(earlier)
        faithful = faithful and (shorter or earlier.startswith(THOUGHT.sub("", opened)))
        faithful = faithful and second.startswith((last, THOUGHT.sub("", last)))
        if not faithful:
            return Template("", "", "\n", f"This model's chat template changes what was said before: {_PLAIN}.")
        kept = earlier.startswith(opened) and not earlier[len(opened) :].strip()
        kept = kept and second.startswith(last) and thought in thinking
        begin = tokenizer.bos_token
        # Of models such as OLMo 2 the token that begins a text also ends answers.
        between = close.lstrip().removeprefix(tokenizer.eos_token or "") + opened
        writes = bool(begin) and head.startswith(begin) and begin not in between
    except Exception as e:
        why = str(e) if isinstance(e, TemplateFailed) else "it is not one"
        return Template("", "", "\n", f"This model's chat template cannot be used ({why}): {_PLAIN}.")
    changed = "changes what earlier answers begin with, such as thoughts, or takes it out"
    caution = "" if kept else f"This model's chat template {changed}: {_KEPT}."
    return Template(head, opened, close, caution=caution, writes_bos=writes)


def _chosen(written: str | dict[str, str]) -> str:
    """The template for conversations, of one or several by name.  Raises TemplateFailed where there is none of them."""
    if isinstance(written, dict) and "default" not in written:
        raise TemplateFailed("it has several, and none of them is the default")
    return written["default"] if isinstance(written, dict) else written
