"""`.env.example` and the code name the same settings with the same defaults."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from api.settings import Settings
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
EXAMPLE = ROOT / ".env.example"
NAMES = {name.upper() for name in Settings.model_fields}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's and no `.env` of the developer's."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_setting_stands_in_the_example_and_the_reverse():
    """Whoever adds a field documents it; whoever takes one away does not leave it behind."""
    named = re.findall(r"^([A-Z0-9_]+)=", EXAMPLE.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(NAMES)


def test_the_examples_values_are_the_defaults():
    """Copying it to `.env` changes nothing."""
    assert Settings(_env_file=EXAMPLE) == Settings(_env_file=None)


def test_every_setting_can_be_set_by_its_name(monkeypatch: pytest.MonkeyPatch):
    """The names in the example are those that are read: each, set wrong or to something else, is noticed."""
    values = {
        "SECRET_KEY": GOOD,
        "SECRET_KEY_RETIRED": GOOD,
        "CORS_ORIGINS": "https://a.example",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "json",
        "OTEL_SDK_DISABLED": "true",
        "AUTO_MIGRATE": "false",
        "REDIS_URL": "redis://x",
        "REDIS_AWAY": "closed",
        "DATABASE_AWAY": "spool",
        "SPOOL_MAX_BYTES": "70000",
        "ON_DISCONNECT": "drain",
        "CONTINUOUS_USAGE": "true",
        "BUDGET_END": "error",
    }
    values |= {"EXPORT_URL": "https://bills.example/events", "EXPORT_SECRET": GOOD, "EXPORT_BATCH": "10"}
    values |= {"EXPORT_TIMEOUT_SECONDS": "10"}
    issuers = EXAMPLE.cwd() / "issuers.json"
    issuers.write_text("[]")
    values |= {"ISSUERS_FILE": str(issuers), "TRUSTED_PROXIES": "10.0.0.0/8"}
    values |= {"OPENAI_BASE_URL": "http://x", "ANTHROPIC_BASE_URL": "http://x", "HOST": "localhost"}
    values |= {"UPSTREAM_PROXY": "http://x", "UPSTREAM_CA_FILE": str(issuers)}
    values |= {"UPSTREAM_METADATA_HOSTS": "true"}
    defaults = Settings(_env_file=None)
    for name in sorted(NAMES - {"WEB_CONCURRENCY"}):
        number = isinstance(getattr(defaults, name.lower()), int | float)
        with monkeypatch.context() as changed:
            changed.setenv(name, values.get(name, "2048" if number and name != "TICK_SECONDS" else "0.5"))
            assert Settings(_env_file=None) != defaults, name


def test_a_dotenv_in_the_working_directory_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch):
    """As the example's first line says."""
    (EXAMPLE.cwd() / ".env").write_text("PORT=8123\nDEFAULT_MODEL=from-file\n")
    monkeypatch.setenv("DEFAULT_MODEL", "from-environment")
    settings = Settings()
    assert (settings.port, settings.default_model) == (8123, "from-environment")


@pytest.mark.parametrize(
    "unsafe",
    [
        {"secret_key": "short"},
        {"host": "0.0.0.0"},
        {"host": "gate.example"},
        {"host": "::"},
        {"web_concurrency": 2, "secret_key": GOOD},
        {"secret_key": "k" * 40},
        {"secret_key": "changeme" * 5},
        {"secret_key": "your-secret-key-your-secret-key-0123456789"},
        {"secret_key": GOOD, "secret_key_retired": "short"},
        {"secret_key": GOOD, "secret_key_retired": f"{GOOD[::-1]},{GOOD}"},
        {"cors_origins": "*"},
        {"cors_origins": "https://a.example/path"},
        {"cors_origins": "a.example"},
        {"trusted_proxies": "*"},
        {"trusted_proxies": "10.0.0.1/8"},
        {"trusted_proxies": "proxy.example"},
        {"issuers_file": "/nowhere/issuers.json"},
        {"redis_url": "http://x"},
        {"redis_away": "hope"},
        {"budget_end": "never"},
        {"max_worker_streams": -1},
        {"lease_seconds": 2.9, "tick_seconds": 1},
        {"openai_base_url": "ftp://x"},
        {"export_url": "ftp://bills.example"},
        {"export_url": "https://"},
        {"export_url": "https://me:hunter2@bills.example/events"},
        {"export_secret": "short"},
        {"export_secret": "whsec_not base64, by no means"},
        {"export_token": "two\r\nlines"},
        {"export_source": ""},
        {"export_source": "with spaces"},
        {"export_batch": 0},
        {"retention_months": -1},
        {"stream_seconds": 0},
        {"stream_seconds": float("inf")},
        {"default_max_streams": 0},
        {"port": 65536},
    ],
    ids=str,
)
def test_unsafe_settings_are_refused(unsafe):
    """At start, not at the first request."""
    with pytest.raises(ValueError, match="validation error"):
        Settings(_env_file=None, **unsafe)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_a_demo_binds_to_loopback(host):
    """Without a secret nobody but this machine can reach it."""
    assert Settings(_env_file=None, host=host).demo


def test_secrets_do_not_show():
    """A dump of the settings in a log gives nothing away."""
    secrets = {
        "secret_key": "hunter2-0123456789-" * 3,
        "admin_password": "hunter2",
        "openai_api_key": "sk-hunter2",
        "export_secret": "hunter2-0123456789-" * 3,
        "export_token": "hunter2",
    }
    settings = Settings(_env_file=None, **secrets)
    assert "hunter2" not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
