"""A call with cloud providers, and none of them: loopback servers play their parts. No key, no network, no bill.

    python examples/on_loopback.py                                  a call
    python examples/on_loopback.py --sick deepgram=hang             the recogniser hangs: its stand-by takes over
    python examples/on_loopback.py --sick elevenlabs=cut:3          the voice breaks off after three messages

The SDKs are the real ones. The caller and the voices speak in tones, one for each word, which the recognisers understand; so
the energy VAD listens instead of Silero. Other options are those of `beluga-voice talk`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

try:
    from beluga_voice import Audio, audio
    from beluga_voice.testing.deepgram_server import DeepgramServer
    from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
    from beluga_voice.testing.loopback import LoopbackServer, Sickness
    from beluga_voice.testing.openai_server import OpenAIServer
    from beluga_voice.testing.tone_speech import RATE_HZ, say
except ImportError as error:
    sys.exit(f"{error}; install the plugins first: pip install ./plugins/deepgram ./plugins/openai ./plugins/elevenlabs")

SERVERS: dict[str, type[LoopbackServer]] = {
    "deepgram": DeepgramServer,
    "openai": OpenAIServer,
    "elevenlabs": ElevenLabsServer,
}
KINDS = {
    "refuse": "answers 500",
    "hang": "answers nothing any more",
    "cut": "breaks the connection",
    "drip": "is slow",
    "garbage": "sends what nobody can read",
    "odd": "sends it in odd pieces",
    "unknown": "sends messages of unknown types, too",
    "empty": "is well and says nothing",
}
SAYS = ("hello tell me about the weather", "what is the time in paris", "thank you goodbye")
PAUSE_MS = 4_500.0
PROVIDER = re.compile(r'^provider = "([\w-]+)"$', re.MULTILINE)
HERE = Path(__file__).parent


def caller() -> Audio:
    """Somebody who says three things, in tones."""
    pause = bytes(2 * round(PAUSE_MS * RATE_HZ / 1_000))
    return Audio(pause + pause.join(say(text) for text in SAYS) + pause, RATE_HZ)


def at_home(toml: str, servers: dict[str, LoopbackServer]) -> str:
    """The configuration with every provider that has a loopback server at its address."""

    def placed(table: re.Match[str]) -> str:
        server = servers.get(table[1].partition("-")[0])
        if server is None:
            return table[0]
        base_url = server.base_url if isinstance(server, OpenAIServer) else server.url
        return f'{table[0]}\nbase_url = "{base_url}"\napi_key = "{server.api_key}"'

    vad = "" if "[vad]" in toml else '\n[vad]\nprovider = "energy"\n'
    return PROVIDER.sub(placed, toml) + vad


def sickness(told: str) -> tuple[str, Sickness]:
    """ "deepgram=cut:3" as a name and what is wrong with it."""
    name, _, rest = told.partition("=")
    kind, _, after = rest.partition(":")
    if name not in SERVERS or kind not in KINDS or not (after or "0").isdigit():
        expected = f"one of {', '.join(SERVERS)}, and of {', '.join(KINDS)}"
        raise argparse.ArgumentTypeError(f"{told!r}; expected {expected}, like openai=cut:3")
    return name, Sickness(kind, after=int(after or 0))  # type: ignore[arg-type]


def prepare(folder: Path, config: Path, servers: dict[str, LoopbackServer]) -> list[str]:
    """Write the caller and the configuration; the command that holds the call."""
    audio.write(folder / "caller.wav", caller())
    (folder / "call.toml").write_text(at_home(config.read_text("utf-8"), servers), "utf-8")
    return ["talk", str(folder / "caller.wav"), "--config", str(folder / "call.toml")]


async def run(config: Path, sick: list[tuple[str, Sickness]], rest: list[str]) -> int:
    """Hold the call; the exit status of `beluga-voice talk`."""
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(server()) for name, server in SERVERS.items()}
        for name, what in sick:
            servers[name].sick = what
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [*prepare(folder, config, servers), *rest]
        talking = await asyncio.create_subprocess_exec(sys.executable, "-m", "beluga_voice", *command)
        try:
            status = await talking.wait()
        except asyncio.CancelledError:  # Ctrl-C, which the call has heard too
            await talking.wait()
            raise
        for name, server in servers.items():
            requests = len(server.requests) - len(server.sockets)
            print(f"{name}: {requests} requests, {len(server.sockets)} sockets; open now: {server.open_connections}")
        return status


def main() -> None:
    """Read the command line."""
    title, _, more = (__doc__ or "").partition("\n")
    kinds = "\n".join(f"    {kind:10}{what}" for kind, what in KINDS.items())
    more += f"\nPROVIDER is {', '.join(SERVERS)}; SICKNESS is one of\n{kinds}\n"
    more += "after so many messages of a socket, or bytes of another answer, went out well."
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=title, epilog=more, formatter_class=style)
    parser.add_argument("--config", type=Path, default=HERE / "deepgram-openai-elevenlabs.toml", help="another call")
    who = "who is ill; may be given again"
    parser.add_argument(
        "--sick", action="append", type=sickness, default=[], metavar="PROVIDER=SICKNESS[:AFTER]", help=who
    )
    known, rest = parser.parse_known_args()
    if not known.config.is_file():
        parser.error(f"{known.config}: no such file; check the path")
    try:
        sys.exit(asyncio.run(run(known.config, known.sick, rest)))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
