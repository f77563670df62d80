"""What captions say: what is drawn, with the settings that it is drawn with, and nothing else."""

import pytest

from analysis.figures import parse
from analysis.figures.citations import caption


@pytest.mark.parametrize(
    ("figure", "said", "other"),
    [
        ("perplexity:reference=2,roll=64", "the last 64 tokens, times that of lane 2 as far", "most probable"),
        ("perplexity:mode=rolling,reference=2", "Perplexity of the last 256 tokens, over the tokens read", "lane"),
        ("perplexity:mode=cumulative", "Perplexity from the start, over", "256"),
        ("perplexity:mode=KL,reference=2", "KL divergence from the first lane, mean over the last 256", "erplexity"),
        ("perplexity:mode=top-1", "the same most probable token as the first one, over", "erplexity"),
        ("pareto", "perplexity over dense's against megabytes of the cache", "recalled"),
        ("pareto:measure=kl,cost=tokens", "KL divergence from dense against cached tokens", "perplexity"),
        ("pareto:measure=passkey", "the share recalled of passkey against", "perplexity"),
        ("emergence", "Weight on the first token, of the head that looks at it most, while", "NLL"),
        ("emergence:curve=loss", "NLL of all tokens, while", "head"),
        ("needle-map", "was given, by length and depth; grey where dense itself gives fewer than half", "NLL"),
        ("needle-map:cells=nll", "the NLL of the answer, by length", "how often"),
        ("head-map:cells=logits", "Logit, before the softmax", "gave"),
        ("map-grid:cells=logits", "Logits before the softmax", "Attention"),
    ],
)
def test_a_caption_says_what_is_drawn_with_these_settings_and_no_more(figure, said, other):
    told = caption(parse(figure), {}, [], None)
    assert said in told and other not in told
