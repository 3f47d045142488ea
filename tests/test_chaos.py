# ruff: noqa: ASYNC110
"""Lines that break over real sockets: nothing that was said is lost, doubled or left without an answer.

Small, fixed versions of the scenarios of benchmarks/chaos.py; all of a kind at once, in real time.
"""

import asyncio
import contextlib
import importlib
import json
import random
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("websockets")
pytest.importorskip("uvicorn")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from _chaos_books import reckon
from _chaos_caller import Caller
from _chaos_wire import Wire

from beluga_voice import Chain, tts, turn, wire
from beluga_voice.clock import run_simulated
from beluga_voice.errors import LineLost
from beluga_voice.frames import TextIn
from beluga_voice.server import serving
from beluga_voice.server.line import WireLine
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet

PATIENCE_S = 30.0


@asynccontextmanager
async def served(tmp_path, monkeypatch, **environment):
    """The chaos server in this process; gives its address and what it has written so far."""
    journal = tmp_path / "journal.jsonl"
    told = {"JOURNAL": journal, "SILENCE_MS": 300, "GAP_MS": 1_000, **environment}
    for name, value in told.items():
        monkeypatch.setenv(f"CHAOS_{name}", str(value))
    sys.modules.pop("_chaos_app", None)
    module = importlib.import_module("_chaos_app")
    async with serving.running(module.app) as url:
        host, port = url.removeprefix("http://").split(":")
        yield (host, int(port)), lambda: [json.loads(line) for line in journal.read_text().splitlines()], module.manager


class Scene:
    """Callers on wires of their own; each scenario is a function of one of them."""

    def __init__(self, address, count):
        self.wires = [Wire(lambda: address) for _ in range(count)]
        self.callers = [Caller(number, wire, random.Random(number), words=(3, 3)) for number, wire in enumerate(self.wires)]

    async def play(self, *acts):
        """Each caller has one turn before, the act, and one turn after."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(self.part(*one) for one in zip(acts, self.callers, self.wires, strict=True)))

    async def part(self, act, caller, wire):
        async with wire:
            talking = asyncio.create_task(caller.run())
            await act(caller, wire)
            turns = len(caller.said)
            while len(caller.said) <= turns and caller.doing != "gone":
                await asyncio.sleep(0.02)
            caller.stop = True
            await talking


async def doing(caller, *what):
    while caller.doing not in (*what, "gone"):
        await asyncio.sleep(0.01)


def cut_while(what, after_s, how="rst"):
    async def act(caller, wire):
        await doing(caller, what)
        await asyncio.sleep(after_s)
        assert wire.cut(how) == 1

    return act


def cut_in_the_handshake(after_bytes):
    async def act(caller, wire):
        await doing(caller, "speaking")
        await asyncio.sleep(0.2)
        wire.cut_after = after_bytes
        wire.cut("rst")

    return act


async def cut_twice(caller, wire):
    await doing(caller, "hearing")
    wire.cut("rst")
    await asyncio.sleep(0.05)
    wire.cut("fin")


async def cut_for_a_while(caller, wire):
    await doing(caller, "speaking")
    await asyncio.sleep(0.2)
    wire.outage = True
    wire.cut("rst")
    await asyncio.sleep(3.0)
    wire.outage = False


def assert_all_is_there(callers, told):
    books = reckon(callers, told)
    assert books.notes == []
    assert (books.lost_sessions, books.turns_lost, books.turns_unanswered) == (0, 0, 0)
    assert (books.words_lost, books.words_clipped, books.words_doubled, books.foreign) == (0, 0, 0, 0)
    assert (books.reply_words_lost, books.reply_words_clipped, books.reply_words_doubled) == (0, 0, 0)
    assert books.words > 0
    assert books.reply_words > 0


def test_a_cut_at_any_moment_loses_nothing(tmp_path, monkeypatch):
    acts = [
        *(cut_while(what, after_s, how) for what in ("idle", "waiting") for after_s in (0.0, 0.15) for how in ("rst", "fin")),
        *(cut_while(what, after_s) for what in ("speaking", "hearing") for after_s in (0.0, 0.2, 0.45)),
        *(cut_while(what, 0.3, "fin") for what in ("speaking", "hearing")),
        cut_twice,
        cut_for_a_while,
    ]

    async def main():
        async with served(tmp_path, monkeypatch) as (address, told, _):
            scene = Scene(address, len(acts))
            await scene.play(*acts)
            assert all(caller.counters["resumed"] >= 1 for caller in scene.callers)
            assert_all_is_there(scene.callers, told())

    asyncio.run(main())


def test_a_cut_in_the_midst_of_coming_back_loses_nothing(tmp_path, monkeypatch):
    acts = [cut_in_the_handshake(after) for after in (1, 150, 400, 600, 750, 900, 1_000, 1_100, 1_300, 3_000, 9_000)]

    async def main():
        async with served(tmp_path, monkeypatch) as (address, told, _):
            scene = Scene(address, len(acts))
            await scene.play(*acts)
            assert all(wire.cuts["in the handshake"] == 1 for wire in scene.wires)
            assert_all_is_there(scene.callers, told())

    asyncio.run(main())


def test_a_caller_who_mutes_in_mid_word_is_answered(tmp_path, monkeypatch):
    async def mute(caller, wire):
        await doing(caller, "speaking")
        await asyncio.sleep(0.3)
        caller.mute = True
        caller.cut_short()
        await doing(caller, "hearing")
        caller.mute = False

    async def main():
        async with served(tmp_path, monkeypatch, GAP_MS=200) as (address, told, _):
            scene = Scene(address, 4)
            await scene.play(*[mute] * 4)
            assert all(caller.end_reason == "bye" for caller in scene.callers)
            assert reckon(scene.callers, told()).turns_unanswered == 0

    asyncio.run(main())


def test_connections_aborted_at_every_stage_leave_nothing_behind(tmp_path, monkeypatch):
    load = importlib.import_module("_chaos_load")

    async def main():
        async with served(tmp_path, monkeypatch, RESUME_MS=200) as (address, _, manager):
            await asyncio.sleep(0)  # the server's own tasks have begun
            before = len(asyncio.all_tasks())
            rng = random.Random(1)
            stages = ("tcp", "request", "upgraded", "hello", "welcome", "audio", "talking")
            for stage in stages:
                for how in ("rst", "fin", "close"):
                    await asyncio.gather(*(load.abort_at(address[1], stage, how, rng) for _ in range(3)))
            async with asyncio.timeout(PATIENCE_S):
                while manager.sessions or len(asyncio.all_tasks()) > before:
                    await asyncio.sleep(0.05)
            assert manager.counters["created"] >= 3 * 3 * 3  # welcome, audio, talking
            assert manager.counters["closed_error"] == 0

    asyncio.run(main())


class Socket:
    """A WebSocket by hand."""

    hung_up = False

    def __init__(self):
        self.coming, self.said = asyncio.Queue(), []

    async def receive(self):
        return await self.coming.get()

    async def send(self, message):
        self.said.append(message)

    async def close(self, code, reason):
        self.said.append((code, reason))


def test_what_was_said_in_a_long_break_is_heard_though_the_line_broke_again_on_its_way():
    def hello(**more):
        rates = {"sample_rate_hz": 16_000, "output_rate_hz": 16_000}
        told = {"type": "hello", **rates, "encoding": "pcm16", "turn_mode": "vad", "metadata": {}, **more}
        return wire.parse_client(wire.text(told))

    async def main():
        line, heard = WireLine(hello()), []

        async def session():
            while True:
                with contextlib.suppress(LineLost):
                    async for frame in line.recv():
                        heard.append(frame.seq)

        async def attach(welcome, numbers, for_s):
            place = {"received_seq": 0, "played": {"seq": -1, "ms": 0}, "session_id": "s"}
            resume = {**place, **(welcome or {"resume_token": "none"})}
            socket, said = Socket(), hello(resume=resume)
            if welcome is not None:
                line.admit(said)
            serving_it = asyncio.create_task(line.serve(socket, resume=said.resume if welcome is not None else None))
            for number in numbers:
                socket.coming.put_nowait(wire.audio(number, bytes(640)))
            await asyncio.sleep(for_s)
            socket.coming.put_nowait(None)
            await serving_it
            return {"resume_token": json.loads(socket.said[0])["resume_token"]}

        reading = asyncio.create_task(session())
        welcome = await attach(None, range(10), 0.2)
        await asyncio.sleep(20.0)
        await attach(welcome, (), 0.01)  # it broke before the welcome arrived
        await attach(welcome, range(10, 1_010), 3.0)
        reading.cancel()
        assert heard == list(range(1_010))

    run_simulated(main())


def test_many_typed_turns_at_once_do_not_end_the_session():
    async def reply(text, history):
        return text

    def burst(session):
        for number in range(12):
            session.feed(TextIn(f"text {number}", number))

    chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("never"), reply, tts.new("tone"))
    call = hold(chain, quiet(3_000), at=[(500, burst)])
    assert call.reason == "bye"
    assert all(f"text {number}" in call.history[-1].text for number in range(12))
