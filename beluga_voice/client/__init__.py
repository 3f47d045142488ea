"""A client of a beluga-voice server: one call that survives the loss of its line.

Needs the package `websockets`: pip install 'beluga-voice[client]'.

::

    from beluga_voice import client

    async with client.connect("ws://127.0.0.1:8080/v1/voice") as call:
        await call.send_text("hello")
        async for event in call:
            print(event)
"""

from __future__ import annotations

from ._call import Call, connect
from ._microphone import microphone
from ._talk import talk

__all__ = ["Call", "connect", "microphone", "talk"]
