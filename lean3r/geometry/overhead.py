"""A cloud from straight above: the highest point of each cell of a level grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """Square cells of `cell` units: row 0 is the northernmost, column 0 the westernmost; (`west`, `north`) is the outer
    corner of both."""

    west: float
    north: float
    cell: float
    rows: int
    cols: int

    @classmethod
    def around(cls, east: np.ndarray, north: np.ndarray, cell: float) -> Grid:
        """The grid that covers points [P], with corners on multiples of a cell; one cell if there are none."""
        if not len(east):
            return cls(0.0, cell, cell, 1, 1)
        west, top = np.floor(east.min() / cell) * cell, (np.floor(north.max() / cell) + 1) * cell
        cols = int(np.floor((east.max() - west) / cell)) + 1
        return cls(float(west), float(top), cell, int(np.floor((top - north.min()) / cell)) + 1, cols)

    def cells(self, east: np.ndarray, north: np.ndarray) -> np.ndarray:
        """The row-major index of each point's cell [P]; -1 outside."""
        col = np.floor((east - self.west) / self.cell).astype(np.int64)
        row = np.floor((self.north - north) / self.cell).astype(np.int64)
        row = np.where(north == self.north - self.rows * self.cell, self.rows - 1, row)
        inside = (row >= 0) & (col >= 0) & (row < self.rows) & (col < self.cols)
        return np.where(inside, row * self.cols + col, -1)

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """East [cols] and north [rows] of the cells' centres."""
        east = self.west + (np.arange(self.cols) + 0.5) * self.cell
        return east, self.north - (np.arange(self.rows) + 0.5) * self.cell


def highest(grid: Grid, east: np.ndarray, north: np.ndarray, height: np.ndarray) -> np.ndarray:
    """The index [rows, cols] of the highest of the points [P] in each cell; -1 where there is none."""
    at = grid.cells(east, north)
    order = np.argsort(height, kind="stable")
    order = order[at[order] >= 0]
    top = np.full(grid.rows * grid.cols, -1, np.int64)
    top[at[order]] = order  # the last of those in one cell stays
    return top.reshape(grid.rows, grid.cols)
