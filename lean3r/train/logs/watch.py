"""Record a run: logs, events, TensorBoard, pictures, progress, and at the end the report."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import MissingExtraError, UsageError
from lean3r.processes import peak_memory_mb
from lean3r.train.checkpoints.disk import write_atomically
from lean3r.train.config import TrainConfig
from lean3r.train.distributed import World
from lean3r.train.logs.log import CsvLog, EventLog, Progress, draw_curves
from lean3r.train.logs.report import write_report

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

DRAW_EVERY_S = 30.0
_COLUMNS = ("step", "seconds", "lr", "views_per_s", "data_wait", "memory_mb", "skipped", "corrupt", "bad_depth")


class Watch:
    """The record of a run on one process; only rank 0 writes files. All processes must call methods that gather."""

    def __init__(self, config: TrainConfig, out_dir: Path, world: World, device: torch.device):
        self.config, self.out_dir, self.world, self.device = config, out_dir, world, device
        self.seconds = 0.0
        self.corrupt = 0
        self.bad_depth = 0
        self._drawn_at = time.monotonic()
        self._terms: list[Mapping[str, Tensor | float]] = []
        self._damaged: list[tuple[int, str]] = []
        self._bad_depth = 0
        self._board: SummaryWriter | None = None
        self._start_interval()

    def open(self, step: int) -> None:
        """Open the files after `step` steps, and drop their entries about later steps."""
        if not self.world.is_main:
            return
        for folder in (self.out_dir, self.out_dir / "pictures"):
            for leftover in folder.glob(".*.partial"):
                leftover.unlink()
        text = self.config.to_json()
        write_atomically(self.out_dir / "config.json", lambda path: path.write_text(text))
        self.log = CsvLog(self.out_dir / "log.csv", step)
        self.validation_log = CsvLog(self.out_dir / "validation.csv", step)
        self.events = EventLog(self.out_dir / "events.jsonl", step)
        if step:
            self.event(step, "resumed", processes=self.world.size)
        self._board = _open_board(self.out_dir / "tensorboard", step)
        self.progress = Progress(step, self.config.total_steps)

    def close(self) -> None:
        """Close the progress bar and the TensorBoard files."""
        if self.world.is_main and hasattr(self, "progress"):
            self.progress.close()
            if self._board is not None:
                self._board.close()

    def event(self, step: int, event: str, **facts: object) -> None:
        """Record an unusual event, on rank 0."""
        if self.world.is_main:
            self.events.append(step, event, **facts)

    def step(
        self,
        step: int,
        terms: Iterable[Mapping[str, Tensor | float]],
        loss: float,
        views: int,
        seconds: float,
        waited: float,
    ) -> None:
        """Record a completed step: terms of its batches (none if skipped), pictures of all processes, seconds."""
        self._terms += [{k: v.detach() if isinstance(v, Tensor) else v for k, v in part.items()} for part in terms]
        self._views += views
        self._steps += 1
        self._seconds += seconds
        self._waited += waited
        if self.world.is_main:
            speed, waiting = self._views / self._seconds, self._waited / self._seconds
            self.progress.step(step, loss, speed, waiting, memory_mb(self.device))

    def note_damaged(self, step: int, names: tuple[str, ...], bad_depth: int) -> None:
        """Record samples of this process that cannot be read, and the number of pixels without finite depth."""
        self._damaged += [(step, name) for name in names]
        self._bad_depth += bad_depth

    def gather_damaged(self) -> None:
        """Gather and count the damaged samples of all processes."""
        for samples, pixels in self.world.gather((self._damaged, self._bad_depth)):
            self.corrupt += len(samples)
            self.bad_depth += pixels
            for step, name in samples:
                self.event(step, "corrupt sample", id=name)
        self._damaged, self._bad_depth = [], 0

    def report(self, step: int, lr: float, skipped: int) -> None:
        """Write one row to the log: means over the steps since the last row and over all processes."""
        self.gather_damaged()
        sums: dict[str, tuple[float, int]] = {}
        for name in dict.fromkeys(name for terms in self._terms for name in terms):
            values = [float(terms[name]) for terms in self._terms if name in terms]
            sums[name] = (sum(values), len(values))
        self.seconds += self._seconds
        everywhere = self.world.gather(sums)
        if self.world.is_main:
            row: dict[str, float] = {"step": step, "seconds": round(self.seconds, 1)}
            for name in dict.fromkeys(name for part in everywhere for name in part):
                if name in _COLUMNS:
                    raise UsageError(f"the loss function returns a term '{name}', which is already a column of the log")
                parts = [part[name] for part in everywhere if name in part]
                row[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
            row |= {"lr": lr, "views_per_s": self._views / self._seconds, "data_wait": self._waited / self._seconds}
            row |= {"memory_mb": round(memory_mb(self.device)), "skipped": skipped, "corrupt": self.corrupt}
            row["bad_depth"] = self.bad_depth
            self.log.append(row)
            self._to_board(step, "train", row)
            self.progress.line(step, row, (self.config.total_steps - step) * self._seconds / self._steps)
        self._terms = []
        self._start_interval()

    def validation(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one row of validation figures, on rank 0."""
        self.validation_log.append({"step": step} | dict(figures))
        self._to_board(step, "validation", figures)
        self.progress.line(step, {f"val.{k}": v for k, v in figures.items()})
        if time.monotonic() - self._drawn_at > DRAW_EVERY_S:
            self._draw()

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Save a picture [H, W, 3] uint8 of the model's predictions, on rank 0."""
        from PIL import Image

        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise UsageError(f"draw returned {picture.dtype} {picture.shape}, expected uint8 [H, W, 3]")
        path = self.out_dir / "pictures" / f"step-{step:09d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda temporary: Image.fromarray(picture).save(temporary, format="png"))
        if self._board is not None:
            self._board.add_image("predictions", picture, step, dataformats="HWC")

    def finish(self, ending: str, step: int, skipped: int, best: Mapping[str, float] | None) -> None:
        """Plot the curves and write the report, on rank 0."""
        if self.world.is_main:
            self._draw()
            counts = {"steps": step, "skipped steps": skipped, "corrupt samples": self.corrupt}
            counts["pixels whose depth was no finite number"] = self.bad_depth
            write_report(self.out_dir, self.config, ending, counts, best, self.world.size, self.device)

    def interval_seconds(self) -> float:
        """Seconds of all steps so far, including those since the last report."""
        return self.seconds + self._seconds

    def _start_interval(self) -> None:
        self._seconds, self._waited, self._views, self._steps = 0.0, 0.0, 0, 0

    def _to_board(self, step: int, group: str, row: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(f"{group}/{name}", value, step)

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        try:
            draw_curves(self.out_dir / "log.csv", self.out_dir / "validation.csv", self.out_dir / "loss.png")
        except MissingExtraError as error:
            print(f"note: no loss curves: {error}", file=sys.stderr)


def memory_mb(device: torch.device) -> float:
    """Peak memory in MB so far: of tensors on the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory_mb()


def _open_board(folder: Path, step: int) -> SummaryWriter | None:
    """A TensorBoard writer that drops entries after `step`; without the package, None and a note on stderr."""
    if importlib.util.find_spec("tensorboard") is None:
        print(f"note: no TensorBoard files: {MissingExtraError.of('writing them', 'train')}", file=sys.stderr)
        return None
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
