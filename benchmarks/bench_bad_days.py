"""Turns lost when providers fail at random: real SDKs against loopback servers that are sick, whole sessions, simulated time.

    python benchmarks/bench_bad_days.py                  500 turns for each case, 30 % of calls sick
    python benchmarks/bench_bad_days.py --share 0.6 --turns 200

Every word is told apart by its tone: a turn counts as whole when the agent was given each word of the caller once, and the
caller heard each word of the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
from contextlib import AsyncExitStack

import psutil

from beluga_voice import Audio, Chain, agent, stt, tts, turn
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated, wall_ms
from beluga_voice.resilience import guards
from beluga_voice.session import Session
from beluga_voice.settings import SessionOptions
from beluga_voice.testing import LoudVAD, quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.openai_server import GroqServer, OpenAIServer
from beluga_voice.testing.tone_speech import RATE_HZ, VOCABULARY, say, understand

SESSIONS, GAP_MS = 25, 14_000.0
SICKNESSES = tuple(
    Sickness(kind, status=status, after=after, every_ms=400.0)
    for kind, status in (("refuse", 500), ("refuse", 429), ("hang", 0), ("cut", 0), ("drip", 0), ("garbage", 0), ("empty", 0))
    for after in ((0,) if kind in ("refuse", "empty") else (0, 2, 7, 20_000))
)
CASES = {
    "nobody": (),
    "stt": ("deepgram",),
    "agent": ("openai",),
    "tts": ("elevenlabs",),
    "all": ("deepgram", "openai", "elevenlabs"),
}


async def hold(chain, words, events):
    """One call in which each of `words` is a turn; its session, and what the caller heard."""
    heard = []
    caller = quiet(1_500) + b"".join(say(text) + quiet(GAP_MS) for text in words)
    line = RecordedLine(Audio(caller, RATE_HZ), tail_ms=4_000, on_audio=lambda _, agent_pcm: heard.append(agent_pcm))
    session = Session(chain, line, SessionOptions(idle_timeout_ms=120_000), listeners=[events.append])
    await session.run()
    return session, understand(b"".join(heard), RATE_HZ)


async def run(sick, share, turns, seed):
    """All sessions of one case at once; what became of them."""
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        servers = {
            "deepgram": await stack.enter_async_context(DeepgramServer()),
            "openai": await stack.enter_async_context(OpenAIServer()),
            "groq": await stack.enter_async_context(GroqServer()),
            "elevenlabs": await stack.enter_async_context(ElevenLabsServer()),
        }
        for number, name in enumerate(sick):
            servers[name].sicken_share(share, SICKNESSES, seed + number)

        def at(name):
            server = servers[name]
            return {"api_key": server.api_key, "base_url": getattr(server, "base_url", server.url)}

        chain = Chain(
            LoudVAD(),
            turn.new("silence"),
            stt.failover(stt.new("deepgram", **at("deepgram")), stt.new("groq", **at("groq"))),
            agent.failover(agent.new("openai", **at("openai")), agent.new("groq", **at("groq"))),
            tts.failover(tts.new("elevenlabs", **at("elevenlabs")), tts.new("deepgram", **at("deepgram")))
            if "deepgram" not in sick
            else tts.failover(tts.new("elevenlabs", **at("elevenlabs")), tts.new("groq", **at("groq"))),
        )
        each = turns // SESSIONS
        said = [[" ".join(chance.choices(VOCABULARY, k=chance.randint(2, 6))) for _ in range(each)] for _ in range(SESSIONS)]
        told = [[] for _ in range(SESSIONS)]
        before = {task for task in asyncio.all_tasks()}
        held = await asyncio.gather(*(hold(chain, words, events) for words, events in zip(said, told)))
        await asyncio.sleep(1)
        leaked = [task.get_name() for task in asyncio.all_tasks() - before if "loopback" not in task.get_name()]
        sockets = sum(server.open_connections for server in servers.values())
        calls = sum(len(server.requests) for server in servers.values())
        sickened = sum(request.sick is not None for server in servers.values() for request in server.requests)
        opened = sum(one.counters["opened"] for one in guards())
    return said, told, held, leaked, sockets, calls, sickened, opened


def report(name, sick, share, turns, seed):
    """Run one case and print its line."""
    open_before = len(psutil.Process().net_connections())
    began_ms = wall_ms()
    said, told, held, leaked, sockets, calls, sickened, opened = run_simulated(run(sick, share, turns, seed))
    gc.collect()
    took_s = (wall_ms() - began_ms) / 1000
    asked = lost_words = unheard = twice = 0
    for words, events, (_, heard) in zip(said, told, held):
        given = [event.data["text"] for event in events if event.name == "turn_heard"]
        asked += len(words)
        lost_words += sum(text not in given for text in words)
        wanted = " ".join(f"i heard {text}" for text in words).split()
        got = heard.split()
        unheard += _missing(wanted, got)
        twice += max(0, len(got) - len(wanted) + _missing(wanted, got))
    events = [event for one in told for event in one]
    count = {kind: sum(event.name == kind for event in events) for kind in ("retried", "failed_over", "error")}
    left = len(psutil.Process().net_connections()) - open_before
    print(
        f"{name:8} {asked:4} turns, {calls} calls, {sickened} sick: not heard right {lost_words}, "
        f"answer's words unheard {unheard}, twice {twice}; "
        f"retried {count['retried']}, failed over {count['failed_over']}, errors {count['error']}, "
        f"breakers opened {opened}; left: tasks {len(leaked)}, sockets {sockets + left}; {took_s:.0f} s"
    )
    for name in sorted(set(leaked)):
        print(f"         left: {name}")
    return lost_words + unheard + len(leaked) + sockets


def _missing(wanted, got):
    """How many words of `wanted` are not in `got`, in order."""
    at = missing = 0
    for word in wanted:
        try:
            at = got.index(word, at, at + 40) + 1
        except ValueError:
            missing += 1
    return missing


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    for name in asked.cases or CASES:
        report(name, CASES[name], asked.share, asked.turns, asked.seed)


if __name__ == "__main__":
    main()
