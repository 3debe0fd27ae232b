"""The best members of listed groups: the kernel against torch, and both against all scores sorted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.errors import KernelError
from lean3r.ops.rank_listed import rank_listed

HOW = ("reference", "torch", "triton")


def draw(groups: int, listed: int, dim: int, *, heads: int = 2, batch: int = 2) -> tuple[Tensor, ...]:
    """q, k, lists with gaps at the end, names, usable."""
    random = torch.Generator().manual_seed(groups + listed)
    q, k = torch.randn(2, batch, heads, groups, 4, dim, generator=random)
    lists = torch.rand(batch, heads, groups, groups, generator=random).argsort(-1)[..., :listed].int()
    lists[:, :, ::3, listed // 2 :] = -1
    names = torch.randperm(groups * 4, generator=random).view(groups, 4)
    usable = torch.rand(batch, groups, 4, generator=random) > 0.2
    return q, k, lists, torch.where(usable.any(0), names, -1), usable


def sorted_scores(q: Tensor, k: Tensor, lists: Tensor, names: Tensor, usable: Tensor, top_k: int) -> Tensor:
    """All scores of all members, those of groups that are not listed hidden."""
    batch, heads, groups, places, _ = q.shape
    score = q.flatten(2, 3) @ k.flatten(2, 3).mT
    near = torch.zeros(batch, heads, groups, groups, dtype=torch.bool)
    for at in range(lists.shape[-1]):
        one = lists[..., at].long()
        near |= torch.nn.functional.one_hot(one.clamp_min(0), groups).bool() & (one >= 0)[..., None]
    seen = near.repeat_interleave(places, 2).repeat_interleave(places, 3) & usable.flatten(1)[:, None, None]
    best = score.masked_fill(~seen, -torch.inf).sort(-1, descending=True)
    found = names.flatten()[best.indices].masked_fill(best.values == -torch.inf, -1)[..., :top_k]
    return torch.nn.functional.pad(found, (0, top_k - found.shape[-1]), value=-1).int()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("groups", "listed", "dim", "top_k"),
    [(1, 1, 8, 3), (7, 3, 20, 5), (9, 9, 64, 40), (20, 12, 32, 4)],
)
def test_the_best_in_order(
    how: str, groups: int, listed: int, dim: int, top_k: int, kernel_device: torch.device
) -> None:
    given = draw(groups, listed, dim)
    there = [x.to(kernel_device) for x in given]
    found = rank_listed(*there, top_k, implementation=how)  # type: ignore[arg-type, misc]
    assert torch.equal(found.cpu(), sorted_scores(*given, top_k))  # type: ignore[misc]


@pytest.mark.parametrize("how", HOW)
def test_what_is_no_number_ranks_lowest(how: str, kernel_device: torch.device) -> None:
    q, k, lists, names, usable = draw(3, 3, 16, heads=1, batch=1)
    lists[:], usable[:] = torch.arange(3), True
    names = torch.arange(12).view(3, 4)
    q[..., 0] = q[..., 0].abs() + 0.1
    k[0, 0, 1, 2, 0], k[0, 0, 2, 3, 0], k[0, 0, 0, 1, 0] = torch.nan, -torch.inf, torch.inf
    there = [x.to(kernel_device) for x in (q, k, lists.int(), names, usable)]
    found = rank_listed(*there, 12, implementation=how).cpu()  # type: ignore[arg-type, misc]
    assert (found[..., 0] == 1).all()
    assert all(set(row[-2:].tolist()) == {6, 11} for row in found[0, 0])


def test_equal_scores_in_the_order_of_names(kernel_device: torch.device) -> None:
    q, k, lists, _, usable = draw(5, 5, 16, heads=1, batch=1)
    lists[:], usable[:] = torch.tensor([4, 2, 0, 1, 3]), True
    there = [x.to(kernel_device) for x in (q, torch.zeros_like(k), lists.int(), torch.arange(20).view(5, 4), usable)]
    found = rank_listed(*there, 20, implementation="triton").cpu()  # type: ignore[arg-type, misc]
    assert torch.equal(found, torch.arange(20, dtype=torch.int32).expand(1, 1, 20, 20))


def test_what_the_kernel_refuses(kernel_device: torch.device) -> None:
    q, k, lists, names, usable = (x.to(kernel_device) for x in draw(300, 290, 8, heads=1, batch=1))
    with pytest.raises(KernelError, match="lists of 1160 members"):
        rank_listed(q, k, lists, names, usable, 4, implementation="triton")
    with pytest.raises(KernelError, match="groups of 2 members"):
        rank_listed(q[:, :, :, :2], k, lists, names, usable, 4, implementation="triton")


@pytest.mark.parametrize("how", ["reference", "triton"])
def test_the_operator_keeps_to_the_rules_of_torch(how: str, kernel_device: torch.device) -> None:
    given = (x.to(kernel_device) for x in draw(7, 3, 20))
    torch.library.opcheck(torch.ops.lean3r.rank_listed.default, (*given, 5, how))
