"""Options: checked by name, type, range and choice, with messages that say what to write."""

import contextlib
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.errors import OptionError
from beluga_voice.options import build, describe, nearest, option


@attrs.frozen
class Options:
    voice: str = option("nova", "which voice speaks")
    speed: float = option(1.0, "its pace", at_least=0.25, at_most=4.0)
    retries: int = option(3, "attempts", at_least=0)
    loud: bool = option(False, "shout")
    mode: str = option("fast", "how", choices=("fast", "good"))
    seed: int | None = option(None, "for repeatable results")
    style: Literal["plain", "warm"] = option("plain")
    tags: dict[str, str] = option(attrs.Factory(dict), "anything")


@attrs.frozen
class Keyed:
    api_key: str = option(doc="the key", secret=True)
    port: int = option(80, secret=True)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers()),
)


class TestBuild:
    def test_takes_whole_numbers_for_floats(self):
        """2 does for 2.0, and becomes it."""
        assert repr(build(Options, {"speed": 2}, "tts 'demo'").speed) == "2.0"

    def test_unknown_option_names_the_nearest_and_all(self):
        """A misspelt option is answered with the right spelling and the list."""
        with pytest.raises(OptionError) as caught:
            build(Options, {"voise": "x"}, "tts 'demo'")
        assert "tts 'demo' has no option 'voise'; did you mean 'voice'?" in str(caught.value)
        assert "speed (float), retries (int), loud (bool)" in str(caught.value)
        assert "seed (int or None)" in str(caught.value)

    def test_a_missing_option_is_asked_for(self):
        """A required option left out is named with its type."""
        with pytest.raises(OptionError, match=r"needs the option 'api_key' \(str\)"):
            build(Keyed, {}, "stt 'demo'")

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"voice": 3}, "'voice' is 3 (int); expected str"),
            ({"speed": "fast"}, "'speed' is 'fast' (str); expected float"),
            ({"speed": True}, "'speed' is True (bool); expected float"),
            ({"speed": 5.0}, "'speed' is 5.0; expected 0.25 to 4.0"),
            ({"speed": float("nan")}, "'speed' is nan; expected 0.25 to 4.0"),
            ({"speed": 10**400}, "expected 0.25 to 4.0"),
            ({"retries": -1}, "'retries' is -1; expected at least 0"),
            ({"retries": 1.0}, "'retries' is 1.0 (float); expected int"),
            ({"retries": True}, "'retries' is True (bool); expected int"),
            ({"loud": 1}, "'loud' is 1 (int); expected bool"),
            ({"mode": "slow"}, "'mode' is 'slow'; expected one of 'fast', 'good'"),
            ({"seed": "x"}, "'seed' is 'x' (str); expected int or None"),
            ({"style": "cold"}, "'style' is 'cold' (str); expected Literal['plain', 'warm']"),
            ({"tags": []}, "'tags' is [] (list); expected dict[str, str]"),
        ],
    )
    def test_a_wrong_value_is_shown_with_what_was_expected(self, given, says):
        """The message has the option, the value and what would do."""
        with pytest.raises(OptionError) as caught:
            build(Options, given, "tts 'demo'")
        assert says in str(caught.value)

    @pytest.mark.parametrize("given", [{"api_key": b"s3cret"}, {"api_key": "k", "port": "s3cret"}])
    def test_a_secret_is_never_shown(self, given):
        """Neither an error nor a repr shows a secret."""
        with pytest.raises(OptionError) as caught:
            build(Keyed, given, "stt 'demo'")
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in repr(build(Keyed, {"api_key": "s3cret"}, "stt 'demo'"))

    def test_what_is_a_tuple_inside_is_a_list_to_people(self):
        """TOML has no tuples."""

        @attrs.frozen
        class Listening:
            keyterms: tuple[str, ...] = option((), "words to listen for")

        assert build(Listening, {"keyterms": ["beluga"]}, "stt 'demo'").keyterms == ["beluga"]
        with pytest.raises(OptionError, match=r"option 'keyterms' is 'beluga' \(str\); expected list\[str\]"):
            build(Listening, {"keyterms": "beluga"}, "stt 'demo'")

    def test_the_class_may_check_more(self):
        """A ValueError of the options class itself becomes an OptionError with the owner's name."""

        @attrs.frozen
        class Pair:
            low: int = 1
            high: int = 2

            def __attrs_post_init__(self) -> None:
                if self.low > self.high:
                    raise ValueError("low is above high")

        with pytest.raises(OptionError, match="vad 'demo': low is above high"):
            build(Pair, {"low": 3}, "vad 'demo'")

    @given(st.dictionaries(st.sampled_from([field.name for field in attrs.fields(Options)]), values))
    def test_any_values_are_built_or_refused(self, given):
        """Whatever is given, the result is what was given, or an OptionError."""
        with contextlib.suppress(OptionError):
            built = build(Options, given, "tts 'demo'")
            assert all(getattr(built, name) == value for name, value in given.items())


class TestDescribe:
    def test_tells_type_default_and_sentence(self):
        """Each option is told in order, with what `build` would take."""
        told = {one.name: one for one in describe(Options)}
        assert list(told) == [field.name for field in attrs.fields(Options)]
        assert (told["speed"].type, told["speed"].default, told["speed"].doc) == ("float", 1.0, "its pace")
        assert told["mode"].choices == ("fast", "good")
        assert told["tags"].default == {}

    def test_a_required_option_has_no_default(self):
        """Required options are marked."""
        key = describe(Keyed)[0]
        assert (key.required, key.default) == (True, None)

    def test_nothing_has_no_options(self):
        """No options class, no options."""
        assert describe(None) == ()


class TestNearest:
    @pytest.mark.parametrize(("word", "found"), [("deepgramm", "deepgram"), ("xyz", None), ("", None)])
    def test_only_what_is_like_it(self, word, found: Any):
        """A near miss is found; anything else is not guessed at."""
        assert nearest(word, ["deepgram", "silero"]) == found
