"""A conversation that the model cannot read to its end is refused before its answer, and no shorter one is."""

import pytest

from analysis.chat.conversation import Conversation
from analysis.chat.partner import Partner
from analysis.models.language_model import LanguageModel
from analysis.policies import Dense, Recompute
from analysis.runs.spec import Sampling

from . import tokenizers
from .families import tiny
from .test_frequencies import DYNAMIC

LONGEST = 64
KINDS = {
    "learned": lambda: tiny("gpt2", vocab_size=400, max_position_embeddings=LONGEST),
    "rotary, not movable": lambda: tiny(
        "hunyuan_v1_dense",
        vocab_size=400,
        max_position_embeddings=LONGEST,
        rope_parameters=DYNAMIC | {"factor": 2.0},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_fits_is_given_and_one_token_more_is_refused_before_it(kind):
    tokenizer = tokenizers.byte_level()
    tokenizer.chat_template = None
    partner = Partner(LanguageModel("tiny", KINDS[kind](), tokenizer, []))
    # Whatever the model says, it goes on to its limit.
    partner.ends = set()
    assert partner.adapted.positions.name == kind and partner.adapted.longest == LONGEST
    prompt = "to be or not to be"
    # The last token that is said is not read.
    fits = LONGEST + 1 - len(tokenizer(prompt)["input_ids"])
    talk = Conversation(partner, Dense(), Sampling(max_new=fits))
    talk.ask(prompt)
    while talk.step() is not None:
        pass
    assert talk.turns[0].why == "limit" and len(talk.tokens) == LONGEST + 1
    longer = Conversation(partner, Dense(), Sampling(max_new=fits + 1))
    with pytest.raises(ValueError, match=rf"reads at most {LONGEST} tokens.*may be {LONGEST + 1}: .*recompute$"):
        longer.ask(prompt)
    assert not longer.turns
    Conversation(partner, Recompute(8, 2), Sampling(max_new=fits + 1)).ask(prompt)
