"""`beluga-voice call`: call a server, with a recording or with this machine's microphone, and show the conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import click

from .. import client
from ..clock import Clock
from ..errors import ConfigError
from ._files import file
from ._report import printable

__all__ = ["call"]

INTERRUPTED = 130
FINE = ("bye", "idle", "max_session", "closed")


@click.command()
@click.argument("url", metavar="URL")
@click.argument("input_path", type=file, metavar="[INPUT]", required=False)
@click.option("-o", "--output", type=file, help="Both sides of the call in stereo: caller left, agent right.")
@click.option(
    "--token",
    metavar="TICKET",
    envvar="BELUGA_VOICE_TOKEN",
    help="A ticket, where the server wants one; or $BELUGA_VOICE_TOKEN.",
)
@click.option("--microphone", is_flag=True, help="Speak and hear through this machine's devices, until Ctrl-C; use a headset.")
def call(url: str, input_path: str | None, output: str | None, token: str | None, microphone: bool) -> int:
    """Call the server at URL, like ws://127.0.0.1:8080/v1/voice, with INPUT, the recording of a caller (WAV, FLAC, OGG or MP3).

    A line that is lost is taken up again. The exit code is 1 where the call broke off.
    """
    if microphone == (input_path is not None):
        raise ConfigError("who speaks? Name the recording of a caller, or give --microphone, not both")
    if microphone and output:
        raise ConfigError("-o keeps a call with a recording; leave it or --microphone out")
    lines = Lines()
    try:
        if input_path is not None:
            ended = asyncio.run(client.talk(url, input=input_path, output=output or "", token=token, on_event=lines.on_event))
        else:
            ended = asyncio.run(_converse(url, token, lines.on_event))
    except KeyboardInterrupt:
        return INTERRUPTED
    if output:
        click.echo(f"The call: {output} (caller left, agent right)")
    if ended.end_reason in FINE:
        return 0
    why = printable(f"{ended.end_reason} ({ended.close_code}): {ended.close_reason}")
    click.echo(f"beluga-voice: the call broke off: {why}", err=True)
    return 1


async def _converse(url: str, token: str | None, on_event: Callable[[client.Call, dict[str, Any]], None]) -> client.Call:
    async with client.connect(url, token=token, paced=False) as call, client.microphone(call):
        async for event in call:
            on_event(call, event)
    return call


class Lines:
    """One line for each thing that a person wants to know."""

    def __init__(self) -> None:
        self._began_ms: float | None = None
        self._clock = Clock()

    def on_event(self, call: client.Call, event: dict[str, Any]) -> None:
        """Show one event."""
        who, text = _told(call, event)
        if text:
            now_ms = self._clock.now_ms()
            if self._began_ms is None:
                self._began_ms = now_ms
            click.echo(f"{(now_ms - self._began_ms) / 1000:8.2f}  {who:<8}  {printable(text)}")


def _told(call: client.Call, event: dict[str, Any]) -> tuple[str, str]:
    """Who says what."""
    match event:
        case {"type": "line"}:
            return "line", _line(call, event)
        case {"type": "transcript", "final": True, "text": str(text)}:
            return "caller", text
        case {"type": "reply_end", "heard_text": str(text)}:
            return "agent", f"{text} (interrupted)".strip() if event.get("interrupted") is True else text
        case {"type": "metrics", "e2e_latency_ms": float(e2e_ms) | int(e2e_ms)}:
            return "", f"answered after {e2e_ms:.0f} ms"
        case {"type": "error", "message": str(message)}:
            return "error", message
        case {"type": "goaway"}:
            return "line", "the server is going away; moving"
    return "", ""


def _line(call: client.Call, event: dict[str, Any]) -> str:
    match event["state"]:
        case "connected":
            return f"connected: session {call.session_id}"
        case "lost":
            return f"line lost, reconnecting ({event['reason']})"
        case "resumed" if event["moved"]:
            return "moved to another connection"
        case "resumed":
            missing = "; events were lost" if event["events_lost"] else ""
            missing += f"; {event['unsent_lost']} of our messages were lost" if event["unsent_lost"] else ""
            return f"resumed after {event['gap_ms']:.0f} ms{missing}"
        case "ended":
            return f"ended: {event['reason']}" + (f" ({event['message']})" if event["message"] else "")
        case "gap":
            return f"{event['missing']} messages of the server are missing"
        case "behind":
            return f"the line is too slow: {event['unsent_lost']} messages were dropped"
        case "garbage":
            return f"the server sent what is no message: {event['message']}"
    return ""
