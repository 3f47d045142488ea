"""What happens when everything breaks: real WebSockets on loopback, a server in another process, a wire that is cut.

    python benchmarks/chaos.py cuts            1,000 connection cuts at random moments, 50 callers
    python benchmarks/chaos.py roam            the same with two processes: the caller comes back to either
    python benchmarks/chaos.py kill            kill -9 under 40 callers, two processes, one Redis
    python benchmarks/chaos.py dead            lines that die without a word
    python benchmarks/chaos.py redis-stop      Redis is stopped for 20 s under live calls
    python benchmarks/chaos.py churn           10,000 connections, aborted at every stage
    python benchmarks/chaos.py drain           SIGTERM under 60 callers; with a second process; twice
    python benchmarks/chaos.py stalled         callers who do not read, do not write, or write far too much
    python benchmarks/chaos.py mute            microphones that stop in mid-word

Each prints a few figures and stops by itself. Every word said is a number and sounds so (_chaos_words.py): a lost, clipped or
doubled one is seen exactly, in both directions.
"""

from __future__ import annotations

import argparse
import asyncio
import os

import _chaos_cuts
import _chaos_load
from _chaos_cuts import Plan

SCENARIOS = {
    "cuts": _chaos_cuts.cuts,
    "roam": _chaos_cuts.roam,
    "kill": _chaos_cuts.kill,
    "dead": _chaos_cuts.dead,
    "drain": _chaos_cuts.drain,
    "mute": _chaos_cuts.mute,
    "redis-stop": _chaos_load.redis_stop,
    "churn": _chaos_load.churn,
    "stalled": _chaos_load.stalled,
}
LONGEST_S = 540.0


def main() -> None:
    told = argparse.ArgumentParser(description="What happens when everything breaks.")
    told.add_argument("name", choices=sorted(SCENARIOS))
    told.add_argument("--seed", type=int, default=1)
    told.add_argument("--sessions", type=int, default=0, help="0: as many as the scenario usually has")
    told.add_argument("--rounds", type=int, default=0, help="cuts, kills or cycles for each; 0: the usual")
    given = told.parse_args()
    print(f"=== {given.name}, seed {given.seed}, load {' '.join(f'{load:.1f}' for load in os.getloadavg())}", flush=True)

    async def run() -> None:
        async with asyncio.timeout(LONGEST_S):
            await SCENARIOS[given.name](Plan(given.seed, given.sessions, given.rounds))

    asyncio.run(run())
    print(f"=== done, load {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
