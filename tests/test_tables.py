"""Tables by shape: made once, equal to their definition."""

from __future__ import annotations

import torch

from lean3r import tables
from lean3r.types import TokenLayout


def test_a_table_is_made_once_for_a_device_and_type() -> None:
    layout = TokenLayout(1, 2, 5, 7, window=3)
    assert layout.order() is layout.order() and layout.windows_of(2).slots is layout.windows_of(2).slots
    args = ((5, 7, 3), torch.device("cpu"))
    first = tables.table(_count, *args)
    assert tables.table(_count, *args) is first and tables.table(_count, *args, torch.float64).dtype == torch.float64
    node = torch.ops.lean3r.table(__name__, "_count", "(5, 7, 3)", torch.device("cpu"), None)
    assert torch.equal(node, first) and node is not first
    with torch.inference_mode():
        assert not tables.table(_count, (2,), torch.device("cpu")).is_inference()


def _count(*sizes: int) -> torch.Tensor:
    return torch.tensor(sizes)


def test_windows_know_whether_they_follow_one_another() -> None:
    for rows, cols in ((1, 1), (1, 4), (4, 4), (6, 4), (4, 6), (3, 5)):
        for window in (None, 1, 2, 3, 4, 6, 8):
            for side in range(1, 7):
                windows = TokenLayout(1, 0, rows, cols, window=window).windows_of(side)
                places = windows.members.flatten()
                follow = torch.equal(places, torch.arange(len(places)))
                assert windows.adjacent == (windows.full and follow)
                assert torch.equal(places[windows.slots], torch.arange(rows * cols))
