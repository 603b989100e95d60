"""One stream of the exit table, in each dialect: how it is asked for, and what stands where in it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.wire import WireClient

if TYPE_CHECKING:
    from tests.support.gates import InProcess
    from tests.support.servers import ScriptedProcess

PROMPT_TOKENS = 8  # "hi": one token, the role: one, 3 for the message, 3 to prime the reply
FOREVER = 60_000
MUCH = 10_000_000
MESSAGES = [{"role": "user", "content": "hi"}]
BEFORE = {"plain": 0, "openai_chat": 1, "openai_responses": 4, "anthropic_messages": 3}
"""Events before the first token: the role; the response, item and part; the message, a ping and the block."""

ENDS = {
    "plain": b"[DONE]",
    "openai_chat": b"[DONE]",
    "openai_responses": b'"type":"response.completed"',
    "anthropic_messages": b'{"type":"message_stop"}',
}
TOKENS = {
    "plain": b'"token":',
    "openai_chat": b'"delta":{"content":" ',
    "openai_responses": b'"type":"response.output_text.delta"',
    "anthropic_messages": b'"type":"text_delta"',
}


@dataclass
class Scene:
    """One stream being driven."""

    app: InProcess
    upstream: ScriptedProcess
    label: str
    dialect: str
    clients: list[WireClient] = field(default_factory=list)
    received: int | None = None  # tokens, where the client read to the end

    async def ask(self, script: str, *, slow: bool = False) -> WireClient:
        """Ask for a stream that the upstream plays by `script`."""
        model = f"scripted?label={self.label}&pace_ms=0&{script}"
        path, body = {
            "plain": ("/chat/stream", {"prompt": "hi", "max_tokens": MUCH}),
            "openai_chat": (
                "/v1/chat/completions",
                {"messages": MESSAGES, "max_tokens": MUCH, "stream": True},
            ),
            "openai_responses": (
                "/v1/responses",
                {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": MUCH, "stream": True},
            ),
            "anthropic_messages": (
                "/v1/messages",
                {"messages": MESSAGES, "max_tokens": MUCH, "stream": True},
            ),
        }[self.dialect]
        body["model"] = model
        client = await WireClient.post(self.app.url, path, body, key=self.app.key, receive_buffer=4096 * slow)
        self.clients.append(client)
        return client

    async def upstream_has(self, **until: int) -> dict[str, Any]:
        """What the upstream says once that is so."""
        return await asyncio.to_thread(self.upstream.stats, self.label, **until)

    async def first_tokens(self, client: WireClient, count: int) -> None:
        """Read `count` tokens, and what each dialect has before them."""
        wanted = count + BEFORE[self.dialect]
        assert len(await client.events(wanted)) == wanted

    def is_end(self, data: bytes) -> bool:
        """Whether that is the terminal event's data."""
        return ENDS[self.dialect] in data

    def code_of(self, data: bytes) -> str:
        """The code that an error event has."""
        last = json.loads(data)
        return str((last if self.dialect == "plain" else last["error"])["code"])
