"""Scenarios of load and abuse: redis-stop, churn, stalled."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from _chaos_books import reckon
from _chaos_caller import Caller, late_ms
from _chaos_cuts import Crowd, Plan, line_log, server_log, tell, times
from _chaos_served import Folder, Redis, Served
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from beluga_voice import wire
from beluga_voice.clock import wall_ms

FRAME = bytes(1_280)
RATES = {"sample_rate_hz": 16_000, "output_rate_hz": 16_000}
HELLO = {"type": "hello", **RATES, "encoding": "pcm16", "turn_mode": "vad", "metadata": {}}


# --- redis-stop ------------------------------------------------------------------------------------------------------


async def redis_stop(plan: Plan) -> None:
    """Redis is stopped for 20 s under live calls."""
    with Folder() as folder:
        async with Redis() as redis, AsyncExitStack() as stack:
            served = await stack.enter_async_context(Served(folder, redis=redis.url))
            async with Crowd(plan, plan.count(20), lambda rng: served.address) as crowd:
                await asyncio.sleep(15.0)
                before = (await served.look())["counters"]
                frozen_ms = wall_ms()
                redis.freeze()
                await asyncio.sleep(20.0)
                thawed_ms = wall_ms()
                during = await served.look()
                redis.thaw()
                await asyncio.sleep(8.0)
                keys = await redis.command("DBSIZE")
                await asyncio.sleep(7.0)
                after_ms = wall_ms()
                after = (await served.look())["counters"]
                await crowd.end()
                told = folder.told()
        tell(reckon(crowd.callers, told))
        for name, from_ms, until_ms in (
            ("before", 0.0, frozen_ms),
            ("while Redis stood still", frozen_ms, thawed_ms),
            ("after", thawed_ms, after_ms),
        ):
            gaps = [gap for caller in crowd.callers for gap in late_ms(caller.arrivals, from_ms, until_ms)]
            print(times(f"reply audio late, {name}", gaps), f"; more than 20 ms: {sum(gap > 20 for gap in gaps)}")
        print(f"store_failed before {before.get('store_failed', 0)}, during {during['counters'].get('store_failed', 0)}, "
              f"after {after.get('store_failed', 0)}; fenced {after.get('store_fenced', 0)}; longest hold of the loop "
              f"{during['loop_held_ms']:.0f} ms; keys 8 s after: {keys.strip()}")
        last = _safe_lag(crowd.callers)
        print(f"messages the clients still kept at the end, at most {last}; lines lost {crowd.losses()}")
        line_log(crowd.callers)
        server_log(served)


def _safe_lag(callers: list[Caller]) -> int:
    return max((caller.unsafe for caller in callers), default=0)


# --- churn -----------------------------------------------------------------------------------------------------------


async def churn(plan: Plan) -> None:
    """Connections that are aborted at every stage."""
    cycles = plan.rounds or 10_000
    warm_up = max(cycles // 10, 100)
    with Folder() as folder:
        async with Served(folder, sessions=2_000, handshakes=500, resume_ms=1_000) as served:
            rng = random.Random(plan.seed)
            held = []
            for count in (warm_up, *[cycles // 4] * 4):
                began_ms = wall_ms()
                how = await _churn(served, rng, count)
                held.append(await _settled(served))
                told = ", ".join(f"{name} {held[-1][name]}" for name in ("tasks", "fds", "rss_kb", "objects", "sessions"))
                print(f"{count} in {(wall_ms() - began_ms) / 1000:.0f} s: {told}; {dict(how)}", flush=True)
            for name in ("tasks", "fds", "rss_kb", "objects"):
                grown = [100 * (held[-1][name] / held[at][name] - 1) for at in (0, 1)]
                print(f"{name}: since the warming up {grown[0]:+.2f} %, since the first quarter {grown[1]:+.2f} %")
            print("tasks by name:", held[-1]["task_names"])
            print("counters:", held[-1]["counters"])
        server_log(served)


async def _settled(served: Served) -> dict[str, Any]:
    """What it holds once every session that lost its line is over."""
    for _ in range(60):
        held = await served.look(collect=True)
        if held["sessions"] == 0:
            break
        await asyncio.sleep(1.0)
    await asyncio.sleep(3.0)
    return await served.look(collect=True)


async def _churn(served: Served, rng: random.Random, count: int) -> Counter[str]:
    done: Counter[str] = Counter()
    numbers = iter(range(count))

    async def worker() -> None:
        for _ in numbers:
            stage = rng.choice(("tcp", "request", "upgraded", "hello", "welcome", "audio", "talking"))
            how = rng.choice(("rst", "fin", "close"))
            try:
                async with asyncio.timeout(20.0):
                    await abort_at(served.port, stage, how, rng)
                done[stage] += 1
            except (OSError, WebSocketException, TimeoutError) as error:
                done[f"failed: {type(error).__name__}"] += 1

    await asyncio.gather(*(worker() for _ in range(20)))
    return done


async def abort_at(port: int, stage: str, how: str, rng: random.Random) -> None:
    if stage in ("tcp", "request"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        if stage == "request":
            writer.write(b"GET /v1/voice HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConn"[: rng.randint(1, 70)])
            await writer.drain()
        if how == "rst":
            _reset(writer.get_extra_info("socket"))
        writer.transport.abort()
        return
    url = f"ws://127.0.0.1:{port}/v1/voice"
    socket_ = await connect(
        url, subprotocols=[wire.SUBPROTOCOL], compression=None, ping_interval=None, max_queue=None, close_timeout=2
    )
    try:
        if stage == "upgraded":
            return
        await socket_.send(wire.text(HELLO))
        if stage == "hello":
            return
        await socket_.recv()
        if stage == "welcome":
            return
        for seq in range(rng.randint(1, 12)):
            await socket_.send(wire.audio(seq, FRAME))
        if stage == "talking":
            await socket_.send(wire.text({"type": "text", "seq": seq + 1, "text": "101 102 103"}))
            await asyncio.sleep(rng.uniform(0.0, 0.2))
    finally:
        if how == "close":
            await socket_.close(1001 if rng.random() < 0.5 else 1000)
        else:
            if how == "rst":
                _reset(socket_.transport.get_extra_info("socket"))
            socket_.transport.abort()


def _reset(sock: socket.socket | None) -> None:
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# --- stalled ---------------------------------------------------------------------------------------------------------


class Rude:
    """A caller by hand, who keeps no rule; `ended` is how the server answered."""

    def __init__(self, port: int, name: str) -> None:
        self.port, self.name, self.seq = port, name, 0
        self.ended = "still there"
        self.complaints: Counter[str] = Counter()
        self.lasted_ms = 0.0

    async def run(self, work: Callable[[Rude, ClientConnection], Awaitable[None]]) -> None:
        began_ms = wall_ms()
        url = f"ws://127.0.0.1:{self.port}/v1/voice"
        try:
            # Little room in the kernel, so that who does not read is felt soon.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.connect(("127.0.0.1", self.port))
            told: dict[str, Any] = {"compression": None, "ping_interval": None, "max_queue": None, "close_timeout": 1}
            async with connect(url, sock=sock, subprotocols=[wire.SUBPROTOCOL], **told) as socket_:
                await socket_.send(wire.text(HELLO))
                await socket_.recv()
                await work(self, socket_)
        except ConnectionClosed as error:
            self.ended = f"{error.rcvd.code} {error.rcvd.reason!r}" if error.rcvd else "1006"
        finally:
            self.lasted_ms = wall_ms() - began_ms

    def json(self, name: str, **told: Any) -> str:
        """A numbered message."""
        self.seq += 1
        return wire.text({"type": name, "seq": self.seq - 1, **told})

    def audio(self) -> bytes:
        self.seq += 1
        return wire.audio(self.seq - 1, FRAME)

    async def read(self, socket_: ClientConnection) -> None:
        async for message in socket_:
            if isinstance(message, str):
                told = json.loads(message)
                if told["type"] == "error":
                    self.complaints[told["code"]] += 1

    async def flood(self, socket_: ClientConnection, *making: Callable[[], str | bytes], pause_s: float) -> None:
        reading = asyncio.create_task(self.read(socket_))
        try:
            while True:
                for make in making:
                    await socket_.send(make())
                await asyncio.sleep(pause_s)
        finally:
            reading.cancel()


async def _never_reads(rude: Rude, socket_: ClientConnection) -> None:
    """Speaks on and never takes a byte, though the agent talks for ever."""
    await socket_.send(rude.json("text", text="talk for ever"))
    await asyncio.sleep(0.5)
    socket_.transport.pause_reading()
    while not socket_.transport.is_closing():
        await socket_.send(rude.audio())
        await socket_.send(wire.text({"type": "ping", "t_ms": 1}))
        await asyncio.sleep(0.04)


async def _never_writes(rude: Rude, socket_: ClientConnection) -> None:
    await rude.read(socket_)
    raise ConnectionClosed(socket_.protocol.close_rcvd, None)


async def _audio_flood(rude: Rude, socket_: ClientConnection) -> None:
    await rude.flood(socket_, *[rude.audio] * 10, pause_s=0.004)  # 100 times real time


async def _ping_flood(rude: Rude, socket_: ClientConnection) -> None:
    await rude.flood(socket_, *[lambda: wire.text({"type": "ping", "t_ms": 1})] * 10, pause_s=0.01)


async def _text_flood(rude: Rude, socket_: ClientConnection) -> None:
    await rude.flood(socket_, lambda: rude.json("text", text="101 " * 1_000), pause_s=0.005)


async def _interrupt_flood(rude: Rude, socket_: ClientConnection) -> None:
    await rude.flood(
        socket_, lambda: rude.json("text", text="talk for ever"), *[lambda: rude.json("interrupt")] * 4, pause_s=0.025
    )


async def _played_flood(rude: Rude, socket_: ClientConnection) -> None:
    def played() -> str:
        return wire.text({"type": "played", "seq": rude.seq, "ms": 1})

    await rude.flood(socket_, *[played] * 5, lambda: wire.text({"type": "ack", "seq": 7}), pause_s=0.01)


async def _tiny_audio(rude: Rude, socket_: ClientConnection) -> None:
    def tiny() -> bytes:
        rude.seq += 1
        return wire.audio(rude.seq - 1, b"\1\0")

    await rude.flood(socket_, *[tiny] * 20, pause_s=0.005)


RUDE = (
    _never_reads,
    _never_writes,
    _audio_flood,
    _ping_flood,
    _text_flood,
    _interrupt_flood,
    _played_flood,
    _tiny_audio,
)


async def stalled(plan: Plan) -> None:
    """Callers who do not read, do not write, or write far too much; and ten others who must not notice."""
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(10), lambda rng: served.address) as crowd:
            await asyncio.sleep(15.0)
            quiet = await served.look(collect=True)
            began_ms = wall_ms()
            rudes = [Rude(served.port, work.__name__.strip("_")) for work in RUDE for _ in range(plan.rounds or 2)]
            works = [work for work in RUDE for _ in range(plan.rounds or 2)]
            tasks = [asyncio.create_task(rude.run(work)) for rude, work in zip(rudes, works)]
            sizes = []
            for _ in range(12):
                await asyncio.sleep(5.0)
                held = await served.look()
                sizes.append(held["rss_kb"])
                if len(sizes) == 2:
                    print("limits counted:", _sum(held["lines"]))
            ended_ms = wall_ms()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(5.0)
            await crowd.end()
            told = folder.told()
        print(f"RSS before {quiet['rss_kb'] // 1024} MiB, then every 5 s:", *(size // 1024 for size in sizes))
        for rude in rudes:
            print(f"  {rude.name:16s} {rude.lasted_ms / 1000:5.1f} s, {rude.ended}, told {dict(rude.complaints)}")
        for name, from_ms, until_ms in (("before", 0.0, began_ms), ("beside them", began_ms, ended_ms)):
            gaps = [gap for caller in crowd.callers for gap in late_ms(caller.arrivals, from_ms, until_ms)]
            print(times(f"others' reply audio late, {name}", gaps), f"; more than 20 ms: {sum(gap > 20 for gap in gaps)}")
        tell(reckon(crowd.callers, told))
        line_log(crowd.callers)
        server_log(served)


def _sum(counted: list[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counted:
        total.update(one)
    return dict(total)
