"""Branches mixed by gates and put in order: the kernel and the reference against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.join_windows import join_windows
from lean3r.testing import assert_rms


def draw(views: int, special: int, windows: int, size: int, heads: int, dim: int, gates: int) -> list[Tensor | None]:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    count = views * windows
    return [
        numbers(2, heads, count * size, dim),
        numbers(2, heads, count, dim),
        numbers(2, views * (special + windows * size), heads * gates) if gates else None,
        numbers(2, heads, views * special, dim) if special else None,
    ]


def one_by_one(
    selected: Tensor, compressed: Tensor, gates: Tensor | None, special: Tensor | None, views: int, size: int
) -> Tensor:
    """Token after token."""
    behind = 0 if special is None else special.shape[2] // views
    rows, patches = [], selected.shape[2] // views
    for view in range(views):
        rows += [] if special is None else [special[:, :, view * behind + i] for i in range(behind)]
        for patch in range(patches):
            at = view * patches + patch
            value = selected[:, :, at]
            if gates is not None:
                each = gates[:, view * (behind + patches) + behind + patch].sigmoid()
                each = each.unflatten(-1, (selected.shape[1], -1))
                last = each[..., 1] if each.shape[-1] == 2 else 1 - each[..., 0]
                value = each[..., :1] * compressed[:, :, at // size] + last[..., None] * value
            rows.append(value)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("how", ["reference", "triton"])
@pytest.mark.parametrize("gates", [0, 1, 2])
@pytest.mark.parametrize(
    ("views", "special", "windows", "size", "heads", "dim"),
    [(1, 0, 1, 1, 1, 8), (3, 5, 6, 16, 3, 64), (2, 1, 4, 9, 5, 20), (2, 0, 3, 4, 16, 32)],
)
def test_mixed_and_in_order(
    how: str, gates: int, views: int, special: int, windows: int, size: int, heads: int, dim: int,
    kernel_device: torch.device,
) -> None:  # fmt: skip
    given = draw(views, special, windows, size, heads, dim, gates)
    tokens = special + windows * size
    there = [None if x is None else x.to(kernel_device) for x in given]
    found = join_windows(*there, tokens=tokens, size=size, implementation=how)  # type: ignore[arg-type]
    assert found.is_contiguous()
    assert_rms(found.cpu(), one_by_one(*given, views, size), 1e-6)  # type: ignore[arg-type]


def test_half_precision_is_rounded_once(kernel_device: torch.device) -> None:
    given = draw(2, 1, 4, 16, 2, 32, 2)
    half = [None if x is None else x.half().to(kernel_device) for x in given]
    found = join_windows(*half, tokens=65, size=16, implementation="triton")  # type: ignore[arg-type]
    exact = one_by_one(*(None if x is None else x.half().float() for x in given), 2, 16)  # type: ignore[arg-type]
    assert found.dtype == torch.float16
    assert_rms(found.cpu().float(), exact, 3e-4)


def test_sizes_that_do_not_fit() -> None:
    selected, compressed, gates, special = draw(2, 1, 4, 16, 2, 32, 2)
    assert selected is not None and compressed is not None and gates is not None
    for bad in ({"tokens": 64}, {"size": 8}):
        with pytest.raises(UsageError, match="do not fit views of"):
            join_windows(selected, compressed, gates, special, **{"tokens": 65, "size": 16} | bad)
    with pytest.raises(UsageError, match="do not fit views of"):
        join_windows(selected, compressed, gates[:, :, :3], special, tokens=65, size=16)


@pytest.mark.parametrize("how", ["reference", "triton"])
def test_the_operator_keeps_to_the_rules_of_torch(how: str, kernel_device: torch.device) -> None:
    given = (None if x is None else x.to(kernel_device) for x in draw(2, 1, 4, 4, 2, 32, 2))
    torch.library.opcheck(torch.ops.lean3r.join_windows.default, (*given, 17, 4, how))
