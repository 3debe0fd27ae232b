"""Picking tokens, tables of indices that are made once, and sums in pieces that equal whole ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.attention import pieces
from lean3r.attention.base import Projected
from lean3r.attention.tokens import grid_positions, marks_of, rows_of, table, view_count, without_padding
from lean3r.types import TokenLayout


def test_rows_and_marks_take_one_index_or_one_per_scene() -> None:
    x, mask = torch.randn(2, 3, 7, 4), torch.rand(2, 7) > 0.5
    index = torch.tensor([5, 0, 0, 6])
    each = torch.stack([index, index.flip(0)])
    assert torch.equal(rows_of(x, index), x[:, :, index])
    assert torch.equal(rows_of(x, each), torch.stack([x[0][:, each[0]], x[1][:, each[1]]]))
    found = marks_of(mask, each)
    assert found is not None and torch.equal(found, torch.stack([mask[0, each[0]], mask[1, each[1]]]))
    assert marks_of(None, index) is None


made: list[TokenLayout] = []


def make(layout: TokenLayout, start: int) -> Tensor:
    made.append(layout)
    return torch.arange(start, layout.tokens)


def test_a_table_is_made_once_per_shape_and_works_in_training() -> None:
    layout, cpu = TokenLayout(views=9, special=1, rows=2, cols=3), torch.device("cpu")
    with torch.inference_mode():
        first = table(make, layout, 2, cpu, 3)
    assert table(make, layout, 2, cpu, 3) is first and len(made) == 1 and made[0].views == 2
    assert not first.is_inference() and len(table(make, layout, 2, cpu, 4)) == 3 and len(made) == 2


def test_windows_change_the_order_of_the_grid_and_no_patch_is_lost() -> None:
    plain, windows = (grid_positions(TokenLayout(1, 0, 4, 6, window=w)) for w in (None, 2))
    assert sorted(zip(*(t.tolist() for t in windows), strict=True)) == list(
        zip(*(t.tolist() for t in plain), strict=True)
    )
    assert [t[:4].tolist() for t in windows] == [[0, 0, 1, 1], [0, 1, 0, 1]]


def test_padding_is_zero_and_views_are_those_of_the_call() -> None:
    mask = torch.tensor([[True, False, True, True, True, True]])
    q = torch.full((1, 2, 6, 4), torch.nan)
    p = without_padding(Projected(torch.ones(1, 6, 8), q, q, q, lambda q, k: (q, k), mask))
    assert not p.x[0, 1].any() and not p.q[:, :, 1].any() and bool(p.q[:, :, 0].isnan().all())
    assert view_count(p, TokenLayout(views=5, special=1, rows=1, cols=2)) == 2


@pytest.mark.parametrize("total", [1, 7, 64])
def test_sums_in_pieces_equal_whole_sums_and_their_gradients(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CPU_PIECE", 10)
    x = torch.randn(1, 2, total, 4, dtype=torch.float64, requires_grad=True)
    parts = list(pieces.pieces(total, 3, x.device))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total)) and parts[0].stop <= 3
    whole, found = x.exp(), pieces.in_pieces(lambda part, x: x[:, :, part].exp(), iter(parts), x)
    assert torch.equal(found, whole)
    with torch.no_grad():
        assert torch.equal(pieces.in_pieces(lambda part, x: x[:, :, part].exp(), iter(parts), x), whole)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (found, whole)))
