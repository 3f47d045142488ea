"""OpenAI's realtime models on 127.0.0.1, by the documented protocol: they understand tone speech and answer in it, by script.

It takes what the documentation allows and refuses the rest with error events, as the service does: audio before the session is
configured, truncation beyond what was spoken, a second response while one is under way, events it does not know.

>>> async def main():
...     async with OpenAIRealtimeServer(lambda text: [f"you said {text}"]) as server:
...         model = s2s.new("openai", api_key=server.api_key, base_url=server.base_url)
...         return await model.connect()
"""

from __future__ import annotations

from typing import Any

from ._openai_models import Refusal
from ._openai_realtime import Answer, Conversation, Truncation
from .loopback import Answer as HttpAnswer
from .loopback import LoopbackServer, Request, Sickness, Socket

__all__ = ["OpenAIRealtimeServer"]

MODELS = {"gpt-realtime-2.1", "gpt-realtime-2.1-mini"}


class OpenAIRealtimeServer(LoopbackServer):
    """OpenAI's `/v1/realtime`.

    Args:
        answer: gives by a function of what the caller said, typed or spoken, or of what a tool returned, texts to say and
            tools to call (`ToolCalled`), in order.
        delay_ms: from being asked to the first sound.
        transcript_ms: from a turn's end to its words.
        speed: how many times faster than it is played its speech comes.

    Attributes:
        conversations: one for each socket, in order: `items`, `truncations`, `session`, `heard`, `errors`.
        forgets: how many of the next transcripts never come.
        fails: what the next responses fail with: {"type": ..., "code": ..., "message": ...}.
    """

    prefix = "/v1"

    def __init__(
        self,
        answer: Answer = lambda text: [f"you said {text}"],
        *,
        delay_ms: float = 100.0,
        transcript_ms: float = 200.0,
        speed: float = 10.0,
        api_key: str = "loopback-key",
    ) -> None:
        super().__init__(api_key=api_key)
        self.script, self.delay_ms, self.transcript_ms, self.speed = answer, delay_ms, transcript_ms, speed
        self.conversations: list[Conversation] = []
        self.forgets = 0
        self.fails: list[dict[str, Any]] = []

    @property
    def base_url(self) -> str:
        """What the SDK takes as `base_url`."""
        return self.url + self.prefix

    @property
    def truncations(self) -> list[Truncation]:
        """What clients had cut off, over all sockets."""
        return [one for conversation in self.conversations for one in conversation.truncations]

    def refusal(self, sickness: Sickness) -> bytes:
        codes = {401: "invalid_api_key", 429: "rate_limit_exceeded", 403: "insufficient_quota"}
        type_ = "server_error" if sickness.status >= 500 else "invalid_request_error"
        return sickness.body or Refusal(sickness.status, "sick", type_, codes.get(sickness.status)).body

    async def greet(self, request: Request) -> HttpAnswer | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or key != self.api_key:
            return Refusal(401, f"Incorrect API key provided: {key}.", code="invalid_api_key").answer
        if request.path != f"{self.prefix}/realtime":
            return Refusal(404, f"Invalid URL (GET {request.path})", code="unknown_url").answer
        if "openai-beta" in request.headers:
            return Refusal(400, "the beta is over: leave out the header OpenAI-Beta", code="invalid_beta").answer
        if request.query.get("model", [""])[0] not in MODELS:
            return Refusal(404, "The model does not exist or you do not have access to it.", code="model_not_found").answer
        return None

    async def converse(self, socket: Socket) -> None:
        conversation = Conversation(self, socket)
        self.conversations.append(conversation)
        try:
            await conversation.tell("session.created", session={"type": "realtime", "model": socket.request.query["model"][0]})
            async for message in socket:
                await conversation.take(message)
        finally:
            await conversation.aclose()

