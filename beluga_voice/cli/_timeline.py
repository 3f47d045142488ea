"""A call as a picture: both waveforms and, between them, what every part of the chain did and when. Plain SVG text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any
from xml.sax.saxutils import escape

import attrs
import numpy as np
import soundfile

from ._report import printable
from ._spans import Reply, Span, Spans, spans

__all__ = ["draw", "loudness"]

PX_PER_S = 40
BIN_MS = 25.0  # one pixel
ROW_MS = 30_000.0
LEFT, RIGHT, TOP, ROW_GAP, LEGEND = 92, 120, 64, 26, 52
NARROWEST = 760
CHAR_PX, STRONG_PX = 6.1, 7.0  # a character of 11 px sans-serif, on the wide side, and of its bold
FARTHEST_PX = 50  # how far a label may be moved from what it is about
LANES = (
    ("axis", 18, ""),
    ("turns", 26, "turn"),
    ("notes", 18, "notes"),
    ("caller", 48, "caller"),
    ("vad", 18, "speech"),
    ("stt", 20, "stt"),
    ("agent", 20, "agent"),
    ("tts", 20, "tts"),
    ("playout", 20, "playout"),
    ("reply", 48, "reply"),
)
STYLE = """
text{font:11px system-ui,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif;fill:#4b535d}
.title{font-size:16px;font-weight:600;fill:#1f2328}.faint{fill:#7d8590}.number{fill:#fff;font-weight:600}
.strong{font-weight:600;fill:#1f2328}.wait-text{font-weight:600;fill:#8a6100}.fault-text{fill:#cf222e}
.on-bar{fill:#0d1117}.ground{fill:#fff}.band{fill:#f6f8fa}.grid{stroke:#d8dee4}.mid{stroke:#d0d7de}
.caller{fill:#2f81f7;stroke:#2f81f7}.vad{fill:#79b8ff}.wait{fill:#e3b341}.early{fill:#8957e5}.stt{fill:#a371f7}
.agent{fill:#db61a2}.tts{fill:#f0883e}.playout{fill:#3fb950}.reply{fill:#2da44e;stroke:#2da44e}
.badge{fill:#57606a}.turn{stroke:#8c959f}.gap{fill:#e3b341;fill-opacity:.16}.cut{stroke:#cf222e;stroke-width:2}
.fault{fill:#cf222e}.wave{fill:none;stroke-width:1}.pause{fill:url(#paused)}.pause-ground{fill:#b4e3bd}
.pause-line{stroke:#2da44e}
@media (prefers-color-scheme:dark){text{fill:#a5aeb8}.title,.strong{fill:#e6edf3}.ground{fill:#0d1117}
.band{fill:#161b22}.grid{stroke:#262c34}.mid{stroke:#30363d}.wait-text{fill:#e3b341}.fault-text{fill:#ff7b72}
.faint{fill:#7d8590}.on-bar{fill:#0d1117}.number{fill:#fff}.badge{fill:#6e7681}.cut{stroke:#ff7b72}.fault{fill:#ff7b72}.pause-ground{fill:#12401e}}
""".replace("\n", "")
LEGEND_ITEMS = (
    ("vad", "speech heard"),
    ("wait", "waiting: is the turn over?"),
    ("early", "transcribed early"),
    ("stt", "speech to text"),
    ("agent", "agent writes"),
    ("tts", "voice: to its first sound"),
    ("playout", "reply played"),
    ("pause", "paused"),
    ("cut", "interrupted"),
    ("gap", "silence the caller hears"),
)


def loudness(path: str) -> tuple[list[float], list[float]]:
    """The peaks (0..1) of caller and agent, one every 25 ms, of a stereo recording of a call."""
    with soundfile.SoundFile(path) as sound:
        bins = sound.blocks(round(sound.samplerate * BIN_MS / 1000), dtype="float32", always_2d=True)
        peaks = [np.abs(samples).max(axis=0) for samples in bins]
    return [float(peak[0]) for peak in peaks], [float(peak[-1]) for peak in peaks]


def draw(facts: Mapping[str, Any], caller: Sequence[float], agent: Sequence[float]) -> str:
    """The picture of a call as SVG.

    Args:
        facts: the report, with `duration_ms` and, for the title, `input` and `providers`.
        caller: peaks (0..1) of the caller's voice, one every 25 ms.
        agent: the agent's.
    """
    duration_ms = max(facts["duration_ms"], len(caller) * BIN_MS, 1_000.0)
    found = spans(facts)
    noted = bool(found.faults or any(turn.reopened_ms for turn in found.turns))
    lanes = {name: height for name, height, _ in LANES if noted or name != "notes"}
    row_px = sum(lanes.values())
    rows = max(1, round(duration_ms / ROW_MS + 0.3))
    row_ms = -(-duration_ms // (rows * 1000)) * 1000.0
    width = max(NARROWEST, LEFT + round(row_ms * PX_PER_S / 1000) + RIGHT)
    height = TOP + rows * (row_px + ROW_GAP) + LEGEND
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(_title(facts))}</title><style>{STYLE}</style>",
        '<defs><pattern id="paused" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="pause-ground" width="6" height="6"/>'
        '<path class="pause-line" d="M0 0V6" stroke-width="3"/></pattern></defs>',
        f'<rect class="ground" width="{width}" height="{height}" rx="8"/>',
        *_head(facts, found, width),
    ]
    loudest = max([*caller, 0.05]), max([*agent, 0.05])
    for at in range(rows):
        row = _Row(at * row_ms, min((at + 1) * row_ms, duration_ms), TOP + at * (row_px + ROW_GAP), lanes)
        first, last = round(row.from_ms / BIN_MS), round(row.to_ms / BIN_MS)
        out += [*row.ground(), *row.gaps(found)]
        out += row.wave("caller", [peak / loudest[0] for peak in caller[first:last]])
        out += row.wave("reply", [peak / loudest[1] for peak in agent[first:last]])
        out += row.bars(found)
        out += row.words(found)
    out += [*_legend(height - LEGEND + 16, width), "</svg>\n"]
    return "\n".join(out)


def _title(facts: Mapping[str, Any]) -> str:
    return f"beluga-voice talk: {printable(facts.get('input') or 'three questions')}"


def _head(facts: Mapping[str, Any], found: Spans, width: float) -> Iterator[str]:
    yield _text(LEFT - 76, 27, _title(facts), "title")
    e2e = [turn["e2e_latency_ms"] for turn in facts["turns"] if turn["e2e_latency_ms"] is not None]
    told = [f"{facts['duration_ms'] / 1000:.1f} s", f"{len(found.turns)} turns"]
    if e2e:
        told.append(f"first sound after {statistics.median(e2e):.0f} ms (median)")
    if facts["clock"] == "audio":
        told.append("audio's clock: engines take no time")
    providers = facts.get("providers") or {}
    if providers:
        told.append(", ".join(f"{kind} {name}" for kind, name in providers.items()))
    yield _text(LEFT - 76, 46, _fit(" · ".join(told), width - 30), "faint")


def _legend(y: float, width: float) -> Iterator[str]:
    x = 16.0
    for style, label in LEGEND_ITEMS:
        taken = 26 + len(label) * CHAR_PX
        if x + taken > width:
            x, y = 16.0, y + 17
        if style == "cut":
            yield f'<path class="cut" d="M{x + 7:.0f} {y - 9:.0f}v11"/>'
        else:
            yield f'<rect class="{style}" x="{x:.0f}" y="{y - 9:.0f}" width="14" height="10" rx="2"/>'
        yield _text(x + 19, y, label)
        x += taken + 8


@attrs.define(eq=False)
class _Row:
    """One line of the picture: the call from `from_ms` to `to_ms`, its lanes (name and height) from `top` down."""

    from_ms: float
    to_ms: float
    top: float
    heights: dict[str, int]
    taken: dict[str, list[tuple[float, float]]] = attrs.field(init=False)
    tops: dict[str, float] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.taken = {name: [] for name in self.heights}
        below = accumulate(self.heights.values(), initial=self.top)
        self.tops = dict(zip(self.heights, below))

    # --- ground ------------------------------------------------------------------------------------------------------

    def ground(self) -> Iterator[str]:
        """The lanes with their names, and the time axis."""
        right = self._x(self.to_ms)
        labels = {name: label for name, _, label in LANES}
        for at, (name, height) in enumerate(self.heights.items()):
            y, label = self.tops[name], labels[name]
            if label and at % 2 == 0:
                yield f'<rect class="band" x="{LEFT}" y="{y:.0f}" width="{right - LEFT:.1f}" height="{height}"/>'
            if label:
                yield _text(LEFT - 10, y + height / 2 + 4, label, "faint", anchor="end")
        bottom = self._bottom
        second = -(-self.from_ms // 1000)
        while second * 1000 <= self.to_ms:
            x = self._x(second * 1000)
            long = second % 5 == 0
            if long:
                yield f'<path class="grid" d="M{x:.1f} {self.top + 14:.0f}V{bottom:.0f}"/>'
                yield _text(x, self.top + 10, f"{int(second // 60)}:{int(second % 60):02d}", "faint", anchor="middle")
            else:
                yield f'<path class="grid" d="M{x:.1f} {self.top + 14:.0f}v4"/>'
            second += 1

    def gaps(self, found: Spans) -> Iterator[str]:
        """From the caller's last sound to the reply's first, down all lanes."""
        top, height = self.tops["caller"], self._bottom - self.tops["caller"]
        for turn in found.turns:
            if turn.speech_end_ms is not None and turn.sent_ms is not None:
                for x, width in self._cut(Span(turn.speech_end_ms, turn.sent_ms)):
                    yield f'<rect class="gap" x="{x:.1f}" y="{top:.0f}" width="{width:.1f}" height="{height}"/>'

    def wave(self, lane: str, peaks: Sequence[float]) -> Iterator[str]:
        """A waveform, one line a pixel."""
        middle, half = self.tops[lane] + self.heights[lane] / 2, self.heights[lane] / 2 - 2
        yield f'<path class="mid" d="M{LEFT} {middle:.0f}H{self._x(self.to_ms):.1f}"/>'
        lines = []
        for at, peak in enumerate(peaks):
            high = peak * half
            if high >= 0.4:
                lines.append(f"M{LEFT + at + 0.5:g} {middle - high:.1f}v{2 * high:.1f}")
        yield f'<path class="wave {lane}" d="{"".join(lines)}"/>'

    # --- bars --------------------------------------------------------------------------------------------------------

    def bars(self, found: Spans) -> Iterator[str]:
        """What each part did."""
        for one in found.speech:
            yield from self._bar("vad", "vad", one, f"speech, {one.duration_ms:.0f} ms")
        for one in found.waits:
            yield from self._bar("stt", "wait", one, f"waiting for the turn's end, {one.duration_ms:.0f} ms")
        for one in found.early:
            yield from self._bar("stt", "early", one, f"transcribed early, {one.duration_ms:.0f} ms", thin=True)
        for one in found.stt:
            yield from self._bar("stt", "stt", one, f"speech to text, {one.duration_ms:.0f} ms: {one.text}")
        for reply in found.replies:
            yield from self._reply(reply)
        for one in found.faults:
            if self.from_ms <= one.start_ms < self.to_ms:
                x, y = self._x(one.start_ms), self.tops["notes"] + 4
                yield f'<path class="fault" d="M{x:.1f} {y:.0f}l6 11h-12z">{_tip(one.text)}</path>'
                self.taken["notes"].append((x - 7, x + 7))

    def _reply(self, reply: Reply) -> Iterator[str]:
        if reply.first_text_ms is not None and reply.last_text_ms is not None:
            writing = Span(reply.asked_ms, reply.last_text_ms)
            yield from self._bar("agent", "agent", writing, f"agent, {writing.duration_ms:.0f} ms: {reply.text}")
            if reply.audio_ms is not None:
                speaking = Span(reply.first_text_ms, reply.audio_ms)
                yield from self._bar("tts", "tts", speaking, f"voice's first sound, {speaking.duration_ms:.0f} ms")
        if reply.started_ms is None or reply.ended_ms is None:
            return
        played = Span(reply.started_ms, reply.ended_ms)
        yield from self._bar("playout", "playout", played, f"played for {played.duration_ms:.0f} ms: {reply.text}")
        for pause in reply.paused:
            yield from self._bar("playout", "pause", pause, f"paused, {pause.duration_ms:.0f} ms")
        if reply.cut and self.from_ms <= reply.ended_ms < self.to_ms:
            x = self._x(reply.ended_ms)
            top, bottom = self.tops["playout"] - 1, self.tops["reply"] + self.heights["reply"]
            yield f'<path class="cut" d="M{x:.1f} {top:.0f}V{bottom:.0f}">{_tip("interrupted")}</path>'

    def _bar(self, lane: str, style: str, span: Span, tip: str, *, thin: bool = False) -> Iterator[str]:
        y, height = self.tops[lane] + 3, self.heights[lane] - 6
        if thin:
            y, height = y + height - 4, 4
        for x, width in self._cut(span):
            shown = max(width, 2.0 if thin else 3.0)
            self.taken[lane].append((x, x + shown))
            place = f'x="{x:.1f}" y="{y:.0f}" width="{shown:.1f}" height="{height}"'
            yield f'<rect class="{style}" {place} rx="2">{_tip(tip)}</rect>'

    # --- words -------------------------------------------------------------------------------------------------------

    def words(self, found: Spans) -> Iterator[str]:
        """Turn numbers, latencies, and what was said, where there is room."""
        yield from self._turns(found)
        yield from self._notes(found)
        for wait in found.waits:
            yield from self._inside("stt", wait, [f"{wait.duration_ms:.0f} ms", f"{wait.duration_ms:.0f}"])
        for one in found.stt:
            yield from self._after("stt", one, f"{one.duration_ms:.0f} ms", one.text)
        for reply in found.replies:
            if reply.first_text_ms is not None:
                writing = Span(reply.asked_ms, reply.last_text_ms or reply.first_text_ms)
                yield from self._after("agent", writing, f"{reply.first_text_ms - reply.asked_ms:.0f} ms", reply.text)
                if reply.audio_ms is not None:
                    speaking = Span(reply.first_text_ms, reply.audio_ms)
                    yield from self._after("tts", speaking, f"{speaking.duration_ms:.0f} ms", "")
            if reply.started_ms is not None and reply.ended_ms is not None and not reply.paused:
                played = Span(reply.started_ms, reply.ended_ms)
                seconds = f"{played.duration_ms / 1000:.1f} s"
                told = ["interrupted after " + seconds] if reply.cut else ["played " + seconds]
                yield from self._inside("playout", played, [*told, seconds])

    def _turns(self, found: Spans) -> Iterator[str]:
        y = self.tops["turns"] + self.heights["turns"] / 2
        starts = [turn.start_ms for turn in found.turns]
        for at, turn in enumerate(found.turns):
            end_ms = min([turn.end_ms, *starts[at + 1 : at + 2]])
            for x, width in self._cut(Span(turn.start_ms, end_ms)):
                yield f'<path class="turn" d="M{x:.1f} {y + 9:.0f}v-3h{max(width - 4, 1):.1f}v3" fill="none"/>'
            if self.from_ms <= turn.start_ms < self.to_ms:
                x = self._x(turn.start_ms) + 8
                number = str(turn.index + 1)
                half = 8 + 3 * (len(number) - 1)
                yield f'<rect class="badge" x="{x - 8:.1f}" y="{y - 11:.0f}" width="{2 * half}" height="15" rx="7.5"/>'
                yield _text(x - 8 + half, y, number, "number", anchor="middle")
                self.taken["turns"].append((x - 10, x - 8 + 2 * half + 6))
        for turn in found.turns:
            if turn.sent_ms is not None and turn.speech_end_ms is not None and self._holds(turn.speech_end_ms):
                middle = (self._x(turn.speech_end_ms) + self._x(turn.sent_ms)) / 2
                yield from self._place("turns", middle, y, f"{turn.sent_ms - turn.speech_end_ms:.0f} ms", "wait-text")

    def _notes(self, found: Spans) -> Iterator[str]:
        """Errors, and where the caller spoke on after the turn was thought over."""
        notes = [(one.start_ms, printable(one.text), "fault-text") for one in found.faults]
        notes += [(at_ms, "speaks on: one turn", "") for turn in found.turns for at_ms in turn.reopened_ms]
        for at_ms, text, style in sorted(notes):
            if self._holds(at_ms):
                x, y = self._x(at_ms), self.tops["notes"] + self.heights["notes"] / 2 + 4
                yield from self._beside("notes", x + 10 if style else x, y, text, style)

    def _inside(self, lane: str, span: Span, variants: Sequence[str]) -> Iterator[str]:
        """The longest of `variants` that fits into the bar."""
        if self._holds(span.start_ms):
            x, width = self._cut(span)[0]
            told = next((one for one in variants if len(one) * CHAR_PX + 4 <= width), None)
            if told is not None:
                y = self.tops[lane] + self.heights[lane] / 2 + 4
                yield _text(x + width / 2, y, told, "on-bar", anchor="middle")

    def _after(self, lane: str, span: Span, latency: str, said: str) -> Iterator[str]:
        """Beside the bar, its latency and then what was said, as far as there is room before the lane's next bar."""
        if not self._holds(span.end_ms):
            return
        y = self.tops[lane] + self.heights[lane] / 2 + 4
        x = max(self._x(span.end_ms), self._x(max(span.start_ms, self.from_ms)) + 3) + 4
        room = self._room(lane, x)
        taken = len(latency) * STRONG_PX
        if taken > room:
            return
        yield _text(x, y, latency, "strong")
        told = _fit(printable(said), room - taken - 6)
        if len(told) > 3 or told == said:
            yield _text(x + taken + 6, y, told)
            taken += 6 + len(told) * CHAR_PX
        self.taken[lane].append((x, x + taken))

    def _beside(self, lane: str, x: float, y: float, text: str, style: str) -> Iterator[str]:
        told = _fit(text, self._room(lane, x))
        if len(told) > 3:
            yield _text(x, y, told, style)
            self.taken[lane].append((x, x + len(told) * CHAR_PX))

    def _place(self, lane: str, middle: float, y: float, text: str, style: str) -> Iterator[str]:
        """Text around `middle`, moved right of what is there already; left out where that is too far."""
        half, wanted = len(text) * STRONG_PX / 2, middle
        for start, end in sorted(self.taken[lane]):
            if start < middle + half and end > middle - half:
                middle = end + half + 2
        if middle - wanted <= FARTHEST_PX and middle + half <= self._x(self.to_ms) + RIGHT - 4:
            self.taken[lane].append((middle - half, middle + half))
            yield _text(middle, y, text, style, anchor="middle")

    # --- places ------------------------------------------------------------------------------------------------------

    @property
    def _bottom(self) -> float:
        return self.top + sum(self.heights.values())

    def _x(self, at_ms: float) -> float:
        return LEFT + (at_ms - self.from_ms) * PX_PER_S / 1000

    def _holds(self, at_ms: float) -> bool:
        return self.from_ms <= at_ms < self.to_ms

    def _cut(self, span: Span) -> list[tuple[float, float]]:
        """The part of a span in this row, as x and width; nothing if there is none."""
        start_ms, end_ms = max(span.start_ms, self.from_ms), min(span.end_ms, self.to_ms)
        if end_ms < start_ms or start_ms >= self.to_ms:
            return []
        if end_ms == start_ms and span.end_ms > span.start_ms:
            return []
        return [(self._x(start_ms), (end_ms - start_ms) * PX_PER_S / 1000)]

    def _room(self, lane: str, x: float) -> float:
        """How much is free from `x` on, before the lane's next bar or the end of the row."""
        starts = [start for start, end in self.taken[lane] if end > x]
        return min([self._x(self.to_ms) + RIGHT - 6, *starts]) - x - 5


def _text(x: float, y: float, text: str, style: str = "", *, anchor: str = "") -> str:
    named = f' class="{style}"' if style else ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}{anchored}>{escape(printable(text))}</text>'


def _tip(text: str) -> str:
    return f"<title>{escape(printable(text))}</title>"


def _fit(text: str, width: float) -> str:
    """As much of `text` as `width` pixels hold."""
    room = int(max(width, 0) // CHAR_PX)
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…" if room > 1 else ""
