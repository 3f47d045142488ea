"""What every voice must do, by espeak, in real and in simulated time."""

import asyncio

import pytest

pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed: pip install espeakng-loader==0.2.4")

from beluga_voice import tts
from beluga_voice.clock import run_simulated
from beluga_voice.testing.tts_checks import CHECKS, check_tts


@pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])
@pytest.mark.parametrize("check", CHECKS)
def test_keeps_its_promises(check, run):
    run(check_tts(lambda: tts.new("espeak"), check))
