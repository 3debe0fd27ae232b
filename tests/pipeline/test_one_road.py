"""What a run asks of the disk: the folder listed once, each picture opened once for each thing it is needed for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPY = Path(__file__).parent / "spied"
PICTURES = 5


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """(list or open, what for, name) of a run that refines the cameras, copies the pictures and minds its memory."""
    folder, log = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("heard") / "log"
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    for index in range(PICTURES):
        large.crop((8 * index, 0, 8 * index + 320, 240)).save(folder / f"{index}.jpg")
    out = log.parent / "out"
    options = ["--refine", "on", "--images", "always", "--memory", "8GB", "--resolution", "112", "-f", "colmap", "-q"]
    command = [sys.executable, "-m", "lean3r", "reconstruct", str(folder), "-o", str(out), "--device", "cpu", *options]
    spied = {"PYTHONPATH": str(SPY), "SPIED_FOLDER": str(folder), "SPIED_LOG": str(log)}
    subprocess.run(command, env={**os.environ, **spied}, check=True)
    assert len(list((out / "images").iterdir())) == PICTURES
    return [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]


def test_every_picture_is_read_for_every_purpose(events: list[list[str]]) -> None:
    """The spy hears all three; what the laws below bound from above does happen."""
    heard = Counter(purpose for what, purpose, _ in events if what == "open")
    assert all(heard[purpose] >= PICTURES for purpose in ("network", "refinement", "copies")), heard


def test_the_folder_is_listed_once(events: list[list[str]]) -> None:
    assert sum(what == "list" for what, _, _ in events) == 1


def test_a_picture_is_opened_once_per_purpose(events: list[list[str]]) -> None:
    opens = Counter((name, purpose) for what, purpose, name in events if what == "open")
    assert set(opens.values()) == {1}, opens
