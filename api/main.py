"""What uvicorn runs: `uvicorn api.main:app`. The only module that builds Settings when it is imported."""

from __future__ import annotations

from api.app import create_app
from api.settings import Settings

app = create_app(Settings())
