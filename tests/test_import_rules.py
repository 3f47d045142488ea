"""Arrows point down: no module imports one of a layer above its own, and no kind imports another."""

import ast
from pathlib import Path

import pytest

import beluga_voice

ROOT = Path(beluga_voice.__file__).parent

LAYERS = {
    "nouns": ("errors", "clock", "audio", "frames", "options"),
    "joining": (
        *("chain", "_streams", "_redaction", "_watch", "engine", "_fields", "wire", "link", "breaker", "resilience", "ranked"),
        *("remote", "vendor_socket", "failures", "cancelling", "tools", "tool_runs", "apart", "_parameters", "imports"),
    ),
    "finding": ("_registry", "hookspecs"),
    "kinds": ("vad", "turn", "stt", "agent", "tts", "s2s", "transport", "store", "processor"),
    "running": (
        *("settings", "state", "history", "events", "barge_in", "echo", "overheard", "playout", "reply", "says", "filler"),
        *("mouth", "providers", "floor", "replies", "owed", "outage", "overhearing", "words", "dialogue", "ears"),
        *("asking", "pipeline", "session", "_spans", "_turn_spans", "_instruments"),
        *("manager", "telemetry", "hybrid", "reconnect", "line", "intake", "snapshot", "keeping", "shelf", "engine_pool"),
        *("admission", "connection", "announcing", "limits"),
    ),
    "outer": ("builtin", "testing", "cli", "config", "server", "client", "_tables", "_toml", "_contracts", "__main__"),
}
PLACE = {module: number for number, modules in enumerate(LAYERS.values()) for module in modules}
FRONT_DOOR = "__init__"
READ_TIME = {"clock", "_watch"}
CLOCK_CALLS = {"now", "utcnow", "today", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time_ns"}

FILES = sorted(ROOT.rglob("*.py"))


def room_of(path):
    """The module or sub-package directly in the package that a file is, or is part of."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def tree_of(path):
    return ast.parse(path.read_text("utf-8"))


def imported_rooms(path):
    """The rooms of the package that a file imports, anywhere in it, also for types only."""
    package = ("beluga_voice", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            names = [base] if base.count(".") else [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "beluga_voice" and len(parts) > 1:
                yield parts[1]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
class TestEveryFile:
    def test_has_a_place(self, path):
        """Every module stands in one layer; a new one is written into the table above."""
        assert room_of(path) == FRONT_DOOR or room_of(path) in PLACE

    def test_imports_only_downwards(self, path):
        """A module imports its own layer or one below."""
        own = room_of(path)
        if own == FRONT_DOOR:
            assert {room for room in imported_rooms(path) if room in LAYERS["outer"]} == set()
            return
        above = {room for room in imported_rooms(path) if room in PLACE and PLACE[room] > PLACE[own]}
        assert above == set()

    def test_no_kind_imports_another(self, path):
        """The kinds do not know each other."""
        kinds = set(LAYERS["kinds"])
        if room_of(path) in kinds:
            assert set(imported_rooms(path)) & kinds <= {room_of(path)}

    def test_nobody_reads_time_but_the_clock(self, path):
        """Time is handed in: no other file imports `time` or asks datetime for now."""
        if room_of(path) in READ_TIME:
            return
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                assert "time" not in [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert (node.module, node.level) != ("time", 0)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in CLOCK_CALLS


class TestTheWhole:
    def test_nobody_imports_telemetry(self):
        """Telemetry listens; nothing depends on it but what is outside."""
        importers = {room_of(path) for path in FILES if "telemetry" in imported_rooms(path)} - {"telemetry"}
        assert {room for room in importers if room == FRONT_DOOR or PLACE[room] < PLACE["builtin"]} == set()

    def test_no_room_is_a_drawer(self):
        """No module is named for everything and nothing."""
        assert not {path.stem for path in FILES} & {"utils", "common", "base", "types", "helpers", "misc"}
