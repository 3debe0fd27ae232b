"""A random nano on disk and a few pictures: the command line does not care how good the weights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lean3r.models import MODELS
from lean3r.models.checkpoint import save_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of an untrained nano."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.get("nano")()
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_weights(model.state_dict(), path, {"model": "nano"})
    return path


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
