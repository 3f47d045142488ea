"""A call as it is shown while it goes: on a terminal a picture that changes, else plain lines; at the end a table."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..clock import wall_ms
from ..events import SessionEvent, TurnRecord
from ._report import fault, printable

__all__ = ["Display", "Lines", "Screen", "latencies", "new_display", "provider_news", "turns_table"]

REFRESH_MS = 100.0
PLAIN_WIDTH = 80
CALLER, AGENT, FAINT, BAD = "cyan", "green", "bright_black", "red"
STATE_STYLES = {"listening": CALLER, "processing": "yellow", "responding": AGENT, "error": BAD}
PARTS = (
    ("turn end", "endpointing_ms"),
    ("stt", "stt_latency_ms"),
    ("agent", "agent_latency_ms"),
    ("tts", "tts_latency_ms"),
)


class PipeConsole(Console):
    """A console that leaves it to its user what happens when the reader goes away; rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls this while it handles the error


def new_display(out: IO[str], duration_ms: float, is_terminal: bool) -> Display:
    """What fits `out`: a `Screen` on a terminal, `Lines` elsewhere. A character that `out` lacks becomes "?"."""
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")
    if is_terminal:
        console = PipeConsole(file=out, highlight=False, markup=False, emoji=False)
        if not console.is_dumb_terminal:
            return Screen(console, duration_ms)
    plain = PipeConsole(
        file=out, width=PLAIN_WIDTH, force_terminal=False, color_system=None, highlight=False, markup=False, emoji=False
    )
    return Lines(plain, duration_ms)


class Display:
    """Follows a call by its events. `refresh(position_ms)` is called now and then; `close` before the table is shown.

    What cannot be shown because the reader is gone (`| head`) is left out; `failure` keeps the error.
    """

    def __init__(self, console: Console, duration_ms: float) -> None:
        self.console, self.duration_ms = console, duration_ms
        self.failure: OSError | None = None
        self.state = "connected"
        self.user = self.agent = ""
        self.parts: dict[str, float] = {}
        self.shows: dict[str, Callable[[SessionEvent], None]] = {}
        self._speech_end_ms: float | None = None
        self._since_ms = 0.0
        self._finals: list[str] = []

    def on_event(self, event: SessionEvent) -> None:
        """Take one event of the session."""
        self._follow(event)
        show = self.shows.get(event.name)
        if show is not None:
            show(event)

    def refresh(self, position_ms: float) -> None:
        """Show how far the call is; the default does nothing."""

    def close(self) -> None:
        """The call is over; the default does nothing."""

    def print(self, *lines: Any) -> None:
        """Print lines that stay; long ones go on in the next line."""
        for line in lines:
            if self.failure is not None:
                return
            try:
                self.console.print(line, soft_wrap=isinstance(line, str))
            except OSError as error:
                self.failure = error

    def _follow(self, event: SessionEvent) -> None:
        data = event.data
        if event.name == "state":
            self.state = data["state"]
        elif event.name == "turn_started":
            self.user = self.agent = ""
            self.parts, self._finals = {}, []
        elif event.name == "turn_reopened":
            self.agent, self.parts = "", {}
        elif event.name == "turn_ended":
            self._speech_end_ms, self._since_ms = data["speech_end_ms"], event.at_ms
            if self._speech_end_ms is not None:
                self.parts = {"turn end": event.at_ms - self._speech_end_ms}
        elif event.name == "transcript":
            self.user = " ".join(filter(None, [*self._finals, data["text"]]))
            if data["is_final"]:
                self._finals.append(data["text"])
                self._measure("stt", event)
        elif event.name == "reply_text":
            self.agent += data["text"]
            self._measure("agent", event)
        elif event.name == "reply_audio":
            self._measure("tts", event)
        elif event.name == "reply_started" and event.turn >= 0 and self._speech_end_ms is not None:
            self.parts.setdefault("first sound", event.at_ms - self._speech_end_ms)

    def _measure(self, part: str, event: SessionEvent) -> None:
        """A part of the turn's latency is over, the next one begins."""
        if event.turn >= 0 and "turn end" in self.parts and part not in self.parts:
            self.parts[part] = event.at_ms - self._since_ms
            self._since_ms = event.at_ms


class Lines(Display):
    """One line for each thing that happens, without control codes."""

    def __init__(self, console: Console, duration_ms: float) -> None:
        super().__init__(console, duration_ms)
        self._said = 0
        self.shows = {
            "state": self._state,
            "transcript": self._transcript,
            "turn_reopened": self._turn_reopened,
            "reply_started": self._reply_started,
            "reply_paused": lambda event: self._line(event.at_ms, "agent", "(paused: speech?)"),
            "reply_resumed": lambda event: self._line(event.at_ms, "agent", "(goes on)"),
            "interrupted": self._interrupted,
            "reply_ended": self._reply_ended,
            "turn_finished": self._turn_finished,
            "error": self._error,
            "warning": lambda event: self._line(event.at_ms, "warning", printable(event.data["message"])),
            **dict.fromkeys(("retried", "failed_over", "provider_health"), self._provider),
        }

    def _line(self, at_ms: float, who: str, text: str) -> None:
        self.print(f"{at_ms / 1000:8.2f}  {who:<10}  {text}".rstrip())

    def _state(self, event: SessionEvent) -> None:
        self._line(event.at_ms, f"[{self.state}]", "")

    def _transcript(self, event: SessionEvent) -> None:
        text = printable(event.data["text"])
        if text:
            self._line(event.at_ms, "caller" if event.data["is_final"] else "caller ...", text)

    def _turn_reopened(self, event: SessionEvent) -> None:
        self._line(event.at_ms, "caller", "(speaks on: the turn goes on, the reply is taken back)")

    def _reply_started(self, event: SessionEvent) -> None:
        self._said = 0
        self._tell_agent(event)
        if event.turn >= 0 and "first sound" in self.parts:
            self._line(event.at_ms, "", f"first sound {self.parts['first sound']:.0f} ms after the caller's last")

    def _interrupted(self, event: SessionEvent) -> None:
        self._line(event.at_ms, "agent", f"(interrupted; heard: {printable(event.data['heard_text']) or 'nothing'})")

    def _reply_ended(self, event: SessionEvent) -> None:
        self._tell_agent(event)
        self.agent, self._said = "", 0

    def _tell_agent(self, event: SessionEvent) -> None:
        text, self._said = printable(self.agent[self._said :]), len(self.agent)
        if text:
            self._line(event.at_ms, "agent", text)

    def _turn_finished(self, event: SessionEvent) -> None:
        record: TurnRecord = event.data["record"]
        self._line(event.at_ms, f"turn {record.index + 1}", latencies(record))

    def _error(self, event: SessionEvent) -> None:
        self._line(event.at_ms, "error", fault(event))

    def _provider(self, event: SessionEvent) -> None:
        self._line(event.at_ms, event.data["kind"], provider_news(event))


class Screen(Display):
    """Finished turns scroll by; the turn under way, the state and a progress bar stay at the bottom."""

    def __init__(self, console: Console, duration_ms: float) -> None:
        super().__init__(console, duration_ms)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._position_ms = 0.0
        self._drawn_ms = 0.0
        self.shows = {
            "reply_ended": self._reply_ended,
            "turn_finished": self._turn_finished,
            "error": self._error,
            "warning": self._warning,
            **dict.fromkeys(("failed_over", "provider_health"), self._provider),
        }
        self._live.start()

    def refresh(self, position_ms: float) -> None:
        self._position_ms = position_ms
        now_ms = wall_ms()
        if now_ms - self._drawn_ms < REFRESH_MS or self.failure is not None:
            return
        try:
            self._live.update(self._picture(), refresh=True)
        except OSError as error:
            self.failure = error
        # Read again: a slow terminal must not be drawn on without end.
        self._drawn_ms = wall_ms()

    def close(self) -> None:
        try:
            self._live.stop()
        except OSError as error:
            self.failure = error

    def _reply_ended(self, event: SessionEvent) -> None:
        if event.turn < 0 and self.agent:
            self.print(_spoken("", "agent", _heard(self.agent, event.data["heard_text"]), AGENT), "")
        self.agent = ""

    def _turn_finished(self, event: SessionEvent) -> None:
        record: TurnRecord = event.data["record"]
        reply = _heard(record.agent_text, record.heard_text)
        self.user = self.agent = ""
        self.print(
            _spoken(str(record.index + 1), "caller", Text(printable(record.user_text)), CALLER),
            _spoken("", "agent", reply, AGENT),
            _spoken("", "", Text(latencies(record), FAINT), FAINT),
            "",
        )

    def _error(self, event: SessionEvent) -> None:
        self.print(_spoken("!", "error", Text(fault(event), BAD), BAD))

    def _warning(self, event: SessionEvent) -> None:
        self.print(_spoken("!", "warning", Text(printable(event.data["message"]), "yellow"), "yellow"))

    def _provider(self, event: SessionEvent) -> None:
        self.print(_spoken("!", event.data["kind"], Text(provider_news(event), "yellow"), "yellow"))

    def _picture(self) -> Group:
        width = self.console.width - 14
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(width=14, no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        total_ms = max(self.duration_ms, 1.0)
        head.add_row(
            Text(f" ● {self.state}", STATE_STYLES.get(self.state, FAINT)),
            ProgressBar(total=total_ms, completed=min(self._position_ms, total_ms), complete_style=CALLER),
            Text(f"{_minutes(self._position_ms)} / {_minutes(total_ms)}", FAINT),
        )
        return Group(
            head,
            _spoken("", "caller", Text(_tail(self.user, width), "italic"), CALLER),
            _spoken("", "agent", Text(_tail(self.agent, width)), AGENT),
            _spoken("", "", Text(_told(self.parts), FAINT), FAINT),
        )


def latencies(record: TurnRecord) -> str:
    """What a turn's latencies were, in a line."""
    values = {name: getattr(record, key) for name, key in (*PARTS, ("first sound", "e2e_latency_ms"))}
    told = [_told({name: value for name, value in values.items() if value is not None})]
    if record.interrupted:
        told.append("interrupted")
    return " · ".join(filter(None, told)) or "no reply"


def provider_news(event: SessionEvent) -> str:
    """Who serves now instead of whom, and why; what is tried again; whose breaker opened or closed."""
    data = event.data
    why = f": {printable(str(data['error']))}" if data.get("error") else ""
    if event.name == "failed_over":
        return f"{printable(data['old'])} -> {printable(data['new'])}{why or ', which is preferred'}"
    if event.name == "retried":
        return f"{printable(data['provider'])} again{why}"
    return f"the breaker of {printable(data['provider'])} is {data['state']}"


def _told(parts: Mapping[str, float]) -> str:
    told = [f"{name} {value:.0f}" for name, value in parts.items() if name != "first sound"]
    if "first sound" in parts:
        told.append(f"first sound after {parts['first sound']:.0f} ms")
    return " · ".join(told)


def turns_table(records: Sequence[TurnRecord], width: int) -> Table:
    """Every turn with its latencies in ms, and their medians."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, header_style="bold", show_footer=True)
    table.footer_style = "bold"
    texts = max(10, (width - 40) // 2)
    table.add_column("#", justify="right", style=FAINT)
    table.add_column("caller", "median, ms", style=CALLER, no_wrap=True, overflow="ellipsis", width=texts)
    table.add_column("reply, as heard", style=AGENT, no_wrap=True, overflow="ellipsis", width=texts)
    for title, key in (*PARTS, ("e2e", "e2e_latency_ms")):
        values = [value for record in records if (value := getattr(record, key)) is not None]
        heading = "end" if title == "turn end" else title
        median = _number(statistics.median(values) if values else None)
        table.add_column(heading, median, justify="right", no_wrap=True, min_width=5)
    table.add_column("cut", str(sum(record.interrupted for record in records) or ""), style="yellow", no_wrap=True)
    for record in records:
        table.add_row(
            str(record.index + 1),
            printable(record.user_text),
            printable(record.heard_text),
            *(_number(getattr(record, key)) for _, key in (*PARTS, ("e2e", "e2e_latency_ms"))),
            "yes" if record.interrupted else "",
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _spoken(number: str, who: str, text: Text, style: str) -> Table:
    """A line with a number, who speaks and what; more lines are indented."""
    row = Table.grid(padding=(0, 1))
    row.add_column(width=3, justify="right")
    row.add_column(width=7, no_wrap=True)
    row.add_column()
    row.add_row(Text(number, FAINT), Text(who, style), text)
    return row


def _heard(text: str, heard: str) -> Text:
    """A reply; what was not heard of it is struck out."""
    text, heard = printable(text), printable(heard)
    if not text.startswith(heard):
        return Text(heard)
    return Text.assemble(heard, (text[len(heard) :], f"{FAINT} strike"))


def _tail(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _minutes(at_ms: float) -> str:
    return f"{int(at_ms // 60_000)}:{at_ms % 60_000 / 1000:04.1f}"
