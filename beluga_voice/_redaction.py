"""Keys kept out of logs that other libraries write.

At DEBUG `websockets` logs the headers of its handshakes, and with them the key, whatever SDK it was called by.

>>> class Access:
...     api_key = "sk-0123456789"
>>> access = Access()
>>> keep_out_of_logs(access.api_key, access)
>>> record = logging.LogRecord("websockets.client", logging.DEBUG, "", 0, "> %s: %s", ("key", "sk-0123456789"), None)
>>> logging.getLogger("websockets.client").filter(record) and record.getMessage()
'> key: ***'
"""

from __future__ import annotations

import logging
import weakref

__all__ = ["keep_out_of_logs"]

LOGGERS = ("websockets.client",)
SHORTEST = 8  # what is shorter is no key, and may be part of any word

_keys: dict[int, str] = {}  # by who has them


class _Redaction(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        for key in set(_keys.copy().values()):  # meanwhile, another thread may make an engine, or let one go
            if key in message:
                message = message.replace(key, "***")
                record.msg, record.args = message, ()
        return True


_redaction = _Redaction()


def keep_out_of_logs(key: str, holder: object) -> None:
    """As long as `holder` lives, `key` is "***" in what the libraries above log."""
    if len(key) < SHORTEST:
        return
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_redaction)
    _keys[id(holder)] = key
    weakref.finalize(holder, _keys.pop, id(holder), None)
