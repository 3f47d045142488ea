"""Two ends of a line over sockets that break: every message arrives once, in order, or is told as lost."""

import json
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import wire
from beluga_voice.link import Link


def seq_of(message):
    return int.from_bytes(message[:4], "little") if isinstance(message, bytes) else json.loads(message)["seq"]


class End:
    """One end: its link, the messages on their way to it, and what it took."""

    def __init__(self):
        self.link = Link(16_000)
        self.sent, self.coming, self.taken = [], deque(), []

    def say(self, other, audio, socket_up):
        number = len(self.sent)
        if audio:
            message = self.link.stamp_audio(number.to_bytes(2, "little"))
            self.sent.append(message[4:])
        else:
            message = self.link.stamp({"type": "text", "text": str(number)})
            self.sent.append(str(number))
        if socket_up:
            other.coming.append(message)

    def hear(self):
        message = self.coming.popleft()
        if self.link.judge(seq_of(message), now_ms=0) != "old":
            self.taken.append(message[4:] if isinstance(message, bytes) else json.loads(message)["text"])

    def come_back(self, other):
        """A new socket: nothing is on its way but what is sent again."""
        self.coming.clear()
        self.coming.extend(other.link.replay_from(self.link.received_seq + 1))


steps = st.lists(
    st.tuples(st.sampled_from(["say", "say audio", "hear", "hear all", "ack", "cut", "resume"]), st.booleans()), max_size=80
)


class TestTwoEnds:
    @settings(max_examples=300)
    @given(steps)
    def test_lose_double_and_reorder_nothing(self, steps):
        """However sockets break and come back, what each end takes is what the other said, in order."""
        ends = End(), End()
        up = True
        for step, side in steps:
            here, there = ends if side else ends[::-1]
            if step.startswith("say"):
                here.say(there, step == "say audio", up)
            elif step == "hear" and here.coming and up:
                here.hear()
            elif step == "hear all" and up:
                while here.coming:
                    here.hear()
            elif step == "ack":
                here.link.acked(there.link.received_seq)
            elif step == "cut":
                up = False
                here.coming.clear()
                there.coming.clear()
            elif step == "resume":
                up = True
                here.come_back(there)
                there.come_back(here)
            for end, other in (ends, ends[::-1]):
                assert end.taken == other.sent[: len(end.taken)]
        for end, other in (ends, ends[::-1]):
            end.come_back(other)
            while end.coming:
                end.hear()
            assert end.taken == other.sent
            assert end.link.gaps == 0
            assert not end.link.lost


class TestKeeping:
    def test_is_bounded_by_audio(self):
        """Beyond the window the oldest falls out and is counted; what is replayed begins after it."""
        link = Link(1_000, window_ms=100)
        for _ in range(20):
            link.stamp_audio(bytes(20))
        assert link.kept_audio_ms == 100
        assert (link.first_seq, link.lost["audio"]) == (10, 10)
        assert [seq_of(message) for message in link.replay_from(0)] == list(range(10, 20))

    def test_is_bounded_by_events(self):
        """Events are counted apart from audio."""
        link = Link(1_000, max_events=3)
        for _ in range(5):
            link.stamp({"type": "a"})
            link.stamp_audio(bytes(2))
        assert (link.lost["events"], link.lost["audio"]) == (2, 1)
        assert link.first_seq == 3

    def test_one_message_is_always_kept(self):
        """Audio that is longer than the window by itself is not thrown away before it was sent."""
        link = Link(1_000, window_ms=1)
        link.stamp_audio(bytes(2_000))
        assert link.get(0) is not None

    def test_acks(self):
        """What is acknowledged is let go; what was never sent cannot be."""
        link = Link(16_000)
        for _ in range(4):
            link.stamp({"type": "a"})
        assert not link.acked(4)
        assert link.acked(2)
        assert link.acked(-1)
        assert link.acked(1)
        assert [seq_of(message) for message in link.replay_from(-5)] == [3]
        assert (link.get(2), seq_of(link.get(3)), link.get(4)) == (None, 3, None)

    def test_skips_ahead(self):
        """An end whose other has more than was sent goes on after that; what it kept is lost."""
        link = Link(16_000)
        link.stamp({"type": "a"})
        link.skip_to(10)
        assert (link.first_seq, link.lost["events"], seq_of(link.stamp({"type": "b"}))) == (10, 1, 10)

    def test_amends_what_was_not_sent(self):
        """A message keeps its number when its words change."""
        link = Link(16_000)
        link.stamp({"type": "a"})
        link.amend(0, {"type": "b"})
        link.amend(5, {"type": "b"})
        assert json.loads(link.get(0)) == {"type": "b", "seq": 0}


class TestReceiving:
    def test_goes_on_after_a_gap(self):
        """A gap is told and counted; what follows it is new."""
        link = Link(16_000)
        assert [link.judge(seq, 0) for seq in (0, 3, 4, 2, 4)] == ["new", "gap", "new", "old", "old"]
        assert (link.gaps, link.missing, link.repeats, link.received_seq) == (1, 2, 2, 4)

    def test_acks_are_due(self):
        """An ack is due some time after something came, and not again before more comes."""
        link = Link(16_000, ack_ms=500)
        assert not link.ack_due(10_000)
        link.judge(0, 100)
        link.judge(1, 550)
        assert not link.ack_due(599)
        assert link.ack_due(600)
        assert link.owes_ack
        assert wire.parse_server(link.ack(safe_seq=0)) == {"type": "ack", "seq": 1, "safe_seq": 0}
        assert not link.owes_ack
        link.owe_ack(700)
        assert link.ack_due(1_200)
