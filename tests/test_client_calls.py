"""The client over real sockets: against the server of this package, through a network that breaks, and against strangers."""

import asyncio
import contextlib
import wave

import pytest
from websockets.asyncio.server import serve

from beluga_voice import Chain, client, server, store, tts, turn
from beluga_voice.errors import AudioFileError, ConnectFailedError
from beluga_voice.manager import SessionManager
from beluga_voice.server.serving import running
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

PROTOCOL = "beluga.voice.v1"


async def echo(text, history):
    return f"You said {text}."


def chain():
    return Chain(LoudVAD(), turn.new("silence", silence_ms=200), ScriptedSTT("hello there", "and again"), echo, tts.new("tone"))


class Network:
    """A way to the server that can be cut, and is whole again at once unless it is `down`."""

    def __init__(self, port):
        self.port, self.down, self.bytes_up = port, False, 0
        self._writers = set()

    async def pipe(self, reader, writer, up):
        self._writers.add(writer)
        try:
            while data := await reader.read(65_536):
                self.bytes_up += len(data) if up else 0
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def carry(self, reader, writer):
        if self.down:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(self.pipe(reader, there_writer, True), self.pipe(there_reader, writer, False))

    def cut(self):
        for writer in tuple(self._writers):
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(**settings):
    """A server, and a network before it: the address and the network."""
    manager = SessionManager(chain(), **settings)
    async with running(server.app(manager)) as url:
        network = Network(int(url.rpartition(":")[2]))
        entrance = await asyncio.start_server(network.carry, "127.0.0.1", 0)
        try:
            yield f"ws://127.0.0.1:{entrance.sockets[0].getsockname()[1]}/v1/voice", network, manager
        finally:
            network.cut()
            entrance.close()


async def until(call, name, **fields):
    """Read events until one of that type; all that were read."""
    events = []
    async for event in call:
        events.append(event)
        if event["type"] == name and fields.items() <= event.items():
            return events
    raise AssertionError(f"no {name} {fields}: {events}")


class TestAgainstTheServer:
    def test_a_spoken_call(self):
        """The caller speaks, the agent answers, and what is played is heard."""

        async def main():
            heard = bytearray()
            async with serving() as (url, _, manager), client.connect(url, on_audio=heard.extend) as call:
                sound = speech(600) + quiet(600)
                for at in range(0, len(sound), 640):
                    await call.send_audio(sound[at : at + 640])
                    await asyncio.sleep(0.02)
                events = await until(call, "reply_end")
                assert manager.get(call.session_id) in manager.sessions
            return events, bytes(heard), call

        events, heard, call = asyncio.run(main())
        said = [event["text"] for event in events if event["type"] == "transcript" and event["final"]]
        assert said == ["hello there"]
        assert "".join(event["text"] for event in events if event["type"] == "reply") == "You said hello there."
        assert events[-1]["heard_text"] == "You said hello there."
        assert len(heard) > 16_000
        assert any(heard)
        assert (call.end_reason, call.close_code) == ("bye", 1000)
        assert dict(call.counters) == {}

    def test_cut_while_the_caller_speaks_and_while_the_agent_does(self):
        """No word of the caller is lost, the whole reply is heard, and the session is the same."""

        async def main():
            heard = bytearray()
            async with serving() as (url, network, manager):
                async with client.connect(url, on_audio=heard.extend) as call:
                    sound = speech(800) + quiet(500)
                    for number, at in enumerate(range(0, len(sound), 640)):
                        await call.send_audio(sound[at : at + 640])
                        await asyncio.sleep(0.02)
                        if number == 15:
                            network.cut()
                    events = await until(call, "state", state="responding")
                    await asyncio.sleep(0.2)
                    network.cut()
                    events += await until(call, "reply_end")
                    (session,) = manager.sessions
                    records = session.turns
                return events, records, bytes(heard), call

        events, records, heard, call = asyncio.run(main())
        assert [event["gap_ms"] >= 0 for event in events if event.get("state") == "resumed"] == [True, True]
        assert [event["text"] for event in events if event["type"] == "transcript" and event["final"]] == ["hello there"]
        assert events[-1]["heard_text"] == "You said hello there."
        assert len(records) == 1
        assert dict(call.counters) == {"resumed": 2}
        assert len(heard) > 16_000

    def test_another_server_takes_the_call_over(self):
        """The line breaks while the caller speaks, and leads to another server with the same store: no word is lost."""

        async def main():
            kept = store.new("memory")
            async with (
                serving(store=kept) as (url, network, _),
                serving(store=kept) as (_url, other, manager),
                client.connect(url) as call,
            ):
                await call.send_text("first things first")
                events = await until(call, "reply_end")
                sound = speech(800) + quiet(500)
                for number, at in enumerate(range(0, len(sound), 640)):
                    await call.send_audio(sound[at : at + 640])
                    await asyncio.sleep(0.02)
                    if number == 15:
                        network.port = other.port
                        network.cut()
                events += await until(call, "reply_end")
                (session,) = manager.sessions
                assert session.session_id == call.session_id
            return events, call

        events, call = asyncio.run(main())
        assert [event["events_lost"] for event in events if event.get("state") == "resumed"] == [True]
        assert [event["type"] for event in events].count("history") == 1
        replies = [event["heard_text"] for event in events if event["type"] == "reply_end"]
        assert replies == ["You said first things first.", "You said hello there."]
        assert call.end_reason == "bye"

    def test_the_server_closes_idle_callers(self):
        """The close code and its meaning come through."""

        async def main():
            async with serving(idle_timeout_ms=1_000) as (url, _, _manager), client.connect(url) as call:
                events = [event async for event in call]
            return call, events[-1]

        call, last = asyncio.run(main())
        assert (call.end_reason, call.close_code, last["state"]) == ("idle", 4408, "ended")
        assert "idle" in call.close_reason

    def test_a_recorded_caller(self, tmp_path):
        """`talk` calls with a file, writes both sides, and hangs up when all is said; a cut on the way is survived."""
        sound = quiet(200) + speech(600) + quiet(400)
        with wave.open(str(tmp_path / "caller.wav"), "wb") as out:
            out.setparams((1, 2, 16_000, 0, "NONE", ""))
            out.writeframes(sound)
        events = []

        async def main():
            async with serving() as (url, network, _):

                def on_event(call, event):
                    events.append(event)
                    if event.get("state") == "responding" and not call.counters["resumed"]:
                        network.cut()

                return await client.talk(
                    url, input=tmp_path / "caller.wav", output=tmp_path / "call.wav", tail_ms=300, on_event=on_event
                )

        call = asyncio.run(main())
        assert (call.end_reason, call.counters["resumed"]) == ("bye", 1)
        assert [event["heard_text"] for event in events if event["type"] == "reply_end"] == ["You said hello there."]
        with wave.open(str(tmp_path / "call.wav")) as written:
            assert (written.getnchannels(), written.getframerate()) == (2, 16_000)
            both = memoryview(written.readframes(written.getnframes())).cast("h")
        assert both[::2].tobytes()[: len(sound)] == sound
        assert any(both[1::2])

    def test_a_recording_that_cannot_be_written_leaves_nothing(self, tmp_path):
        """The call is not begun."""
        with pytest.raises(AudioFileError, match=r"no\.wav"):
            asyncio.run(client.talk("ws://127.0.0.1:9/", input=tmp_path / "no.wav"))
        assert list(tmp_path.iterdir()) == []


@contextlib.asynccontextmanager
async def stranger(handler, **options):
    """A WebSocket server of another kind."""
    async with serve(handler, "127.0.0.1", 0, **{"subprotocols": [PROTOCOL], "compression": None, **options}) as running_server:
        yield f"ws://127.0.0.1:{running_server.sockets[0].getsockname()[1]}/v1/voice"


WELCOME = '{"type":"welcome","session_id":"s","resume_token":"t","received_seq":-1}'


class TestAgainstStrangers:
    def test_nobody_listens(self):
        """A closed port."""

        async def main():
            silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            port = silent.sockets[0].getsockname()[1]
            silent.close()
            await silent.wait_closed()
            async with client.connect(f"ws://127.0.0.1:{port}/"):
                pass

        with pytest.raises(ConnectFailedError, match="could not be reached"):
            asyncio.run(main())

    def test_no_websocket_there(self):
        """A path that the server does not have."""

        async def main():
            async with serving() as (url, _, _manager), client.connect(url.replace("/v1/voice", "/nowhere")):
                pass

        with pytest.raises(ConnectFailedError, match="HTTP status"):
            asyncio.run(main())

    def test_another_protocol(self):
        """A WebSocket server that does not know ours."""

        async def main():
            async with stranger(lambda socket: socket.recv(), subprotocols=None) as url, client.connect(url):
                pass

        with pytest.raises(ConnectFailedError, match=PROTOCOL):
            asyncio.run(main())

    def test_what_is_no_message_ends_the_call(self):
        """A message beyond all bounds breaks the connection, and is not asked for again."""

        async def handler(socket):
            await socket.recv()
            await socket.send(WELCOME)
            await socket.send(b"x" * 3_000_000)
            await socket.wait_closed()

        async def main():
            async with stranger(handler) as url, client.connect(url) as call:
                events = [event async for event in call]
            return call, events[-1]

        call, last = asyncio.run(main())
        assert (call.end_reason, call.close_code, last["state"]) == ("too_large", 1009, "ended")

    def test_a_server_that_stops_reading(self):
        """Live audio waits for nobody: hanging up from a stuck line takes about a second, and frees it."""

        async def main():
            over = asyncio.Event()

            async def handler(socket):
                await socket.recv()
                await socket.send(WELCOME)
                socket.transport.pause_reading()
                await over.wait()
                socket.transport.abort()

            async with stranger(handler) as url:
                async with client.connect(url) as call:
                    for _ in range(200):
                        await call.send_audio(bytes(3_200))
                over.set()
                return call.end_reason

        assert asyncio.run(main()) == "bye"
