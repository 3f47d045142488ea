"""A Redis server of the tests' own, in an empty folder and on a free port."""

import contextlib
import shutil
import signal
import socket
import subprocess

import pytest

PASSWORD = "s3cret/word"  # with a character that a url must escape
ESCAPED = "s3cret%2Fword"


class RedisServer:
    """One server process: `start`, `stop`, `freeze` and `thaw`. What it kept is gone when it stops."""

    def __init__(self, folder, *arguments):
        self.folder, self.arguments = folder, arguments
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = None

    @property
    def url(self):
        return f"redis://:{ESCAPED}@127.0.0.1:{self.port}/0"

    def start(self):
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        kept = ["--save", "", "--appendonly", "no", "--requirepass", PASSWORD, *self.arguments]
        self.process = subprocess.Popen([*command, *kept], stdout=subprocess.PIPE, text=True)
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return self
        raise RuntimeError(f"redis-server did not start: {''.join(said)}")

    def stop(self):
        if self.process is not None:
            self.thaw()
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running(folder, *arguments):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    for _ in range(5):  # the port was free a moment ago; another process may have taken it since
        server = RedisServer(folder, *arguments)
        with contextlib.suppress(RuntimeError):
            server.start()
            break
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    """For tests that only use it."""
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path):
    """For tests that stop or freeze it."""
    with running(tmp_path) as server:
        yield server
