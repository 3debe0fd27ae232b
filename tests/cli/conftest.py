"""A few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two landscape pictures, a portrait one, and one that is cut off."""
    folder = tmp_path_factory.mktemp("my photos")
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(90, 120), (90, 120), (120, 80)], start=1):
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"img_{index}.jpg")
    whole = (folder / "img_1.jpg").read_bytes()
    (folder / "img_4.jpg").write_bytes(whole[: len(whole) // 2])
    return folder
