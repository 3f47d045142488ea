"""Lines that break over real sockets: nothing that was said is lost, doubled or left without an answer.

Small, fixed versions of the scenarios of benchmarks/chaos.py; all of a kind at once, in real time.
"""

import asyncio
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

from beluga_voice.server import serving

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
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE_S):
            for act, caller, wire in zip(acts, self.callers, self.wires, strict=True):
                tasks.create_task(self.part(act, caller, wire))

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


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_cut_at_any_moment_loses_nothing(tmp_path, monkeypatch, how):
    acts = [
        *(cut_while(what, after_s, how) for what in ("idle", "waiting") for after_s in (0.0, 0.15)),
        *(cut_while(what, after_s, how) for what in ("speaking", "hearing") for after_s in (0.0, 0.2, 0.45)),
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
            before = len(asyncio.all_tasks())
            rng = random.Random(1)
            stages = ("tcp", "request", "upgraded", "hello", "welcome", "audio", "talking")
            for stage in stages:
                for how in ("rst", "fin", "close"):
                    for _ in range(3):
                        await load.abort_at(address[1], stage, how, rng)
            async with asyncio.timeout(PATIENCE_S):
                while manager.sessions or len(asyncio.all_tasks()) > before:
                    await asyncio.sleep(0.05)
            assert manager.counters["created"] >= 3 * 3 * 3
            assert manager.counters["closed_error"] == 0

    asyncio.run(main())
