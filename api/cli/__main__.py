"""`python -m api.cli`."""

from __future__ import annotations

from api.cli.app import main

main()
