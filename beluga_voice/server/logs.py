"""What `beluga-voice serve` writes on stderr: a line for each thing that happened, never a query string."""

from __future__ import annotations

import logging
import sys

__all__ = ["set_up_logs"]


def set_up_logs(level: int = logging.INFO) -> None:
    """Send the package's log, the access log and everybody's warnings to stderr; an ended session is a line of JSON alone."""
    told = logging.StreamHandler(sys.stderr)
    told.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    told.addFilter(_without_query)
    sessions = logging.StreamHandler(sys.stderr)
    sessions.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [told]
    root.setLevel(logging.WARNING)
    for name in ("beluga_voice", "uvicorn.access"):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("beluga_voice.sessions").handlers[:] = [sessions]
    logging.getLogger("beluga_voice.sessions").propagate = False
    # At INFO it writes the path of every WebSocket with its query string.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _without_query(record: logging.LogRecord) -> bool:
    """Cut the query string, where people put tokens, off an access record."""
    if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, *rest = record.args
        record.args = (client, method, str(path).partition("?")[0], *rest)
    return True
