"""The pose graph of a stream: where its windows lie in the world, by the joins of neighbours and by loops.

Each edge says how the world of one window lies in that of another. Where loops contradict the chain of joins, least
squares share the contradiction out over all edges, and loops that cannot be true lose their weight (Geman and McClure).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lean3r.geometry.rotation import skew
from lean3r.stream import sim3

FREE = 256  # last windows that a loop may move: what solving costs does not grow with the stream
ROUNDS = 40
CONVERGED = 1e-7  # largest step of a round
LARGEST = 0.3  # rad, or log of a scale, that a round may change
CUT = 10.0  # standard deviations from which a loop loses its weight: it was confirmed by geometry before


@dataclass(frozen=True, eq=False)
class Edge:
    """The similarity `matrix` [4, 4] from the world of window `second` to that of window `first`.

    Its standard deviations are `angle_rad` and `log_scale`, and `length` (in units of the second world) at `centre`
    [3], the place in the second world where both were compared. It is a guess where `is_failed`.
    """

    first: int
    second: int
    matrix: np.ndarray
    centre: np.ndarray
    angle_rad: float
    length: float
    log_scale: float
    is_loop: bool = False
    is_failed: bool = False

    def state(self) -> dict[str, Any]:
        """As arrays and plain values."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Edge:
        """From `state`."""
        return cls(**state)


def off(edge: Edge, placements: Sequence[np.ndarray]) -> np.ndarray:
    """By how many standard deviations [7] an edge contradicts the placements (rotation, translation, scale)."""
    error = np.linalg.inv(placements[edge.first] @ edge.matrix) @ placements[edge.second]
    return _misfit(torch.from_numpy(error)[None], *_constants([edge])).numpy()[0]


def solve(placements: Sequence[np.ndarray], edges: Sequence[Edge]) -> list[np.ndarray]:
    """The placements (similarities [4, 4]) that contradict the edges least; the first one and those long ago stay.

    Gauss and Newton's method: derivatives by torch, the normal equations as one dense system of 7 unknowns a window.
    """
    placements = _led_by_the_loop(placements, edges)
    count = len(placements)
    start = max(1, count - FREE)
    edges = [edge for edge in edges if edge.second >= start]
    first, second = (torch.tensor([getattr(edge, end) for edge in edges]) for end in ("first", "second"))
    loops = torch.tensor([edge.is_loop for edge in edges])
    constants = _constants(edges)
    back = torch.from_numpy(np.stack([np.linalg.inv(edge.matrix) for edge in edges]))
    owner = torch.stack([first, second], 1).repeat_interleave(7, 1) - start  # of each column; below 0: it stays
    columns = (7 * owner + torch.arange(7).repeat(2)).clamp(0)
    cut = float("inf")
    for _ in range(ROUNDS):
        now = torch.from_numpy(np.stack(placements))
        step = torch.zeros(len(edges), 14, dtype=torch.float64, requires_grad=True)
        error = back @ _near(-step[:, :7]) @ torch.linalg.inv(now[first]) @ now[second] @ _near(step[:, 7:])
        misfit = _misfit(error, *constants)
        jacobian = torch.stack(
            [torch.autograd.grad(misfit[:, row].sum(), step, retain_graph=True)[0] for row in range(7)], 1
        )
        jacobian, misfit = jacobian * (owner >= 0)[:, None], misfit.detach()
        # Loops count in full at first, however far they are off, then less and less if the others contradict them.
        far = (misfit**2).sum(1)[loops].max().sqrt() if loops.any() else 0.0
        cut = max(CUT, min(float(far), cut / 2))
        weight = torch.where(loops, 1 / (1 + (misfit**2).sum(1) / cut**2) ** 2, torch.ones(()))
        product = torch.einsum("e,eri,erj->eij", weight, jacobian, jacobian)
        size = 7 * (count - start)
        normal = torch.zeros(size, size, dtype=torch.float64)
        normal.index_put_((columns[:, :, None], columns[:, None, :]), product, accumulate=True)
        gradient = torch.zeros(size, dtype=torch.float64)
        gradient.index_put_((columns,), torch.einsum("e,eri,er->ei", weight, jacobian, misfit), accumulate=True)
        moves = torch.zeros(count, 7, dtype=torch.float64)
        moves[start:] = torch.linalg.solve(normal, -gradient).view(-1, 7)
        turned = float(moves[:, [0, 1, 2, 6]].abs().max())
        moves *= min(1.0, LARGEST / turned) if turned else 1.0
        placements = [each @ sim3.exp(move) for each, move in zip(placements, moves.numpy(), strict=True)]
        if float(moves.abs().max()) < CONVERGED and cut == CUT:
            break
    return placements


def _led_by_the_loop(placements: Sequence[np.ndarray], edges: Sequence[Edge]) -> list[np.ndarray]:
    """Placements to begin with: a join that failed may be anything, so that small steps from it need not lead to what
    is true. If the last edge is the first loop across one, what follows that join lies where the loop has it."""
    found = [np.array(each) for each in placements]
    if not edges or not (loop := edges[-1]).is_loop:
        return found
    failed = [edge.second for edge in edges if edge.is_failed and loop.first < edge.second <= loop.second]
    if failed and not any(edge.is_loop and edge.first < failed[-1] <= edge.second for edge in edges[:-1]):
        move = found[loop.first] @ loop.matrix @ np.linalg.inv(found[loop.second])
        found[failed[-1] :] = [move @ each for each in found[failed[-1] :]]
    return found


def _constants(edges: Sequence[Edge]) -> tuple[Tensor, Tensor]:
    """Centres [E, 3] and standard deviations [E, 7] of edges."""
    spread = [[edge.angle_rad] * 3 + [edge.length] * 3 + [edge.log_scale] for edge in edges]
    return torch.from_numpy(np.stack([edge.centre for edge in edges])), torch.tensor(spread, dtype=torch.float64)


def _misfit(error: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """Misfits [E, 7] of similarities [E, 4, 4] that should be the identity, in standard deviations; for a rotation the
    axis times twice the sine of half its angle."""
    scale = torch.linalg.det(error[:, :3, :3]) ** (1 / 3)
    turn = error[:, :3, :3] / scale[:, None, None]
    lower = torch.stack([turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]], 1)
    upper = torch.stack([turn[:, 1, 2], turn[:, 2, 0], turn[:, 0, 1]], 1)
    half = ((1 + turn.diagonal(dim1=1, dim2=2).sum(1)).clamp(1e-9) / 4).sqrt()  # cosine of half the angle
    shift = torch.einsum("eij,ej->ei", error[:, :3, :3], centre) + error[:, :3, 3] - centre
    return torch.cat([(lower - upper) / 2 / half[:, None], shift, torch.log(scale)[:, None]], 1) / spread


def _near(step: Tensor) -> Tensor:
    """The similarities [E, 4, 4] of small steps [E, 7], to first order, as in sim3.exp."""
    linear = torch.eye(3, dtype=step.dtype) * (1 + step[:, 6, None, None]) + skew(step[:, :3])
    top = torch.cat([linear, step[:, 3:6, None]], 2)
    bottom = torch.tensor([[0.0, 0, 0, 1]], dtype=step.dtype).expand(len(step), 1, 4)
    return torch.cat([top, bottom], 1)
