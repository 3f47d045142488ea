# ruff: noqa: ASYNC110
"""Scenarios of broken lines and dead processes: cuts, roam, dead, mute, kill, drain."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import attrs
from _chaos_books import Books, reckon, share
from _chaos_caller import Caller
from _chaos_served import Folder, Redis, Served
from _chaos_wire import Wire

PHASES = ("idle", "speaking", "waiting", "hearing")
ENDING_S = 90.0


@attrs.frozen
class Plan:
    seed: int = 1
    sessions: int = 0
    rounds: int = 0

    def count(self, usual: int) -> int:
        return self.sessions or usual


class Crowd:
    """Callers on wires of their own, in one task group."""

    def __init__(self, plan: Plan, count: int, targets: Callable[[random.Random], tuple[str, int] | None]) -> None:
        self.rng = random.Random(plan.seed)
        self.callers: list[Caller] = []
        self.wires: list[Wire] = []
        for number in range(count):
            rng = random.Random(f"{plan.seed} {number}")
            wire = Wire(lambda rng=rng: targets(rng))  # type: ignore[misc]
            self.wires.append(wire)
            self.callers.append(Caller(number, wire, rng))

    async def __aenter__(self) -> Crowd:
        self._stack = AsyncExitStack()
        for wire in self.wires:
            await self._stack.enter_async_context(wire)
        self._tasks = [asyncio.create_task(caller.run(), name=f"caller {caller.number}") for caller in self.callers]
        await self.until(lambda: all(caller.doing != "dialling" or caller.failure for caller in self.callers))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._stack.aclose()

    async def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            print("  (gave up waiting)")

    async def end(self) -> None:
        """Let everybody hear the last answer and hang up."""
        for caller in self.callers:
            caller.stop = True
        done, late = await asyncio.wait(self._tasks, timeout=ENDING_S)
        for task in done:
            task.result()
        for task in late:
            print("  (a caller does not end)", task.get_name())

    def gaps_ms(self) -> list[float]:
        return [event["gap_ms"] for caller in self.callers for _, event in caller.line if event["state"] == "resumed"]

    def losses(self) -> int:
        return sum(event["state"] == "lost" for caller in self.callers for _, event in caller.line)

    def resumes(self) -> int:
        return sum(event["state"] == "resumed" for caller in self.callers for _, event in caller.line)


def times(name: str, values: Sequence[float]) -> str:
    return (
        f"{name}: n {len(values)}, p50 {share(values, 0.5):.0f}, p95 {share(values, 0.95):.0f}, "
        f"p99 {share(values, 0.99):.0f}, max {max(values, default=0.0):.0f} ms"
    )


def tell(books: Books, *lines: str) -> None:
    print(books.row())
    for line in lines:
        print(line)
    for note in books.notes[:40]:
        print("  !", note)
    if len(books.notes) > 40:
        print(f"  ! and {len(books.notes) - 40} more")


def line_log(callers: Sequence[Caller]) -> None:
    """The last words of clients whose session was lost."""
    for caller in [one for one in callers if one.end_reason != "bye"][:5]:
        print(f"  caller {caller.number}, counters {dict(caller.counters)}:")
        end_ms = caller.line[-1][0] if caller.line else 0.0
        for at_ms, event in caller.line[-8:]:
            shown = {key: value for key, value in event.items() if key not in ("type", "session_id")}
            print(f"    {at_ms - end_ms:8.0f}", shown)


def server_log(*served: Served) -> None:
    for one in served:
        usual = ("draining", "serving on", "held the event loop")
        strange = [line for line in one.lines if not any(name in line for name in usual)]
        held = sum("held the event loop" in line for line in one.lines)
        if held:
            print(f"  server {one.port}: its loop was held for more than 50 ms {held} times")
        if strange:
            print(f"  server {one.port} wrote {len(strange)} lines; the last:", *strange[-12:], sep="\n    ")


# --- cuts ------------------------------------------------------------------------------------------------------------


async def cuts(plan: Plan) -> None:
    """Connections cut at random moments, while the process lives."""
    rounds = plan.rounds or 20
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(50), lambda rng: served.address) as crowd:
            await asyncio.gather(*(_cutter(caller, wire, rounds) for caller, wire in zip(crowd.callers, crowd.wires)))
            await crowd.end()
            held = await served.look()
            told = folder.told()
            lines = [line for line in told if line.get("event") == "closed"]
        total = sum((wire.cuts for wire in crowd.wires), start=crowd.wires[0].cuts.__class__())
        books = reckon(crowd.callers, told)
        tell(
            books,
            f"cuts {total.total()} {dict(total)}; noticed {crowd.losses()}, resumed {crowd.resumes()} "
            f"({100 * crowd.resumes() / max(1, crowd.losses()):.2f} %)",
            *_by_kind(crowd.callers),
            times("noticed -> welcome, all", crowd.gaps_ms()),
            f"server: {held['counters']}; {_summed(lines)}",
        )
        line_log(crowd.callers)
        server_log(served)


def _by_kind(callers: Sequence[Caller]) -> list[str]:
    """How long coming back took, by what had happened."""
    found: dict[str, list[float]] = {}
    for caller in callers:
        up_ms = 0.0
        for at, event in caller.line:
            if event["state"] == "lost":
                kind = next((kind for mark_ms, kind in reversed(caller.marks) if mark_ms <= at), "?")
                kind = kind if kind in ("outage", "handshake") else "cut"
                if kind == "cut" and at - up_ms < 2_000.0:
                    kind = "cut again within 2 s"
            elif event["state"] == "resumed":
                found.setdefault(kind, []).append(event["gap_ms"])
            if event["state"] in ("connected", "resumed"):
                up_ms = at
    return [times(f"noticed -> welcome, {kind}", values) for kind, values in sorted(found.items())]


def _summed(lines: list[dict]) -> dict[str, int]:  # type: ignore[type-arg]
    total: dict[str, int] = {}
    for line in lines:
        for name, count in {**line.get("counters", {}), **line.get("line", {})}.items():
            if count:
                total[name] = total.get(name, 0) + count
    return total


async def _cutter(caller: Caller, wire: Wire, rounds: int) -> None:
    """Cut a caller's line so many times, each time at another kind of moment."""
    rng, done = caller.rng, 0
    while done < rounds and caller.doing != "gone":
        kind = rng.choice((*PHASES, "hearing", "speaking", "any", "twice", "handshake", "outage"))
        how = rng.choice(("rst", "rst", "fin"))
        if kind in PHASES:
            await _phase(caller, kind)
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        if not wire.pairs:
            await asyncio.sleep(0.1)
            continue
        caller.marks.append((_now_ms(), kind))
        if kind == "outage":
            wire.outage = True
            done += bool(wire.cut(how))
            await asyncio.sleep(rng.choice((0.3, 1.0, 2.5, 20.0 if rng.random() < 0.3 else 5.0)))
            wire.outage = False
        elif kind == "handshake":
            wire.cut_after = rng.randint(1, 1_400)
            done += 1 + bool(wire.cut(how))
        else:
            done += bool(wire.cut(how))
            if kind == "twice":
                await asyncio.sleep(rng.uniform(0.0, 0.4))
                done += bool(wire.cut(how))
        await asyncio.sleep(rng.uniform(0.5, 4.0))


async def _phase(caller: Caller, kind: str, seconds: float = 8.0) -> None:
    for _ in range(int(seconds / 0.02)):
        if caller.doing in (kind, "gone"):
            return
        await asyncio.sleep(0.02)


# --- dead ------------------------------------------------------------------------------------------------------------


async def dead(plan: Plan) -> None:
    """The wire passes nothing on any more, and tells nobody."""
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(20), lambda rng: served.address) as crowd:
            noticed: list[float] = []
            stalled: dict[str, float] = {}

            async def stall(caller: Caller, wire: Wire) -> None:
                for phase in ("speaking", "hearing", "idle")[: plan.rounds or 3]:
                    await _phase(caller, phase)
                    await asyncio.sleep(caller.rng.uniform(0.0, 0.5))
                    at_ms = _now_ms()
                    wire.stall()
                    stalled.setdefault(caller.session_id, at_ms)
                    losses = sum(event["state"] == "lost" for _, event in caller.line)
                    while sum(event["state"] == "lost" for _, event in caller.line) == losses and caller.doing != "gone":
                        await asyncio.sleep(0.02)
                    noticed.append(_now_ms() - at_ms)
                    await asyncio.sleep(caller.rng.uniform(6.0, 9.0))

            await asyncio.gather(*(stall(caller, wire) for caller, wire in zip(crowd.callers, crowd.wires)))
            await crowd.end()
            told = folder.told()
        tell(
            reckon(crowd.callers, told),
            times("the client noticed after", noticed),
            times("noticed -> welcome", crowd.gaps_ms()),
            f"resumed {crowd.resumes()} of {crowd.losses()}",
        )
        server_log(served)
    await _dead_server(plan)


async def _dead_server(plan: Plan) -> None:
    """The same, and the client cannot come back: when does the server notice?"""
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(20), lambda rng: served.address) as crowd:
            await asyncio.sleep(2.0)
            stalled: dict[str, float] = {}
            for caller, wire in zip(crowd.callers, crowd.wires):
                await asyncio.sleep(0.1)
                wire.outage = True
                wire.stall()
                stalled[caller.session_id] = _now_ms()
            await asyncio.sleep(14.0)
            told = [line for line in folder.told() if line["event"] == "line_lost"]
            noticed = [line["at_ms"] - stalled[line["session"]] for line in told if line["session"] in stalled]
            for wire in crowd.wires:
                wire.outage = False
            await crowd.end()
            told = folder.told()
        tell(reckon(crowd.callers, told), times("the server noticed after", noticed))
        server_log(served)


def _now_ms() -> float:
    from beluga_voice.clock import wall_ms

    return wall_ms()


# --- mute ------------------------------------------------------------------------------------------------------------


async def mute(plan: Plan) -> None:
    """Callers whose microphone stops in mid-word."""
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(20), lambda rng: served.address) as crowd:
            waited: list[float] = []

            async def silence(caller: Caller) -> None:
                for _ in range(plan.rounds or 3):
                    await _phase(caller, "idle", 20.0)
                    await _phase(caller, "speaking", 20.0)
                    await asyncio.sleep(caller.rng.uniform(0.25, 0.38))
                    caller.mute, at_ms = True, _now_ms()
                    caller.cut_short()
                    replies = caller.told["reply_start"]
                    while caller.told["reply_start"] == replies and _now_ms() - at_ms < 10_000:
                        await asyncio.sleep(0.02)
                    waited.append(_now_ms() - at_ms)
                    await asyncio.sleep(1.0)
                    caller.mute = False

            await asyncio.gather(*(silence(caller) for caller in crowd.callers))
            await crowd.end()
            told = folder.told()
        tell(reckon(crowd.callers, told), times("mute -> reply", waited), "(the word that was cut counts as clipped)")
        server_log(served)


# --- processes -------------------------------------------------------------------------------------------------------


def _living(servers: Sequence[Served]) -> Callable[[random.Random], tuple[str, int] | None]:
    def target(rng: random.Random) -> tuple[str, int] | None:
        alive = [one for one in servers if one.alive]
        return rng.choice(alive).address if alive else None

    return target


Work = Callable[[Crowd, list[Served], Folder], Awaitable[None]]


async def _two(plan: Plan, count: int, work: Work, **environment: object) -> None:
    """Two processes over one Redis, with callers in front."""
    with Folder() as folder:
        async with Redis() as redis, AsyncExitStack() as stack:
            servers = [Served(folder, redis=redis.url, **environment) for _ in range(2)]
            for served in servers:
                await stack.enter_async_context(served)
            async with Crowd(plan, count, _living(servers)) as crowd:
                await work(crowd, servers, folder)
                await crowd.end()
                told = folder.told()
                kinds = [line["kind"] for line in told if line.get("event") == "resumed"]
                tell(
                    reckon(crowd.callers, told),
                    f"lines lost {crowd.losses()}, resumed {crowd.resumes()} "
                    f"(hot {kinds.count('hot')}, warm {kinds.count('warm')})",
                    times("noticed -> welcome", crowd.gaps_ms()),
                    f"closed: {_reasons(told)}",
                )
                for one in servers:
                    if one.alive:
                        print("server", (await one.look())["counters"])
                line_log(crowd.callers)
                server_log(*servers)


def _reasons(told: list[dict]) -> dict[str, int]:  # type: ignore[type-arg]
    reasons: dict[str, int] = {}
    for line in told:
        if line.get("event") == "closed":
            reasons[line["reason"]] = reasons.get(line["reason"], 0) + 1
    return reasons


async def kill(plan: Plan) -> None:
    """kill -9, again and again; the other process takes over."""

    async def work(crowd: Crowd, servers: list[Served], folder: Folder) -> None:
        hit = 0
        for round_ in range(plan.rounds or 10):
            await asyncio.sleep(crowd.rng.uniform(4.0, 7.0))
            doomed = servers[round_ % 2]
            hit += sum(any(pair.target == doomed.address for pair in wire.pairs) for wire in crowd.wires)
            await doomed.kill()
            for wire in crowd.wires:
                for pair in tuple(wire.pairs):
                    if pair.target == doomed.address:
                        pair.end("rst")
            await asyncio.sleep(crowd.rng.uniform(0.0, 2.0))
            await doomed.start()
        await asyncio.sleep(3.0)
        print(f"killed {plan.rounds or 10} times; sessions hit {hit}")

    await _two(plan, plan.count(40), work)


async def roam(plan: Plan) -> None:
    """Cuts where both processes live, and the caller comes back to either."""

    async def work(crowd: Crowd, servers: list[Served], folder: Folder) -> None:
        await asyncio.gather(*(_cutter(caller, wire, plan.rounds or 12) for caller, wire in zip(crowd.callers, crowd.wires)))

    await _two(plan, plan.count(40), work)


async def drain(plan: Plan) -> None:
    """SIGTERM under talking callers: alone, with another process, and twice."""
    print("--- alone")
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(60), lambda rng: served.address) as crowd:
            await asyncio.sleep(crowd.rng.uniform(6.0, 9.0))
            at_ms = _now_ms()
            served.signal(signal.SIGTERM)
            code = await served.wait()
            took_ms = _now_ms() - at_ms
            for caller in crowd.callers:
                caller.stop = True
            await asyncio.sleep(1.0)
            told = folder.told()
            seen = sum(bool(caller.told["goaway"]) for caller in crowd.callers)
        books = reckon(crowd.callers, told)
        print(f"exit code {code} after {took_ms:.0f} ms; goaway seen by {seen} of {len(crowd.callers)}; closed", _reasons(told))
        print(_answers_lost(told))
        books.notes.clear()
        tell(books, "(callers are cut off in mid-speech here: nobody else is there to go to)")
        server_log(served)

    print("--- with another process and Redis")

    async def work(crowd: Crowd, servers: list[Served], folder: Folder) -> None:
        for served in servers[: plan.rounds or 2]:
            await asyncio.sleep(crowd.rng.uniform(6.0, 9.0))
            served.alive = False
            at_ms = _now_ms()
            served.signal(signal.SIGTERM)
            code = await served.wait()
            print(f"exit code {code} after {_now_ms() - at_ms:.0f} ms")
            await served.start()
        await asyncio.sleep(3.0)
        print(f"goaway seen {sum(caller.told['goaway'] for caller in crowd.callers)} times")
        moved = sum(event.get("moved", False) for caller in crowd.callers for _, event in caller.line)
        print(f"moved with the old line still up: {moved}")

    await _two(plan, plan.count(60), work)
    print("--- a second signal")
    with Folder() as folder:
        async with Served(folder) as served, Crowd(plan, plan.count(60), lambda rng: served.address) as crowd:
            await asyncio.sleep(4.0)
            served.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            at_ms = _now_ms()
            served.signal(signal.SIGTERM)
            print(f"exit code {await served.wait()} {_now_ms() - at_ms:.0f} ms after the second signal")


def _answers_lost(told: list[dict]) -> str:  # type: ignore[type-arg]
    """Turns whose answer was under way at the end and did not come to its end."""
    heard = [(line["session"], line["turn"]) for line in told if line["event"] == "turn_heard"]
    ended = {(line["session"], line["turn"]): line for line in told if line["event"] == "turn_finished"}
    cut = [key for key in heard if key not in ended or ended[key]["interrupted"]]
    return f"turns that were being answered {len(set(heard))}, of them not answered to their end {len(set(cut))}: {cut[:10]}"
