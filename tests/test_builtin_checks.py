"""What ships inside passes the checks of its kind, in real and in simulated time."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from far_end import FarEnd, Plan

from beluga_voice import Audio, agent, audio, transport, tts, turn, vad
from beluga_voice.builtin.websocket_transport import WebSocketTransport
from beluga_voice.clock import run_simulated
from beluga_voice.testing import LoudVAD, agent_checks, quiet, transport_checks, tts_checks, turn_checks, vad_checks
from beluga_voice.testing.transport_checks import Line, check_transport

RUNS = pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])


@RUNS
@pytest.mark.parametrize("make", [LoudVAD, lambda: vad.new("energy")], ids=["loud", "energy"])
@pytest.mark.parametrize("check", vad_checks.CHECKS)
def test_vads(make, check, run):
    run(vad_checks.check_vad(make, check))


@RUNS
@pytest.mark.parametrize("check", turn_checks.CHECKS)
def test_the_silence_detector(check, run):
    run(turn_checks.check_turn(lambda: turn.new("silence"), check))


@RUNS
@pytest.mark.parametrize("name", ["echo", "rules"])
@pytest.mark.parametrize("check", agent_checks.CHECKS)
def test_agents(name, check, run):
    run(agent_checks.check_agent(lambda: agent.new(name), check))


@RUNS
@pytest.mark.parametrize("check", tts_checks.CHECKS)
def test_the_tone_voice(check, run):
    run(tts_checks.check_tts(lambda: tts.new("tone"), check))


# --- transports ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def memory():
    line = transport.new("memory")
    yield Line(line, speak=line.speak, hang_up=line.hang_up, lose=line.lose)


@pytest.mark.parametrize("check", transport_checks.CHECKS)
def test_the_memory_line(check):
    assert set(run_simulated(check_transport(memory, check))) <= {"pausing keeps what was sent"}


@RUNS
@pytest.mark.parametrize("check", ["what is said arrives in order", "a lost line is told", "closing frees everything"])
def test_the_memory_line_in_any_time(check, run):
    run(check_transport(memory, check))


@pytest.mark.parametrize("check", transport_checks.CHECKS)
def test_the_file_line(check, tmp_path):
    """Its caller is a recording, which neither hangs up when told to nor is lost."""
    audio.write(tmp_path / "caller.wav", Audio(quiet(200), 16_000))

    @asynccontextmanager
    async def line():
        files = {"input": str(tmp_path / "caller.wav"), "output": str(tmp_path / "call.wav")}
        yield Line(transport.new("file", **files, tail_ms=600_000))

    left_out = run_simulated(check_transport(line, check))
    assert set(left_out) <= {
        *("pausing keeps what was sent", "what is said arrives in order", "hanging up ends recv", "a lost line is told"),
    }


@asynccontextmanager
async def called():
    """A line to a server in memory."""
    far = FarEnd()
    line = WebSocketTransport(url="ws://voice.test/v1/voice", dial=far.dial)

    def speak(pcm):
        for at in range(0, len(pcm), 640):
            far.session.tell(pcm[at : at + 640])

    def hang_up():
        far.session.tell({"type": "bye", "reason": "bye"})
        far.session.wire.end(1000, "bye")

    def lose():
        far.plans.extend([Plan(refuse=True)] * 1_000)
        far.session.wire.cut()

    yield Line(line, speak=speak, hang_up=hang_up, lose=lose)


@pytest.mark.parametrize("check", transport_checks.CHECKS)
def test_the_websocket_line(check):
    assert set(run_simulated(check_transport(called, check))) <= {"pausing keeps what was sent"}
