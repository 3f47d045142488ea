"""Two chains for one conversation: a speech-to-speech model, and a cascade of recogniser, agent and voice.

A policy is asked at every turn boundary which of them goes on. It is the session's conversation that goes on: both have the
history, and nothing of what the caller says is missed.

>>> policy = on_tool_overload(threshold=3, back_after_turns=2)
>>> policy(Situation("s2s", tool_calls=4)), policy(Situation("cascade", turns=1)), policy(Situation("cascade", turns=2))
('cascade', 'cascade', 's2s')
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs

from .chain import Chain, Stage
from .engine import Engine
from .errors import ChainError
from .events import SessionEvent
from .frames import ToolCalled
from .options import option

__all__ = ["HandOver", "Hybrid", "HybridOptions", "Mode", "Policy", "Situation", "on_tool_overload"]

Mode = Literal["s2s", "cascade"]
MODES: tuple[Mode, ...] = ("s2s", "cascade")


@attrs.frozen
class HybridOptions:
    """When a cascade and a speech-to-speech model change places: the `[hybrid]` table."""

    start: str = option("s2s", "which of them begins", choices=MODES)
    tool_overload: int = option(3, "tools called in one turn, from which on the cascade takes the next ones", at_least=1)
    back_after_turns: int = option(2, "turns of the cascade until the model is tried again", at_least=1)


@attrs.frozen
class Situation:
    """What a policy decides by, at the end of a turn.

    Attributes:
        mode: who has made this turn's answer: "s2s" or "cascade".
        tool_calls: how many tools it called.
        errors: how many errors there were in it.
        turns: how many turns are over since the last hand-over, or since the beginning; this one included.
    """

    mode: Mode
    tool_calls: int = 0
    errors: int = 0
    turns: int = 1


Policy = Callable[[Situation], str]


def on_tool_overload(threshold: int = 3, back_after_turns: int = 2) -> Policy:
    """The policy by which a turn that called at least `threshold` tools makes the cascade take the next ones.

    It hands back after `back_after_turns` turns, unless the last of them needed as many tools.

    Raises:
        ValueError: a number below 1.
    """
    if threshold < 1 or back_after_turns < 1:
        raise ValueError(f"on_tool_overload({threshold}, {back_after_turns}): expected numbers of at least 1")

    def policy(so_far: Situation) -> str:
        overloaded = so_far.tool_calls >= threshold
        if so_far.mode == "s2s":
            return "cascade" if overloaded else "s2s"
        return "s2s" if so_far.turns >= back_after_turns and not overloaded else "cascade"

    return policy


class Hybrid(Chain):
    """Two chains, wherever a chain is taken: `SessionManager(Hybrid(cascade=..., s2s=...))`.

    When the speech-to-speech model cannot be had, the cascade takes over, whatever the policy says; a turn that is left
    without an answer is answered by it.

    Args:
        cascade: a chain with an agent.
        s2s: a chain with a speech-to-speech model.
        policy: given the situation at the end of a turn, the mode of the next one; `on_tool_overload()` if left out.
        start: the mode in which a session begins.

    Raises:
        ChainError: `cascade` has no agent, or `s2s` no speech-to-speech model.
        ValueError: `start` is no mode.
    """

    def __init__(self, *, cascade: Chain, s2s: Chain, policy: Policy | None = None, start: str = "s2s") -> None:
        for name, chain, kind in (("cascade", cascade, "agent"), ("s2s", s2s, "s2s")):
            if not isinstance(chain, Chain) or isinstance(chain, Hybrid):
                raise TypeError(f"Hybrid: {name} is {chain!r}; expected a Chain")
            if chain.stage(kind) is None:
                raise ChainError(f"Hybrid: {name}={chain!r} has no {kind}; put one into it", stage=kind)
        if start not in MODES:
            raise ValueError(f"Hybrid: start is {start!r}; expected one of {', '.join(MODES)}")
        self.chains: dict[Mode, Chain] = {"s2s": s2s, "cascade": cascade}
        self.policy = policy or on_tool_overload()
        self.start: Mode = MODES[MODES.index(start)]
        self.stages: tuple[Stage, ...] = self.chains[self.start].stages

    def __repr__(self) -> str:
        return f"Hybrid(cascade={self.chains['cascade']!r}, s2s={self.chains['s2s']!r}, start={self.start!r})"

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines behind the stages of both."""
        every = {id(engine): engine for chain in self.chains.values() for engine in chain.engines}
        return tuple(every.values())


class HandOver:
    """When one session goes from one chain to the other: hears its events, and asks the policy.

    Args:
        hybrid: the two chains.
        tell: announces an event: `tell(name, turn_index, **data)`.

    Attributes:
        mode: the chain in use.
    """

    def __init__(self, hybrid: Hybrid, tell: Callable[..., None]) -> None:
        self.hybrid, self.mode = hybrid, hybrid.start
        self._tell = tell
        self._next: tuple[Mode, str] | None = None
        self._tool_calls = self._errors = self._turns = 0

    @property
    def due(self) -> Mode | None:
        """The mode to go on in at the next turn boundary; None: no other."""
        return self._next[0] if self._next is not None else None

    def take(self) -> Chain:
        """Go over to the mode that is due: the chain to go on with."""
        assert self._next is not None
        old, (self.mode, why), self._next = self.mode, self._next, None
        self._turns = 0
        self._tell("handed_over", -1, old=old, new=self.mode, why=why)
        return self.hybrid.chains[self.mode]

    def on_event(self, event: SessionEvent) -> None:
        """Note what happens in the session."""
        if event.name == "tool":
            self._tool_calls += isinstance(event.data["tool"], ToolCalled)
        elif event.name == "error":
            self._errors += 1
            if event.data["stage"] == "s2s" and self.mode == "s2s":
                self._next = ("cascade", "failure")
        elif event.name == "turn_finished":
            self._turns += 1
            so_far = Situation(self.mode, self._tool_calls, self._errors, self._turns)
            self._tool_calls = self._errors = 0
            if self._next is None or self._next[1] != "failure":
                self._ask(so_far)

    def _ask(self, so_far: Situation) -> None:
        self._next = None
        try:
            wanted = self.hybrid.policy(so_far)
            if wanted not in MODES:
                raise ValueError(f"it gave {wanted!r}; expected one of {', '.join(MODES)}")
        except Exception as error:
            self._tell("warning", -1, message=f"the hybrid's policy failed: {type(error).__name__}: {error}")
            return
        if wanted != self.mode:
            self._next = (MODES[MODES.index(wanted)], "policy")
