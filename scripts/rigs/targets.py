"""Who is measured: the gate as shipped, nginx, or nobody in between. Each has a core of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scripts.stage import cpu_seconds, family, gate_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil

    from scripts.stage import Stage

_STREAMS = 10_000
_STARTING_SECONDS = 10.0
_LIMITS = {
    "requests_per_minute": 10**6,
    "tokens_per_minute": 10**8,
    "tokens_per_day": 10**10,
    "nano_dollars_per_month": 10**15,
}
_NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u;
  scgi_temp_path {directory}/s;
  upstream provider {{ server 127.0.0.1:{upstream}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass
class Target:
    """Somebody between client and provider. `processes` are those whose CPU and memory count."""

    name: str
    url: str
    key: str = ""
    processes: list[psutil.Process] = field(default_factory=list)
    memory_before: int = 0

    def cpu_seconds(self) -> float:
        """So far."""
        return cpu_seconds(self.processes)

    def memory_bytes(self) -> int:
        """Now."""
        return int(sum(process.memory_info().rss for process in self.processes))


def cores() -> tuple[set[int], set[int]]:
    """The core of whoever is measured, and those of all others. Raises SystemExit where there is but one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:  # noqa: PLR2004 - one for the gate, one for the rest
        raise SystemExit("Two cores are needed: one for the gate, one for those who measure it.")
    return {usable[0]}, set(usable[1:])


@contextmanager
def pinned(to: set[int]) -> Iterator[None]:
    """What is started meanwhile runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def talking(module: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is talked to by lines."""
    process = subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def gate_target(stage: Stage, provider: str) -> Iterator[Target]:
    """Sluicegate, one worker, everything on: a tenant with a cap, rates, and budgets of tokens and money."""
    with gate_on(stage, 1, OPENAI_BASE_URL=provider) as gate:
        tenant, key = gate.tenant(max_streams=_STREAMS)
        for method, path, said in (
            ("POST", "/admin/prices", {"prices": {"bench*": {"input": "1", "output": "2"}}}),
            ("PATCH", f"/admin/tenants/{tenant}", {"limits": _LIMITS}),
        ):
            gate.http(method, path, gate.admin, json=said).raise_for_status()
        yield Target("sluicegate", f"{gate.url}/v1", key, family(gate.process.pid))


@contextmanager
def nginx_target(directory: Path, provider: str) -> Iterator[Target]:
    """Debian's nginx, one worker, unbuffered, with kept connections to the provider."""
    command = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or _installed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, upstream=urlsplit(provider).port, port=port))
    process = subprocess.Popen([command, "-p", str(directory), "-c", str(config)])  # noqa: S603 - as asked
    try:
        until = time.monotonic() + _STARTING_SECONDS
        while not _listens(port) or len(family(process.pid)) < 2:  # noqa: PLR2004 - the master and one worker
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"nginx does not start: {(directory / 'error.log').read_text()}")
            time.sleep(0.02)
        yield Target("nginx", f"http://127.0.0.1:{port}/v1", "", family(process.pid))
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def _installed() -> str:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit("nginx is not on the PATH: install it, or leave --vs out.")
    print("Installing nginx ...", file=sys.stderr, flush=True)
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "nginx-light"]):
        subprocess.run(["apt-get", *words], check=True, stdout=subprocess.DEVNULL)  # noqa: S603, S607 - as asked
    return "/usr/sbin/nginx"
