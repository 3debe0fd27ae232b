"""What the tests of golden backbones share."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from backbone_cases import load_synthetic


@pytest.fixture(scope="session")
def synthetic(golden_dir: Path) -> ModuleType:
    """The module that fills parameters from their official names."""
    return load_synthetic(golden_dir)
