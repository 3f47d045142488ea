"""What every voice activity detector must do, by silero, in real and in simulated time."""

import asyncio

import pytest

from beluga_voice import vad
from beluga_voice.clock import run_simulated
from beluga_voice.testing.vad_checks import CHECKS, check_vad


@pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])
@pytest.mark.parametrize("check", CHECKS)
def test_keeps_its_promises(check, run):
    run(check_vad(lambda: vad.new("silero"), check))
