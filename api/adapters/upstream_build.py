"""Which adapter an upstream's entry stands for; and those that the environment names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.adapters.upstream_scripted import ScriptedUpstream
from api.core.catalog import UpstreamSpec
from api.ports import Patience

if TYPE_CHECKING:
    from api.adapters.upstream_http import Line
    from api.ports import Tokenizer, Upstream
    from api.settings import Settings

_OPENAI = "https://api.openai.com/v1"
_NO_KEY = "none"  # vLLM and Ollama want none; a header without one is none


class Builder:
    """Makes upstreams as the settings have it."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer

    def __call__(self, spec: UpstreamSpec, secret: str) -> Upstream:
        """The upstream of an entry. Raises OSError where a file of the settings cannot be read."""
        if spec.kind == "scripted":
            return ScriptedUpstream(self._tokenizer, spec.name)
        key, line = secret or _NO_KEY, self._line(spec)
        if spec.kind == "anthropic":
            from api.adapters.upstream_anthropic import AnthropicUpstream  # noqa: PLC0415 - slow to import

            return AnthropicUpstream(spec.name, api_key=key, base_url=spec.base_url or None, line=line)
        from api.adapters.upstream_openai import AzureUpstream, OpenAIUpstream  # noqa: PLC0415 - the same

        base_url = spec.base_url or _OPENAI
        if spec.kind == "azure" and spec.api_version:
            return AzureUpstream(
                spec.name, api_key=key, base_url=base_url, api_version=spec.api_version, line=line
            )
        return OpenAIUpstream(spec.name, api_key=key, base_url=base_url, line=line)

    def _line(self, spec: UpstreamSpec) -> Line:
        from api.adapters.upstream_http import Line  # noqa: PLC0415 - the same

        settings = self._settings
        silence = spec.silence_seconds or settings.upstream_silence_seconds
        return Line(
            Patience(spec.connect_seconds, silence),
            proxy=settings.upstream_proxy or None,
            ca_file=str(settings.upstream_ca_file) if settings.upstream_ca_file else None,
            connections=spec.max_connections,
            metadata_hosts=settings.upstream_metadata_hosts,
        )


def fixed_specs(settings: Settings) -> list[tuple[UpstreamSpec, str]]:
    """Those of the environment, and their keys; the scripted model where it names none."""
    found = []
    openai, anthropic = (
        key.get_secret_value() for key in (settings.openai_api_key, settings.anthropic_api_key)
    )
    if openai or settings.openai_base_url:
        found.append((UpstreamSpec("openai", "openai", base_url=settings.openai_base_url), openai))
    if anthropic or settings.anthropic_base_url:
        spec = UpstreamSpec("anthropic", "anthropic", base_url=settings.anthropic_base_url)
        found.append((spec, anthropic))
    return found or [(UpstreamSpec("scripted", "scripted"), "")]
