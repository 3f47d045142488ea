"""Keys kept out of logs that other libraries write.

At DEBUG `websockets` logs the headers of its handshakes, and with them the key, whatever SDK it was called by.

>>> keep_out_of_logs("sk-0123456789")
>>> record = logging.LogRecord("websockets.client", logging.DEBUG, "", 0, "> %s: %s", ("key", "sk-0123456789"), None)
>>> logging.getLogger("websockets.client").filter(record) and record.getMessage()
'> key: ***'
"""

from __future__ import annotations

import logging

__all__ = ["keep_out_of_logs"]

LOGGERS = ("websockets.client",)
SHORTEST = 8  # what is shorter is no key, and may be part of any word

_keys: set[str] = set()


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        for key in _keys:
            if key in message:
                message = message.replace(key, "***")
                record.msg, record.args = message, ()
        return True


def keep_out_of_logs(key: str) -> None:
    """From now on `key` is "***" in what the libraries above log."""
    if len(key) < SHORTEST:
        return
    if not _keys:
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_Redaction())
    _keys.add(key)
