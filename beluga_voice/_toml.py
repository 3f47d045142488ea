"""A TOML file that can tell the line of every value, and fills in `${NAME}` from the environment.

>>> file = TomlFile("[tts]\\nvoice = 'nova'", "call.toml")
>>> file.where("tts", "voice")
'call.toml:2'
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError, MissingKeyError

__all__ = ["Path", "TomlFile", "read_text", "shown"]

Path = tuple[str | int, ...]

LARGEST_BYTES = 1_000_000
# Below this, a value from the environment is hidden only where a message quotes it: "1" is in every second message.
SHORTEST_HIDDEN = 4
_TOLD_AT = re.compile(r" \(at line (\d+), column (\d+)\)$")
_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")


def read_text(path: str) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it is missing, a directory, not readable, not UTF-8, or larger than a megabyte.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name a TOML file in it") from None
    except PermissionError:
        raise ConfigError(f"{path}: permission denied; make the file readable") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > LARGEST_BYTES:
        raise ConfigError(f"{path}: larger than {LARGEST_BYTES} bytes; expected a TOML file of some lines")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


class TomlFile:
    """The tables of a TOML text; `name` is what messages call it.

    Raises:
        ConfigError: the text is not TOML; the message says where.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._lines = text.replace("\r\n", "\n").split("\n")
        self._from_environment: dict[str, str] = {}
        try:
            self.tables: dict[str, Any] = tomllib.loads(text)
        except RecursionError:
            raise ConfigError(f"{name}: not TOML that can be read (nested too deeply)") from None
        except ValueError as error:
            told = _TOLD_AT.search(str(error))
            line = told[1] if told else str(len(text.rstrip("\n").split("\n")))
            problem = _TOLD_AT.sub("", str(error))
            raise ConfigError(f"{name}:{line}: not TOML: {problem}.{_hint(problem)}") from None

    def where(self, *path: str | int) -> str:
        """The file and line where the value at `path` is written, like "call.toml:3"; the file alone if it is not."""
        line = self._line(path)
        return self.name if line is None else f"{self.name}:{line}"

    def filled(self, value: Any, path: Path) -> Any:
        """`value`, which stands at `path`, with every `${NAME}` in its strings read from the environment.

        Raises:
            MissingKeyError: the variable is not set.
            ConfigError: "${" without a name and "}".
        """
        if isinstance(value, str):
            return _REFERENCE.sub(lambda found: self._variable(found, path), value)
        if isinstance(value, Mapping):
            return {key: self.filled(one, (*path, key)) for key, one in value.items()}
        if isinstance(value, list):
            return [self.filled(one, (*path, at)) for at, one in enumerate(value)]
        return value

    def redacted(self, message: str) -> str:
        """`message` with every value that came from the environment put back to its `${NAME}`."""
        for value, name in sorted(self._from_environment.items(), key=lambda pair: -len(pair[0])):
            for form in (value, repr(value)[1:-1]):
                if len(form) >= SHORTEST_HIDDEN:
                    message = message.replace(form, f"${{{name}}}")
                else:
                    message = message.replace(f"'{form}'", f"'${{{name}}}'")
        return message

    def _variable(self, found: re.Match[str], path: Path) -> str:
        name = found[1]
        if found[0] == "$${":
            return "${"
        if name is None:
            raise ConfigError(
                f"{self.where(*path)}: {shown(path)} has '${{' without a name and '}}'; "
                "write ${NAME} for an environment variable, or $${ for a plain ${"
            )
        if name not in os.environ:
            raise MissingKeyError(
                f"{self.where(*path)}: {shown(path)} needs the environment variable {name}, which is not set; "
                f"set it: export {name}=...",
                env_var=name,
            )
        value = os.environ[name]
        if value:
            self._from_environment[value] = name
        return value

    def _line(self, path: Path) -> int | None:
        """The line where the statement that brings `path` begins.

        tomllib tells no lines. But the lines up to the end of any statement are TOML too, so the statement is the last
        one of the shortest such beginning that has the path; found by bisection.
        """
        if not path or not _has(self.tables, path):
            return None
        without, having = 0, len(self._lines)
        while having - without > 1:
            middle = (without + having) // 2
            end, tables = self._beginning(middle)
            if _has(tables, path):
                having = end
            else:
                without = middle
        return self._beginning(having - 1)[0] + 1

    def _beginning(self, lines: int) -> tuple[int, dict[str, Any]]:
        """The longest beginning of at most `lines` lines that is TOML, as its length and its tables."""
        for end in range(lines, 0, -1):
            try:
                return end, tomllib.loads("\n".join(self._lines[:end]))
            except ValueError:
                continue
        return 0, {}


def _hint(problem: str) -> str:
    if "twice" in problem:
        return " Join the two; stt, tts, agent, s2s and processor may come again, as [[stt]]."
    if "overwrite" in problem:
        return " It is there already; of several tables of a kind the first too is written [[stt]]."
    return ""


def shown(path: Path) -> str:
    """A path as people write it.

    >>> shown(("stt", 1, "model")), shown(("session", "greeting")), shown(("vad",))
    ('[[stt]] number 2: model', '[session] greeting', '[vad]')
    """
    table, *rest = path
    if rest and isinstance(rest[0], int):
        title = f"[[{table}]] number {rest[0] + 1}"
        del rest[0]
        return f"{title}: {'.'.join(map(str, rest))}" if rest else title
    return f"[{table}] {'.'.join(map(str, rest))}".rstrip()


def _has(tables: Any, path: Path) -> bool:
    for key in path:
        try:
            tables = tables[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
