"""The picture of a call: what is in it, where, and that nothing covers anything else."""

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice.cli._spans import spans
from beluga_voice.cli._timeline import draw, loudness

SVG = "{http://www.w3.org/2000/svg}"
TEXT_PX = 5.4  # of a character of 11 px text: what browsers draw on average


class Script:
    """Writes the events of a call, one turn after another."""

    def __init__(self):
        self.events, self.turns = [], []
        self.at_ms = 0.0

    def tell(self, name, at_ms, turn=-1, **data):
        self.events.append({"name": name, "at_ms": at_ms, "turn": turn, "data": data})

    def turn(
        self, quiet=500, spoke=1500, end=700, stt=80, agent=120, tts=80, played=2000, text="Hi", reply="Yes.", cut=False
    ):
        index = len(self.turns)
        start = self.at_ms + quiet
        stopped = start + spoke
        ended = stopped + end
        heard = ended + stt
        words = heard + agent
        sent = words + tts
        over = sent + played
        self.tell("speech_started", start + 100, index, speech_start_ms=start)
        self.tell("speech_ended", stopped + 250, index, speech_end_ms=stopped)
        self.tell("turn_end_proposed", stopped + 250, index)
        self.tell("transcript", stopped + 300, index, text=text, is_final=False, confidence=None)
        self.tell("turn_ended", ended, index, source="silence", speech_end_ms=stopped)
        self.tell("transcript", heard, index, text=text, is_final=True, confidence=None)
        self.tell("reply_text", words, index, reply=index + 1, text=reply)
        self.tell("reply_audio", sent, index, reply=index + 1)
        self.tell("reply_started", sent, index, reply=index + 1)
        if cut:
            self.tell("reply_paused", over - 200, index, reply=index + 1, played_ms=played - 200)
        self.tell("reply_ended", over, index, reply=index + 1, heard_text=reply, interrupted=cut)
        times = {"started_ms": start + 100, "speech_start_ms": start, "speech_end_ms": stopped}
        self.turns.append({"index": index, **times, "e2e_latency_ms": end + stt + agent + tts})
        self.at_ms = over
        return self

    def facts(self, **more):
        told = {"events": self.events, "turns": self.turns, "duration_ms": self.at_ms + 1_000, "clock": "wall"}
        return {**told, "input": "call.wav", "providers": {"vad": "energy"}, **more}

    def picture(self, **more):
        facts = self.facts(**more)
        bins = int(facts["duration_ms"] / 25)
        return ET.fromstring(draw(facts, [0.5] * bins, [0.25] * bins))


def texts(picture):
    return ["".join(one.itertext()) for one in picture.iter(f"{SVG}text")]


def bars(picture, style):
    """The bars of a style as (x, width, tip), without the legend's (which have no tip)."""
    found = [
        one for one in picture.iter(f"{SVG}rect") if one.get("class") == style and one.find(f"{SVG}title") is not None
    ]
    return [(float(one.get("x")), float(one.get("width")), one.find(f"{SVG}title").text) for one in found]


class TestATurn:
    @pytest.fixture
    def picture(self):
        return Script().turn(text="What can you do?", reply="I can count.").picture()

    def test_every_part_has_its_lane_and_its_bar(self, picture):
        assert {"turn", "caller", "speech", "stt", "agent", "tts", "playout", "reply"} <= set(texts(picture))
        for style in ("vad", "wait", "early", "stt", "agent", "tts", "playout"):
            assert len(bars(picture, style)) == 1, style

    def test_bars_are_as_long_as_things_took(self, picture):
        """40 pixels are a second."""
        width = {style: bars(picture, style)[0][1] for style in ("vad", "wait", "agent", "playout")}
        assert width == {"vad": 60.0, "wait": 28.0, "agent": 4.8, "playout": 80.0}

    def test_parts_follow_one_another(self, picture):
        order = [bars(picture, style)[0] for style in ("vad", "wait", "stt", "agent", "tts", "playout")]
        for (x, width, _), (following, _, _) in pairwise(order):
            assert following == pytest.approx(x + width, abs=0.15)

    def test_latencies_and_words_are_written_in(self, picture):
        written = texts(picture)
        for told in ("980 ms", "700", "80 ms", "120 ms", "What can you do?", "I can count.", "1", "0:05"):
            assert told in written

    def test_says_what_it_is(self, picture):
        assert any("call.wav" in told for told in texts(picture))
        assert any("first sound after 980 ms" in told and "energy" in told for told in texts(picture))

    def test_legend_names_every_colour(self, picture):
        for told in ("speech heard", "speech to text", "agent writes", "reply played", "paused", "interrupted"):
            assert told in texts(picture)


def test_interruption_is_marked():
    picture = Script().turn(played=3000, cut=True).turn().picture()
    assert [tip for _, _, tip in bars(picture, "pause")] == ["paused, 200 ms"]
    marks = [
        one for one in picture.iter(f"{SVG}path") if one.get("class") == "cut" and one.find(f"{SVG}title") is not None
    ]
    assert len(marks) == 1
    x, width, _ = bars(picture, "playout")[0]
    assert float(re.match(r"M([\d.]+)", marks[0].get("d"))[1]) == pytest.approx(x + width, abs=0.15)


def test_reply_taken_back_ends_where_the_turn_went_on():
    script = Script().turn()
    late = script.at_ms + 900
    script.tell("reply_text", late - 50, 0, reply=2, text="Too early.")
    script.tell("reply_started", late, 0, reply=2)
    script.tell("turn_reopened", late + 100, 0)
    found = spans({**script.facts(), "duration_ms": late + 5_000})
    assert [(reply.ended_ms, reply.cut) for reply in found.replies if reply.number == 2] == [(late + 100, True)]
    assert any("speaks on" in told for told in texts(script.picture(duration_ms=late + 5_000)))


def test_pause_belongs_to_its_own_reply():
    """A reply that is paused and taken back before its first sound leaves nothing to the next one."""
    script = Script().turn()
    script.tell("reply_paused", script.at_ms + 10, 1, reply=9, played_ms=0)
    script.tell("turn_reopened", script.at_ms + 20, 1)
    found = spans(script.turn(cut=True).facts())
    assert [[pause.duration_ms for pause in reply.paused] for reply in found.replies] == [[], [200]]


def test_error_is_shown_where_it_happened():
    script = Script().turn()
    script.tell("error", 3_000.0, 0, stage="agent", message="it <broke> & fell\x00", error=None)
    picture = script.picture()
    assert "notes" in texts(picture)
    assert any(told.startswith("agent: it <broke> & fell") for told in texts(picture))


def test_call_without_a_turn_is_drawn():
    picture = Script().picture()
    assert any("0 turns" in told for told in texts(picture))


def test_a_minute_takes_two_rows():
    script = Script()
    for _ in range(12):
        script.turn(played=2_000)
    picture = script.picture()
    assert texts(picture).count("caller") == 2
    assert float(picture.get("width")) < 1_500
    assert {str(number) for number in range(1, 13)} <= set(texts(picture))


def test_bar_over_the_end_of_a_row_goes_on_in_the_next():
    script = Script().turn(spoke=1000, played=40_000)
    parts = bars(script.picture(), "playout")
    assert len(parts) == 2
    assert sum(width for _, width, _ in parts) == pytest.approx(1_600, abs=0.3)


def test_loudness_is_by_channel_and_time(tmp_path):
    both = np.zeros((16_000, 2))
    both[4_000:8_000, 0] = 0.5
    both[8_000:, 1] = 0.25
    soundfile.write(tmp_path / "both.wav", both, 16_000)
    caller, agent = loudness(str(tmp_path / "both.wav"))
    assert len(caller) == len(agent) == 40
    assert [round(peak, 2) for peak in caller] == [0.0] * 10 + [0.5] * 10 + [0.0] * 20
    assert [round(peak, 2) for peak in agent] == [0.0] * 20 + [0.25] * 20


words = st.one_of(st.integers(0, 60).map(lambda count: " ".join(["words"] * count)), st.text(max_size=120))
turns = st.lists(
    st.fixed_dictionaries(
        {
            "quiet": st.integers(0, 6_000),
            "spoke": st.integers(40, 9_000),
            "end": st.integers(0, 1_500),
            "stt": st.integers(0, 900),
            "agent": st.integers(0, 4_000),
            "tts": st.integers(0, 600),
            "played": st.integers(250, 12_000),
            "text": words,
            "reply": words,
            "cut": st.booleans(),
        }
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(turns)
def test_whatever_happens_no_text_covers_another_and_nothing_falls_out(made):
    script = Script()
    for one in made:
        script.turn(**one)
    picture = script.picture()
    width, height = float(picture.get("width")), float(picture.get("height"))
    shapes = [one for one in picture.iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    drawn = [one for one in shapes if one.get("class") != "early"]  # a mark within the bar that the number is on
    lines = defaultdict(list)
    for one in picture.iter(f"{SVG}text"):
        told, x, y = "".join(one.itertext()), float(one.get("x")), float(one.get("y"))
        taken = len(told) * TEXT_PX if told.isascii() else 1
        start = {"end": x - taken, "middle": x - taken / 2}.get(one.get("text-anchor"), x)
        lines[y].append((start, start + taken, told))
        assert y <= height
        assert start + taken <= width
        for bar in drawn:
            beside = float(bar.get("y")) < y < float(bar.get("y")) + float(bar.get("height")) + 3
            assert not (beside and start < float(bar.get("x")) < start + taken), told
    for line in lines.values():
        line.sort()
        for (_, end, first), (start, _, second) in pairwise(line):
            assert end <= start + 1, (first, second)
    for one in picture.iter(f"{SVG}rect"):
        assert float(one.get("x", 0)) + float(one.get("width")) <= width
