"""Who is measured beside the gate: nginx, LiteLLM, Portkey, or whoever serves at an address.

nginx is Debian's. LiteLLM and Portkey are installed once into directories of their own below the user's
cache, from the registries that pip and npm ask; nothing of theirs is a dependency of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from scripts.rigs.targets import Target
from scripts.stage import family
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

LITELLM = "litellm[proxy]==1.106.2"
PORTKEY = "1.15.2"
_PORTKEY_NEEDS = {
    "dependencies": {"@portkey-ai/gateway": PORTKEY},
    "overrides": {"hono": "4.9.7", "@hono/node-server": "1.3.3"},
}
"""With the latest that it allows of these it answers every request with a 500."""

NAMES = ("nginx", "litellm", "portkey")

_SLOW = 10
"""Of those who take milliseconds for a request, the plan's loads divided by this are asked."""

_STARTING_SECONDS = 180.0
_KEY = "sk-bench-0123456789abcdef"
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


class Peer(NamedTuple):
    """What was asked for on the command line: a name of `NAMES`, or an address with key and process."""

    name: str
    key: str = ""
    pid: int | None = None

    def target(self, directory: Path, provider: str) -> AbstractContextManager[Target]:
        """It, running. `provider` is the base URL that it is to ask."""
        if self.name not in NAMES:
            processes = family(self.pid) if self.pid is not None else []
            return nullcontext(Target(self.name, self.name.rstrip("/"), self.key, processes))
        directory = directory / self.name
        directory.mkdir()
        if self.name == "nginx":
            return _nginx(directory, provider)
        return _litellm(directory, provider) if self.name == "litellm" else _portkey(directory, provider)


@contextmanager
def _nginx(directory: Path, provider: str) -> Iterator[Target]:
    """One worker, unbuffered, with kept connections to the provider."""
    command = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or _installed_nginx()
    port, config = free_port(), directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, upstream=urlsplit(provider).port, port=port))
    with _running([command, "-p", str(directory), "-c", str(config)], directory, port, processes=2) as pid:
        yield Target("nginx", f"http://127.0.0.1:{port}/v1", processes=family(pid))


@contextmanager
def _litellm(directory: Path, provider: str) -> Iterator[Target]:
    """One worker, a master key and no database: nothing is limited, nothing kept."""
    home = _home(LITELLM)
    command = home / "bin" / "litellm"
    if not command.exists():
        _say(f"Installing {LITELLM} ...")
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", LITELLM])
    port, config = free_port(), directory / "config.yaml"
    params = {"model": "openai/*", "api_base": provider, "api_key": "none"}
    said = {"model_list": [{"model_name": "*", "litellm_params": params}]}
    config.write_text(json.dumps(said | {"general_settings": {"master_key": _KEY}}))  # JSON is YAML
    words = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    settings = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with _running([str(command), *words], directory, port, settings) as pid:
        yield Target("litellm", f"http://127.0.0.1:{port}/v1", _KEY, family(pid), part=_SLOW)


@contextmanager
def _portkey(directory: Path, provider: str) -> Iterator[Target]:
    """Its open-source gateway: no keys, limits or ledger of its own."""
    home = _home(f"portkey=={PORTKEY}")
    script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        _say(f"Installing Portkey {PORTKEY} ...")
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text(json.dumps(_PORTKEY_NEEDS))
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home)])
    port = free_port()
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": provider}
    with _running(["node", str(script), f"--port={port}", "--headless"], directory, port) as pid:
        yield Target("portkey", f"http://127.0.0.1:{port}/v1", _KEY, family(pid), headers, _SLOW)


@contextmanager
def _running(
    command: Sequence[str],
    directory: Path,
    port: int,
    settings: Mapping[str, str] | None = None,
    *,
    processes: int = 1,
) -> Iterator[int]:
    """Its process id, once it listens; it is stopped afterwards."""
    log = directory / "output.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - as asked
            command, stdout=out, stderr=out, cwd=directory, env={**os.environ, **(settings or {})}
        )
    try:
        until = time.monotonic() + _STARTING_SECONDS
        while not _listens(port) or len(family(process.pid)) < processes:
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{command[0]} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _home(package: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sluicegate-bench" / package


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def _installed_nginx() -> str:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit("nginx is not on the PATH: install it, or leave --vs nginx out.")
    _say("Installing nginx ...")
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "nginx-light"]):
        _run(["apt-get", *words])
    return "/usr/sbin/nginx"


def _run(command: Sequence[str]) -> None:
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is needed for this yardstick, and not on the PATH.")
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # noqa: S603 - as asked
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed; what it said is above.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
