"""How many live calls one server process carries: real WebSockets, 20 ms frames in real time, providers that cost nothing.

usage: python benchmarks/bench_server.py                         50, 100, 200, ... callers until it stops keeping up
       python benchmarks/bench_server.py --sessions 200          one step
       python benchmarks/bench_server.py --speech FOLDER --sessions 30     the embedded providers, recorded people

The server runs as `beluga-voice serve` in a process of its own; the callers are in this one and show how late they were
themselves. FOLDER holds audio/ and labels/ of conversations. What a row tells, in ms where nothing else is said:

    sent late    how late our own frames were (p50 p99): more than a few ms, and the row says little about the server
    answer       last frame of speech sent -> first audio of the reply (p50 p95 p99), less the 700 ms of quiet that end a turn
    underruns    reply audio that came after its playing time, less what our own lateness explains; and the time to spare (p0.1)
    pause, clear speech begins over a reply -> the client is told to pause, to drop the rest (p50 p95)
    pong         a ping's way there and back (p50 p99): what waits in the server waits about as long
    cpu          of the server, in % of a core a session; rss: MB of the server, kB a session over the empty one
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from _load import Load, Seen, noise, recorded

HERE = Path(__file__).parent
STEPS = (50, 100, 200, 300, 400, 500, 600, 800, 1_000)
TURN_END_MS = 700.0
MOST_UNDERRUNS, MOST_GROWTH_MS = 0.001, 100.0
TICKS_A_S = os.sysconf("SC_CLK_TCK")


class Server:
    """`beluga-voice serve` in a process of its own."""

    def __init__(self, *args: str, env: dict[str, str] | None = None) -> None:
        command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "beluga_voice", "serve", "--port", "0", *args]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=HERE, stderr=self.log, env={**os.environ, **(env or {})})
        self.address = self._wait()

    def _wait(self) -> tuple[str, int]:
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            found = re.search(r"serving on http://([\d.]+):(\d+)", self._said())
            if found:
                return found[1], int(found[2])
            time.sleep(0.1)
        raise SystemExit(f"the server did not start:\n{self._said()}")

    def _said(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    @property
    def cpu_s(self) -> tuple[float, float]:
        """Its own and the kernel's for it."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / TICKS_A_S, int(fields[12]) / TICKS_A_S

    @property
    def rss_kb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024

    def stop(self) -> Counter[str]:
        """What its sessions dropped, by name, from the log lines of their ends; and how many there were."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
        counted: Counter[str] = Counter()
        for line in self._said().splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and told.get("event") == "session_ended":
                counted["sessions"] += 1
                counted["turns"] += told["turns"]
                counted.update(told["counters"])
                counted.update({f"errors in {stage}": count for stage, count in told["errors"].items()})
        self.log.close()
        return counted


def share(values: Sequence[float], part: float) -> float:
    """The value that `part` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def shares(values: Sequence[float], *parts: float, less: float = 0.0) -> str:
    return " ".join(f"{share(values, part) - less:6.1f}" for part in parts)


def step(load: Load, server: Server, callers: int, seconds: float, settle: float, empty_kb: float) -> Seen:
    """Hold `callers` calls; what was seen in `seconds` of them."""
    until = time.perf_counter() + 60
    load.run(lambda: time.perf_counter() > until or (len(load.callers) >= callers and not load.joining), callers)
    until = time.perf_counter() + settle
    load.run(lambda: time.perf_counter() > until)
    began, cpu_s, own_s = time.perf_counter(), server.cpu_s, time.process_time()
    load.seen = seen = Seen()
    load.run(lambda: time.perf_counter() > began + seconds)
    took = time.perf_counter() - began
    user, kernel = ((now - then) / took * 100 for now, then in zip(server.cpu_s, cpu_s))
    own = (time.process_time() - own_s) / took * 100
    live, counts = max(load.live, 1), seen.counts
    for part in (
        f"{live:4d} calls: sent late {shares(seen.sending, 0.5, 0.99)}",
        f"answer {shares(seen.answer, 0.5, 0.95, 0.99, less=TURN_END_MS)} of {len(seen.answer)}",
        f"underruns {late(seen)} of {len(seen.margin)}, to spare {share(seen.margin, 0.001):.0f}",
        f"pause {shares(seen.pause, 0.5, 0.95)}, clear {shares(seen.clear, 0.5, 0.95)} of {counts['barge_ins']}",
        f"pong {shares(seen.pong, 0.5, 0.99)}",
        f"cpu {user + kernel:.0f} % (kernel {kernel:.0f}), {(user + kernel) / live:.3f} a session (callers' own {own:.0f})",
        f"rss {server.rss_kb / 1024:.0f} MB, {(server.rss_kb - empty_kb) / live:.0f} kB a session",
        f"load {os.getloadavg()[0]:.1f}\n",
    ):
        print(part, end="" if part.endswith("\n") else " | ", flush=True)
    others = {name: counts[name] for name in ("unanswered", "answered_early", "blocked", "underruns_ours") if counts[name]}
    if others or seen.told:
        print("     ", others, dict(seen.told), flush=True)
    return seen


def late(seen: Seen) -> int:
    """How many pieces of reply audio came too late, less those that our own lateness explains."""
    return seen.counts["underruns"] - seen.counts["underruns_ours"]


def keeps_up(seen: Seen, first: Seen) -> bool:
    grown_ms = share(seen.answer, 0.99) - share(first.answer, 0.99)
    return late(seen) <= MOST_UNDERRUNS * len(seen.margin) and grown_ms <= MOST_GROWTH_MS


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sessions", help="only steps with so many callers, like 200 or 5,10,20")
    options.add_argument("--seconds", type=float, default=15.0, help="how long a step is measured")
    options.add_argument("--settle", type=float, default=8.0, help="how long new callers are not measured")
    options.add_argument("--barge-in", type=float, default=0.25, help="the share of replies that are interrupted")
    options.add_argument("--speech", type=Path, help="recorded speech; the embedded providers answer")
    options.add_argument("--serve", nargs=argparse.REMAINDER, help="what to give `beluga-voice serve` instead")
    told = options.parse_args()
    steps = tuple(map(int, told.sessions.split(","))) if told.sessions else STEPS
    if told.speech:
        utterances = recorded(told.speech)
        server = Server(*(told.serve or ()))
        load = Load(server.address, lambda rng: rng.choice(utterances), barge_in=0.0)
    else:
        server = Server(*(told.serve or ("_answering:manager",)))
        load = Load(server.address, noise, barge_in=told.barge_in)
    try:
        time.sleep(0.5)
        empty_kb = server.rss_kb
        print(f"empty server: {empty_kb / 1024:.0f} MB; load {os.getloadavg()[0]:.1f}", flush=True)
        first: Seen | None = None
        for callers in steps:
            seen = step(load, server, callers, told.seconds, told.settle, empty_kb)
            first = first or seen
            if not keeps_up(seen, first):
                print(f"with {callers} it does not keep up")
                if not told.sessions:
                    break
        if load.refused:
            print(f"refused: {dict(load.refused)}, within {max(load.refused_ms):.0f} ms")
        load.hang_up()
    finally:
        print("the server's own counts:", dict(server.stop()))


if __name__ == "__main__":
    main()
