"""Resume tokens: which one opens the session when."""

from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.server.tokens import ResumeTokens


class TestRotation:
    def test_the_old_one_goes_once_the_new_one_arrived(self):
        """Until the client's first message the old token still opens; after it, only the new one."""
        tokens = ResumeTokens()
        first = tokens.issue()
        tokens.confirm()
        second = tokens.issue()
        tokens.confirm()
        assert not tokens.check(first)
        assert tokens.check(second)

    def test_an_unconfirmed_one_is_void_when_the_old_one_comes_again(self):
        """The caller never got the second: it comes with the first, and the second opens nothing."""
        tokens = ResumeTokens()
        first, second = tokens.issue(), tokens.issue()
        assert tokens.check(first)
        third = tokens.issue()
        tokens.confirm()
        assert [tokens.check(token) for token in (first, second, third)] == [False, False, True]

    def test_using_the_new_one_proves_it(self):
        """The socket broke before the client said anything, but the token had arrived."""
        tokens = ResumeTokens()
        first, second = tokens.issue(), tokens.issue()
        assert tokens.check(second)
        assert not tokens.check(first)

    def test_a_goaways_token_opens_beside_the_welcomes(self):
        """Whether the goaway arrived is not known: both open, also after the client has said something."""
        for wanted in (1, 2):
            tokens = ResumeTokens()
            issued = [tokens.issue(), tokens.issue(), tokens.issue(welcome=False)]
            tokens.confirm()
            assert not tokens.check(issued[0])
            assert tokens.check(issued[wanted])

    def test_checking_twice_is_checking_once(self):
        """The token is good until the next one is proven, however often it is looked at."""
        tokens = ResumeTokens()
        token = tokens.issue()
        assert tokens.check(token)
        assert tokens.check(token)


class TestSecrecy:
    def test_nothing_shows_or_keeps_a_token(self):
        """Only digests are kept."""
        tokens = ResumeTokens()
        token = tokens.issue()
        assert token not in repr(tokens) + repr(vars(tokens)) + repr(tokens.saved())

    def test_survives_a_store(self):
        """What is saved opens to the same token in another process."""
        tokens = ResumeTokens()
        token = tokens.issue()
        again = ResumeTokens.restored(tokens.saved())
        assert not again.check("wrong")
        assert again.check(token)
        assert not ResumeTokens.restored(["zz", 3, ""]).check(token)

    @given(st.text(st.characters(), max_size=50))
    def test_guesses_fail(self, guess):
        """Any text may be tried; none opens."""
        tokens = ResumeTokens()
        assert not tokens.check(guess)
        tokens.issue()
        assert not tokens.check(guess)

    def test_guesses_lock_nobody_out(self):
        """Wrong ones are counted; the right one opens all the same."""
        tokens = ResumeTokens()
        token = tokens.issue()
        assert not any(tokens.check("wrong") for _ in range(100))
        assert tokens.guesses == 100
        assert tokens.check(token)
