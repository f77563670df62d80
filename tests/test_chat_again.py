"""What an answer that is given again begins from where nothing was answered yet."""

from analysis.chat.conversation import Conversation
from analysis.policies import Dense, Streaming
from analysis.runs.spec import Sampling

from .test_chat import answer
from .test_chat import partner as partner


def test_a_prompt_that_was_not_read_to_its_end_is_answered_when_its_answer_is_asked_for_again(partner):
    whole, talk, gone_on = (Conversation(partner, Dense(), Sampling(max_new=4)) for _ in range(3))
    answer(whole, "word " * 20, 8)
    talk.ask("word " * 20)
    talk.step(8)
    talk.stop()
    gone_on.load_state(talk.state())
    for one in (talk, gone_on):
        assert one.again() is None and one.busy
        while one.step(8) is not None:
            pass
        assert one.tokens.tolist() == whole.tokens.tolist() and one.turns == whole.turns
    # Read to its end, stopped before the first word, and switched there: the switch is told again.
    talk.ask("word")
    while talk.unread:
        talk.step(8)
    talk.stop()
    switch = talk.switch(Streaming(4, 12))
    assert switch.position == talk.turns[-1].begin and talk.again() == switch and talk.switches == [switch]
