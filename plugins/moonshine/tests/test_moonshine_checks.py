"""What every recogniser must do, by moonshine, in real and in simulated time."""

import asyncio

import pytest

pytest.importorskip("moonshine_voice", reason="Moonshine is not installed: pip install moonshine-voice==0.1.0")

from beluga_voice import stt
from beluga_voice.clock import run_simulated
from beluga_voice.testing.stt_checks import CHECKS, check_stt


@pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])
@pytest.mark.parametrize("check", CHECKS)
def test_keeps_its_promises(check, run):
    run(check_stt(lambda: stt.new("moonshine"), check))
