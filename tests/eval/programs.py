"""Programs that `lean3r evaluate` could run, without a network: they are started in processes of their own."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.errors import WeightsError
from lean3r.eval.runs.predicting import Predict


@dataclass(frozen=True)
class Walk:
    """Cameras that walk along x. `bad` is the first name of an item's views for which it does `what`."""

    what: str = ""
    bad: str = ""
    note: Path | None = None

    def start(self, worker: int, workers: int) -> tuple[Predict, dict[str, Any]]:
        """See Program."""
        if self.what == "no weights":
            raise WeightsError("the weights are missing")
        if self.what == "dies at once":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.predict, {"model": "walk", "plan": None, "weights": "none", "hardware": {}}

    def predict(self, pictures: Sequence[np.ndarray], names: tuple[str, ...], folder: Path) -> dict[str, Any]:
        """Write poses, or fail."""
        if self.note is not None:
            with self.note.open("a") as file:
                file.write(f"{names[0]}\n")
        if names[0] == self.bad:
            if self.what == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "sleeps":
                print(f"{self.bad} begins", flush=True)
                time.sleep(300)
            if self.what == "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            raise ValueError("this scene is too much")
        poses = np.stack([np.eye(4)] * len(names))
        poses[:, 0, 3] = np.arange(len(names))
        np.savez(folder / "predictions.npz", names=np.array(names), cam_from_world=poses)
        return {"seconds": {"network": 0.5}, "cpu_seconds": 0.25, "peak_memory_mb": 10.0}
