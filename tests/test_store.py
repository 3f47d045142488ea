"""The memory store: bytes with a time to live, bounded."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import store
from beluga_voice.clock import run_simulated
from beluga_voice.errors import OptionError

moves = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.integers(1, 500)),
        st.tuples(st.just("get"), st.sampled_from("abcd"), st.just(0)),
        st.tuples(st.just("delete"), st.sampled_from("abcd"), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 300)),
    ),
    max_size=40,
)


@given(moves)
def test_is_its_model(moves):
    """Any run of moves does what a dict of values and deadlines does."""

    async def main():
        kept, now_ms = {}, 0
        sessions = store.new("memory")
        for number, (move, key, ms) in enumerate(moves):
            live = key in kept and kept[key][0] > now_ms
            if move == "put":
                kept[key] = (now_ms + ms, str(number).encode())
                await sessions.put(key, str(number).encode(), ttl_ms=ms)
            elif move == "get":
                assert await sessions.get(key) == (kept[key][1] if live else None)
            elif move == "delete":
                assert await sessions.delete(key) is live
                kept.pop(key, None)
            else:
                now_ms += ms
                await asyncio.sleep(ms / 1_000)

    run_simulated(main())


def test_beyond_its_bound_the_oldest_is_forgotten_and_counted():
    """What has expired makes room first, uncounted."""

    async def main():
        sessions = store.new("memory", max_entries=2)
        await sessions.put("old", b"1", ttl_ms=10)
        await sessions.put("first", b"2", ttl_ms=60_000)
        await asyncio.sleep(0.02)
        await sessions.put("second", b"3", ttl_ms=60_000)
        assert sessions.forgotten == 0
        await sessions.put("first", b"4", ttl_ms=60_000)  # again: now the newest
        await sessions.put("third", b"5", ttl_ms=60_000)
        return [await sessions.get(key) for key in ("old", "first", "second", "third")], sessions.forgotten

    assert run_simulated(main()) == ([None, b"4", None, b"5"], 1)


def test_a_wrong_option_is_refused():
    with pytest.raises(OptionError, match="max_entries"):
        store.new("memory", max_entries=0)
