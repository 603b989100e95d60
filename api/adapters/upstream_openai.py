"""OpenAI, and everything compatible: vLLM, Ollama, Groq; Azure's older form, with the model in the path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
from openai import AsyncAzureOpenAI, AsyncOpenAI

from api.adapters.upstream_http import PLACEHOLDER, HttpUpstream, Line, Recorder

if TYPE_CHECKING:
    from api.adapters.upstream_http import Prepared


class OpenAIUpstream(HttpUpstream):
    """One endpoint. `base_url` None is OpenAI's own; servers that speak messages have them under it too."""

    def __init__(self, name: str, *, api_key: str, base_url: str | None, line: Line) -> None:
        super().__init__(name, api_key, line)
        self._base_url = base_url

    async def _ask_sdk(self, what: str, model: str) -> Prepared:
        recorder = Recorder()
        async with self._sdk(recorder) as sdk:
            await _sent(sdk, what, model)
        return recorder.prepared(self._line.proxy)

    def _sdk(self, recorder: Recorder) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=PLACEHOLDER, base_url=self._base_url, http_client=recorder.client)


class AzureUpstream(OpenAIUpstream):
    """A resource of Azure OpenAI, by its endpoint and a dated `api_version`; its models are deployments.

    Azure's newer `/openai/v1/` is an OpenAIUpstream: its address takes a key as a bearer.
    """

    def __init__(self, name: str, *, api_key: str, base_url: str, api_version: str, line: Line) -> None:
        super().__init__(name, api_key=api_key, base_url=base_url, line=line)
        self._api_version = api_version

    def _path_of(self, body: dict[str, Any]) -> str:
        """The deployment."""
        return str(body["model"])

    def _sdk(self, recorder: Recorder) -> AsyncOpenAI:
        return AsyncAzureOpenAI(
            api_key=PLACEHOLDER,
            azure_endpoint=self._base_url or "",
            api_version=self._api_version,
            http_client=recorder.client,
        )


async def _sent(sdk: AsyncOpenAI, what: str, model: str) -> None:
    """Send the smallest request of that dialect."""
    if what == "models":
        await sdk.models.with_raw_response.list()
    elif what == "openai_responses":
        await sdk.responses.with_raw_response.create(model=model, input="")
    elif what == "openai_embeddings":
        await sdk.embeddings.with_raw_response.create(model=model, input="")
    elif what == "anthropic_messages":
        await sdk.post("/messages", cast_to=httpx2.Response, body={"model": model})
    else:
        await sdk.chat.completions.with_raw_response.create(model=model, messages=[])
