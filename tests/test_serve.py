"""`beluga-voice serve` as a process of its own: what it prints, how it ends, and several of it on one port."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

APP = '''
from beluga_voice import Chain, server, tts, turn
from beluga_voice.builtin.memory_store import MemoryStore
from beluga_voice.manager import SessionManager
from beluga_voice.server import ServerOptions
from beluga_voice.store import StoreCapabilities
from beluga_voice.testing import LoudVAD, ScriptedSTT

class Shared(MemoryStore):
    capabilities = StoreCapabilities(shared=True)

async def reply(text, history):
    return text

async def endless(text, history):
    while True:
        yield text + " "

def speaking(agent):
    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello"), agent, tts.new("tone"))

chain = speaking(reply)
manager = SessionManager(chain)
endless = SessionManager(speaking(endless), drain_timeout_ms=3_600_000)
private = SessionManager(chain, store=MemoryStore())
shared = SessionManager(chain, store=Shared(), max_sessions=7)
app = server.app(SessionManager(chain))
locked = server.app(SessionManager(chain), ServerOptions(api_keys=["0123456789abcdef"]))
number = 5
'''
PATIENCE_S = 60.0


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "serve_app.py").write_text(APP)
    return tmp_path


class Served:
    """The command, running; `lines` is what it has written on stderr."""

    def __init__(self, folder, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "beluga_voice", "serve", *arguments],
            cwd=folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.lines = []
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()

    def until(self, pattern, count=1):
        """The matches of `pattern` in what is written, once there are so many."""

        def found():
            return [match for line in tuple(self.lines) if (match := re.search(pattern, line))]

        with self.news:
            assert self.news.wait_for(lambda: len(found()) >= count, PATIENCE_S), "".join(self.lines)
        return found()

    @property
    def url(self):
        return self.until(r"serving on http://([\d.]+:\d+)")[0][1]

    def end(self):
        code = self.process.wait(PATIENCE_S)
        self.reader.join(PATIENCE_S)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(PATIENCE_S)
        self.process.stderr.close()


def refused(folder, *arguments):
    """The exit code and what is said of a command that must not serve."""
    command = [sys.executable, "-m", "beluga_voice", "serve", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr


def free_ports(count):
    """Ports that nobody listens on, one after another."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, 17):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def get(url):
    """The status of a page."""
    try:
        with urllib.request.urlopen(f"http://{url}", timeout=PATIENCE_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Call:
    """A caller who types."""

    def __init__(self, url, query="", **more):
        self.connecting = connect(f"ws://{url}/v1/voice{query}", subprotocols=["beluga.voice.v1"], compression=None)
        self.hello = {"type": "hello", "sample_rate_hz": 16_000, "output_rate_hz": 16_000, **more}
        self.seq = 0

    def __enter__(self):
        self.socket = self.connecting.__enter__()
        self.socket.send(json.dumps(self.hello))
        return self

    def __exit__(self, *error):
        self.connecting.__exit__(*error)

    def type(self, text):
        self.socket.send(json.dumps({"type": "text", "seq": self.seq, "text": text}))
        self.seq += 1

    def messages(self):
        """What is said, until the call ends; a sign of life now and then keeps the line."""
        for number in itertools.count():
            if number % 10 == 0:
                self.socket.send(json.dumps({"type": "ping", "t_ms": number}))
            message = self.socket.recv(PATIENCE_S)
            if isinstance(message, str):
                yield json.loads(message)

    def until(self, name):
        return next(told for told in self.messages() if told["type"] == name)

    def ended(self):
        """Everything that is still said, and the code of the end."""
        heard = []
        try:
            heard.extend(self.messages())
        except ConnectionClosed as closed:
            return heard, closed.rcvd.code if closed.rcvd else 1006


LONG = "This is a story that takes a while to tell, and nobody wants to miss its end."


class TestSignals:
    def test_the_first_lets_the_reply_end(self, folder):
        """SIGTERM in mid-reply: the caller is told and hears it all, new ones are refused, and the process ends with 0."""
        with Served(folder, "serve_app:manager", "--port", "0") as served, Call(served.url) as call:
            call.until("welcome")
            call.type(LONG)
            call.until("reply_start")
            served.process.send_signal(signal.SIGTERM)
            goaway = call.until("goaway")
            ready = get(f"{served.url}/readyz")
            with Call(served.url) as late:
                _, late_code = late.ended()
            heard, code = call.ended()
            assert served.end() == 0
        assert goaway["deadline_ms"] > 0
        assert (ready, late_code) == (503, 1013)
        assert [(one["heard_text"], one["interrupted"]) for one in heard if one["type"] == "reply_end"] == [(LONG, False)]
        assert code in (1000, 1012)

    def test_the_second_stops_at_once(self, folder):
        """The reply is cut and the process is gone, saying by which signal."""
        with Served(folder, "serve_app:endless", "--port", "0") as served, Call(served.url) as call:
            call.until("welcome")
            call.type(LONG)
            call.until("reply_start")
            served.process.send_signal(signal.SIGTERM)
            call.until("goaway")
            served.process.send_signal(signal.SIGTERM)
            call.ended()
            assert served.end() == 128 + signal.SIGTERM
            assert "Traceback" not in "".join(served.lines)

    def test_ctrl_c_drains_too(self, folder):
        """With nobody on the line it is over at once."""
        with Served(folder, "serve_app:chain", "--port", "0") as served:
            assert served.url
            served.process.send_signal(signal.SIGINT)
            assert served.end() == 0


class TestOutput:
    def test_one_line_of_json_for_a_call_and_no_token(self, folder):
        """On stderr, a line that a program can read; query strings, where people put tokens, are in none."""
        with Served(folder, "serve_app:app", "--port", "0") as served:
            get(f"{served.url}/healthz?token=canary")
            with Call(served.url, "?token=canary") as call:
                call.until("welcome")
                call.type("good day")
                call.until("reply_end")
                call.socket.send(json.dumps({"type": "bye", "seq": call.seq}))
                call.ended()
            told = json.loads(served.until(r"^\{.*session_ended.*\}$")[-1][0])
            served.process.send_signal(signal.SIGTERM)
            assert served.end() == 0
            written = "".join(served.lines)
        assert (told["reason"], told["turns"]) == ("bye", 1)
        assert "/healthz" in written
        assert "canary" not in written
        assert "serving on http://127.0.0.1:" in written
        assert "at most 100 sessions in this process" in written

    def test_admin_has_a_port_of_its_own(self, folder):
        """There it is ready, and counted."""
        admin = free_ports(1)
        with Served(folder, "serve_app:manager", "--port", "0", "--admin", str(admin)) as served:
            assert get(served.url + "/") == 200
            paths = {"healthz": 200, "readyz": 200, "metrics": 200, "v1/voice": 404}
            assert {path: get(f"127.0.0.1:{admin}/{path}") for path in paths} == paths
            assert get(served.url + "/metrics") == 404
            served.process.send_signal(signal.SIGTERM)
            assert served.end() == 0


class TestRefusal:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["serve_app:number"], "serve_app:number is of type int; expected a SessionManager, a Chain, or an application"),
            (["serve_app:nothing"], "has no attribute 'nothing'"),
            (["serve_ap:manager"], "Did you mean 'serve_app'?"),
            (["serve_app"], 'expected "module:attribute"'),
            (["serve_app:app", "--config", "call.toml"], "leave --config out"),
            (["--config", "missing.toml"], "missing.toml: no such file"),
            (["serve_app:manager", "--host", "0.0.0.0"], "lets strangers call, and no authentication is set"),
            (["serve_app:manager", "--host", "::"], "lets strangers call, and no authentication is set"),
            (["serve_app:manager", "--host", "192.0.2.1.example"], "lets strangers call"),
            (["serve_app:locked", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8080"),
            (["serve_app:manager", "--workers", "2", "--port", "0"], "without a store calls are known to one process alone"),
            (["serve_app:private", "--workers", "2", "--port", "0"], "known to one process alone"),
            (["serve_app:manager", "--port", "70000"], "70000"),
            (["serve_app:manager", "--workers", "0"], "workers"),
        ],
    )
    def test_is_one_line_and_exit_code_2(self, folder, arguments, told):
        """What cannot be served is said before anything is."""
        code, said = refused(folder, *arguments)
        assert code == 2
        assert told in said
        assert said.startswith("beluga-voice: ")
        assert said.count("\n") == 1

    def test_a_port_that_is_taken(self, folder):
        """It says so, and what to do."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            code, said = refused(folder, "serve_app:manager", "--port", str(taken.getsockname()[1]))
        assert code == 2
        assert "in use" in said
        assert "choose another --host or --port" in said

    def test_a_key_lets_it_be_public(self, folder):
        """With authentication any address will do."""
        with Served(folder, "serve_app:locked", "--host", "0.0.0.0", "--port", "0") as served:
            port = served.url.rpartition(":")[2]
            with Call(f"127.0.0.1:{port}") as call:
                assert call.ended()[1] == 4401


class TestConfiguration:
    def test_all_of_it_from_a_file(self, folder):
        """Providers, limits and [server]; a ticket from the key in the environment lets in."""
        (folder / "call.toml").write_text(
            '[session]\nmax_sessions = 3\n[vad]\nprovider = "energy"\n'
            '[stt]\nprovider = "beluga_voice.testing:ScriptedSTT"\n[agent]\nprovider = "echo"\n[tts]\nprovider = "tone"\n'
            '[store]\nprovider = "memory"\n'
            '[server]\napi_keys = ["${SERVE_TEST_KEY}"]\norigins = ["https://app.example"]\npage = false\n'
        )
        key = "a-key-from-the-environment"
        os.environ["SERVE_TEST_KEY"] = key
        try:
            with Served(folder, "--config", "call.toml", "--port", "0") as served:
                request = urllib.request.Request(
                    f"http://{served.url}/v1/sessions", b'{"user_id": "ann"}', {"Authorization": f"Bearer {key}"}
                )
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                    token = json.load(answer)["token"]
                with Call(served.url, token=token) as call:
                    assert call.until("welcome")["session_id"]
                assert get(f"{served.url}/") == 404
                assert served.until("at most 3 sessions")
                assert key not in "".join(served.lines)
        finally:
            del os.environ["SERVE_TEST_KEY"]


@pytest.mark.skipif(os.name != "posix", reason="workers need a Unix system")
class TestWorkers:
    def test_share_a_port_and_are_replaced(self, folder):
        """Both say their caps, tickets work on either, a dead one comes back, and one signal ends them all."""
        admin = free_ports(2)
        arguments = ("serve_app:shared", "--port", "0", "--workers", "2", "--admin", str(admin))
        with Served(folder, *arguments) as served:
            started = served.until(r"worker (\d) of 2: at most 7 sessions in this process", 2)
            assert {match[1] for match in started} == {"1", "2"}
            for _ in range(8):
                with urllib.request.urlopen(f"http://{served.url}/v1/sessions", b"{}", timeout=PATIENCE_S) as answer:
                    token = json.load(answer)["token"]
                with Call(served.url, token=token) as call:
                    call.until("welcome")
            assert [get(f"127.0.0.1:{admin + worker}/readyz") for worker in range(2)] == [200, 200]
            for pid in children(served.process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
            served.until("ended with -9; a new one starts")
            served.until(r"worker \d of 2: at most", 3)
            served.process.send_signal(signal.SIGTERM)
            assert served.end() == 0

    def test_what_is_wrong_is_told_once(self, folder):
        """The first worker alone finds out, and nobody tries again."""
        code, said = refused(folder, "serve_app:number", "--workers", "3", "--port", "0")
        assert (code, said.count("expected a SessionManager")) == (2, 1)

    @pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
    def test_nobody_is_left_behind(self, folder):
        """A supervisor that is killed takes its workers with it."""
        with Served(folder, "serve_app:shared", "--port", "0", "--workers", "2") as served:
            served.until(r"worker \d of 2", 2)
            pids = children(served.process.pid)
            served.process.kill()
            served.process.wait()
            deadline = time.monotonic() + PATIENCE_S
            while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
                time.sleep(0.02)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            assert left == []


def children(pid):
    """The processes that `pid` has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(one) for one in file.read().split()]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
