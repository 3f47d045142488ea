"""The microphone and the loudspeaker, on devices made for the test; and the command `call`."""

import asyncio
import contextlib
import sys
import threading
import types
import wave

import pytest
from far_end import FarEnd, Plan

from beluga_voice import client
from beluga_voice.cli import main as command
from beluga_voice.errors import ConfigError, SessionError
from beluga_voice.server.serving import running
from beluga_voice.testing import quiet, speech

URL = "ws://voice.test/v1/voice"
BLOCK = 640


class Devices(types.ModuleType):
    """A `sounddevice` whose streams are worked by hand."""

    class PortAudioError(Exception):
        pass

    def __init__(self, fails=""):
        super().__init__("sounddevice")
        self.open, self.fails, self.closed = {}, fails, []
        self.RawInputStream = lambda **options: self.stream("input", options)
        self.RawOutputStream = lambda **options: self.stream("output", options)

    def stream(self, kind, options):
        if kind == self.fails:
            raise self.PortAudioError("no such device")
        self.open[kind] = options
        return types.SimpleNamespace(start=lambda: None, close=lambda: self.closed.append(kind))

    def speak(self, *blocks):
        """The microphone hears this; called from a thread of the device's."""
        for block in blocks:
            self.open["input"]["callback"](memoryview(block), len(block) // 2, None, None)

    def listen(self, blocks):
        """What the loudspeaker is given."""
        heard = b""
        for _ in range(blocks):
            block = bytearray(b"\x7f" * BLOCK)
            self.open["output"]["callback"](memoryview(block), BLOCK // 2, None, None)
            heard += block
        return heard


def in_thread(work, *args):
    """Do it in another thread, as a device would."""
    thread = threading.Thread(target=work, args=args)
    thread.start()
    thread.join()


@pytest.fixture
def devices(monkeypatch):
    made = Devices()
    monkeypatch.setitem(sys.modules, "sounddevice", made)
    return made


def connect(far, **more):
    return client.connect(URL, dial=far.dial, **{"paced": False, **more})


class TestMicrophone:
    def test_what_is_spoken_is_sent_and_what_comes_is_played(self, devices):
        """Both ways, in order, and nothing after the end."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                async with client.microphone(call):
                    assert devices.open["input"]["samplerate"] == 16_000
                    blocks = [bytes([number, 0]) * 320 for number in range(20)]
                    in_thread(devices.speak, *blocks)
                    far.session.tell(b"\x05\x00" * 320)
                    await asyncio.sleep(0.1)
                    heard = devices.listen(2)
                in_thread(devices.speak, blocks[0])
                await asyncio.sleep(0.05)
                return far.session.heard_audio == b"".join(blocks), heard, devices.closed

        same, heard, closed = asyncio.run(main())
        assert same
        assert heard == b"\x05\x00" * 320 + bytes(BLOCK)
        assert sorted(closed) == ["input", "output"]

    def test_a_call_that_takes_nothing_bounds_what_is_kept(self, devices):
        """Beyond 5 s the oldest is dropped and counted; the device never waits."""

        async def main():
            far = FarEnd()
            async with connect(far) as call, client.microphone(call) as sound:
                in_thread(devices.speak, *[bytes([number % 250, 0]) * 320 for number in range(260)])
                dropped_ms = sound.dropped_ms
                await asyncio.sleep(0.2)
                return dropped_ms, far.session.heard_audio[:2]

        assert asyncio.run(main()) == (200, b"\x0a\x00")

    @pytest.mark.parametrize("kind", ["input", "output"])
    def test_a_device_that_cannot_be_opened(self, monkeypatch, kind):
        """The message tells how to find the right one, and the other device is closed."""
        devices = Devices(fails=kind)
        monkeypatch.setitem(sys.modules, "sounddevice", devices)

        async def main():
            async with connect(FarEnd()) as call, client.microphone(call, input_device=3, output_device=3):
                pass

        with pytest.raises(ConfigError, match=r"device 3.*python -m sounddevice"):
            asyncio.run(main())
        assert devices.closed == list(devices.open)

    def test_without_sounddevice(self, monkeypatch):
        """The message names what to install."""
        monkeypatch.setitem(sys.modules, "sounddevice", None)

        async def main():
            async with connect(FarEnd()) as call, client.microphone(call):
                pass

        with pytest.raises(ConfigError, match=r"pip install 'beluga-voice\[microphone\]'"):
            asyncio.run(main())

    def test_a_call_that_plays_by_the_clock(self, devices):
        """Two that take the sound would each get half of it."""

        async def main():
            async with connect(FarEnd(), paced=True) as call, client.microphone(call):
                pass

        with pytest.raises(SessionError, match="paced=False"):
            asyncio.run(main())

    def test_cancelled_while_talking(self, devices):
        """The devices are closed and no task is left."""

        async def main():
            async def use():
                async with connect(FarEnd(Plan())) as call, client.microphone(call):
                    await asyncio.sleep(100)

            task = asyncio.create_task(use())
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
            return [one.get_name() for one in asyncio.all_tasks() if one.get_name().startswith("client-")]

        assert asyncio.run(main()) == []
        assert sorted(devices.closed) == ["input", "output"]


def record(path):
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(quiet(100) + speech(500) + quiet(300))
    return str(path)


@contextlib.asynccontextmanager
async def serving():
    from test_client_calls import chain

    from beluga_voice import server
    from beluga_voice.manager import SessionManager

    async with running(server.app(SessionManager(chain(), idle_timeout_ms=5_000))) as url:
        yield f"ws{url.removeprefix('http')}/v1/voice"


class TestCommand:
    def test_shows_the_conversation(self, tmp_path, capsys):
        """What both said, in lines; both sides in a file; exit code 0."""
        caller, output = record(tmp_path / "caller.wav"), str(tmp_path / "call.wav")

        async def main():
            async with serving() as url:
                return await asyncio.to_thread(command, ["call", url, caller, "-o", output])

        assert asyncio.run(main()) == 0
        out, err = capsys.readouterr()
        assert err == ""
        told = [line.split(None, 1)[1] for line in out.splitlines() if line[:1] == " "]
        assert told[0].startswith("line      connected: session ")
        assert "caller    hello there" in told
        assert "agent     You said hello there." in told
        assert told[-1].startswith("line      ended: bye")
        with wave.open(output) as written:
            assert written.getnchannels() == 2

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["ws://127.0.0.1:9/"], "who speaks"),
            (["ws://127.0.0.1:9/", "x.wav", "--microphone"], "not both"),
            (["ws://127.0.0.1:9/", "--microphone", "-o", "y.wav"], "recording"),
            (["http://127.0.0.1:9/", "CALLER"], "not a WebSocket address"),
            (["ws://127.0.0.1:9/", "missing.wav"], "missing.wav"),
            (["ws://127.0.0.1:9/", "CALLER"], "could not be reached"),
            (["ws://127.0.0.1:9/", ""], "empty"),
        ],
    )
    def test_what_the_user_got_wrong(self, args, told, tmp_path, capsys):
        """One line on stderr and exit code 2."""
        caller = record(tmp_path / "caller.wav")
        assert command(["call", *[caller if arg == "CALLER" else arg for arg in args]]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert told in err
