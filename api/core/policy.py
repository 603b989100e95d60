"""How streams are treated, as the settings have it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Policy:
    """How streams are treated; all times in seconds."""

    lease_seconds: float = 15.0
    tick_seconds: float = 1.0
    heartbeat_seconds: float = 15.0
    stream_seconds: float = 600.0
    send_seconds: float = 30.0
    silence_seconds: float = 120.0
    settle_seconds: float = 5.0
    drain_seconds: float = 20.0
    watch_seconds: float = 0.5
    last_used_seconds: float = 60.0
    max_event_bytes: int = 4 << 20
    max_answer_bytes: int = 64 << 20
    replay_max_bytes: int = 1 << 20
    default_model: str = "scripted"
    default_max_streams: int = 20
    wall_is_error: bool = False
    continuous_usage: bool = False
    metadata_hosts: bool = False
    reads_on: bool = False
    read_on_seconds: float = 30.0
    read_on_tokens: int = 4096
    read_on_streams: int = 100
    worker: str = field(default="worker")
