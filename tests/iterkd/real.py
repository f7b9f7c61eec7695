"""Real data of SODA's authors, or a skip that names it."""

import json
from pathlib import Path
from typing import Any

import pytest

SODA = Path(__file__).parents[2].parent / "shared" / "data" / "soda"


def soda(name: str) -> list[dict[str, Any]]:
    if not (SODA / name).exists():
        pytest.skip(f"needs ../shared/data/soda/{name}")
    return json.loads((SODA / name).read_text())
