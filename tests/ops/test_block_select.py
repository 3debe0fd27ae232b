"""Block selection: every implementation against the definition, selection apart from arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.errors import KernelError, UsageError
from lean3r.ops.block_select import Selection, block_select, reference, torch_path
from lean3r.testing import assert_rms

FAST = ("torch", "triton")  # besides the reference


def projections(nq: int, nk: int, *, heads: int = 2, dim: int = 32, batch: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, n, dim, generator=generator) for n in (nq, nk, nk)]


def plain(q: Tensor, k: Tensor, top_k: int) -> Tensor:
    """The definition in one line a row: sort all scores, the lower index first among equal ones."""
    return torch.sort(q.float() @ k.float().mT, dim=-1, descending=True, stable=True).indices[..., :top_k].int()


def run(q: Tensor, k: Tensor, v: Tensor, top_k: int, how: str, **rest) -> Selection:
    """block_select where this implementation runs, results on the CPU."""
    device = "cpu"
    if how == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rest = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in rest.items()}
    got = block_select(q.to(device), k.to(device), v.to(device), top_k, implementation=how, **rest)
    return Selection(got.blocks.cpu(), got.out.cpu(), got.lse.cpu())


def assert_valid(blocks: Tensor, keys: int) -> None:
    """Every list names distinct keys, then -1."""
    assert blocks.dtype == torch.int32 and int(blocks.max()) < keys and int(blocks.min()) >= -1
    ended = blocks < 0
    assert not (ended[..., :-1] & ~ended[..., 1:]).any()
    ranked = blocks.sort(dim=-1).values
    assert not ((ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0)).any()


@pytest.mark.parametrize(
    ("nq", "nk", "top_k"), [(63, 183, 8), (1, 1, 3), (183, 63, 100), (5, 1374, 32), (40, 1374, 300)]
)
def test_reference_and_torch_match_the_definition(nq: int, nk: int, top_k: int) -> None:
    q, k, v = projections(nq, nk)
    expected = plain(q, k, top_k)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for how in ("reference", "torch"):
        got = run(q, k, v, top_k, how)
        assert got.blocks.shape == (1, 2, nq, top_k)
        assert torch.equal(got.blocks[..., : expected.shape[-1]], expected)
        assert (got.blocks[..., expected.shape[-1] :] == -1).all()
        assert_rms(got.out, dense, 1e-5)
        assert_rms(got.lse, (q @ k.mT * 32**-0.5).logsumexp(-1), 1e-5)


@pytest.mark.parametrize(
    ("nq", "nk", "top_k", "dim", "dtype"),
    [(63, 183, 5, 48, torch.float32), (9, 1374, 40, 32, torch.float16)],
)
def test_kernel_matches_the_reference(nq: int, nk: int, top_k: int, dim: int, dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype).requires_grad_() for t in projections(nq, nk, heads=1, dim=dim))
    got, expected = (run(q, k, v, top_k, how) for how in ("triton", "reference"))
    assert_valid(got.blocks, nk)
    scores = (q.float() @ k.float().mT).detach()
    difference = scores.gather(-1, got.blocks.long()) - scores.gather(-1, expected.blocks.long())
    assert difference.abs().max() <= 1e-5 * scores.abs().max()
    limit = 1e-5 if dtype == torch.float32 else 5e-3
    assert_rms(got.out, expected.out, limit)
    assert_rms(got.lse, expected.lse, 1e-5)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(got.out.shape, generator=generator), torch.randn(got.lse.shape, generator=generator)
    sums = [(s.out * weights[0]).sum() + (s.lse * weights[1]).sum() for s in (got, expected)]
    for ours, theirs in zip(*(torch.autograd.grad(s, (q, k, v)) for s in sums), strict=True):
        assert_rms(ours, theirs, limit)


@pytest.mark.parametrize(("nk", "top_k"), [(1500, 520), (1501, 70), (600, 599), (40, 520)])
def test_lists_of_any_length_are_the_definition(nk: int, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does above 512 blocks, where it multiplies and ranks a few rows at a time."""
    pytest.importorskip("triton", reason="triton is not installed")
    from lean3r.ops.block_select import kernel, long_lists

    monkeypatch.setattr(kernel, "LONGEST", 64 if top_k < 512 else 512)
    monkeypatch.setattr(long_lists, "_BYTES", 40 * 1600 * 2)  # two rows at a time
    q, k, v = projections(5, nk, heads=1, dim=16, batch=2)
    k = (k * 4).round().div(4)
    q = (q * 4).round().div(4)  # exact scores with ties
    q[0, 0, 1, 0] = torch.nan
    mask = torch.rand(2, nk, generator=torch.Generator().manual_seed(0)) < 0.9
    mask[1, 30:] = False
    for masked in (None, mask):
        got, expected = (run(q, k, v, top_k, how, key_mask=masked, skip=(5, 2)) for how in ("triton", "reference"))
        assert torch.equal(got.blocks, expected.blocks)
        assert_rms(got.out.nan_to_num(), expected.out.nan_to_num(), 1e-5)


def test_blocks_that_are_skipped_leave_the_kernel_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed3R attends to the windows of every hundredth view: they are not searched for."""
    pytest.importorskip("triton", reason="triton is not installed")
    from lean3r.ops.block_select import kernel

    monkeypatch.setattr(kernel, "best_keys", None)
    q, k, v = projections(3, 700, heads=1, dim=16)
    got = run(q, k, v, 20, "triton", skip=range(540))
    assert torch.equal(got.blocks, 540 + plain(q, k[:, :, 540:], 20))


def test_three_levels_and_chunks_of_rows_choose_what_the_definition_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from lean3r.ops.block_select import kernel, kernel_search

    monkeypatch.setattr(kernel, "WORKSPACE", 1)  # 128 rows at a time
    monkeypatch.setattr(kernel_search, "SPAN", 4)  # more than 32 spans of 4 groups of 16 keys: all three levels
    q, k, v = projections(130, 2100, heads=1, dim=16)
    got = run(q, k, v, 7, "triton")
    assert torch.equal(got.blocks, plain(q, k, 7))
    assert_rms(got.out, torch.nn.functional.scaled_dot_product_attention(q, k, v), 1e-5)


@pytest.mark.parametrize(("nk", "top_k"), [(1, 2), (601, 1), (2100, 33), (400, 150)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_searches_any_scores_exactly(
    nk: int, top_k: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal scores by the hundred, none that is finite, tiny and huge ones, fewer keys than are wanted."""
    pytest.importorskip("triton", reason="triton is not installed")
    from lean3r.ops.block_select import kernel_search

    monkeypatch.setattr(kernel_search, "SPAN", 4)
    q, k, v = ((t * 2).round().div(2) for t in projections(6, nk, heads=1, dim=16, batch=2))
    k[:, :, nk // 3 : nk // 2] = k[:, :, :1]
    k[1, :, nk // 2 :] = 0
    q[:, :, 1:3] = 0
    q[:, :, 2, 0] = torch.inf  # times keys: infinities of both signs, and NaN
    q[:, :, 3, 1] = torch.nan
    q[:, :, 4] *= 2.0**-100
    q[:, :, 5] *= 2.0**100
    mask = torch.rand(2, nk, generator=torch.Generator().manual_seed(1)) < torch.tensor([[0.5], [0.03]])
    got, expected = (
        run(q, k, v, top_k, how, key_mask=mask if masked else None, skip=(nk // 2,)) for how in ("triton", "reference")
    )
    assert torch.equal(got.blocks, expected.blocks)


def test_torch_gradients_with_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_path, "_CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 1000)
    q, k, v = (t.requires_grad_() for t in projections(63, 183, batch=2))
    mask = torch.rand(2, 183, generator=torch.Generator().manual_seed(0)) < 0.7
    got, expected = (run(q, k, v, 9, how, key_mask=mask) for how in ("torch", "reference"))
    assert torch.equal(got.blocks, expected.blocks)
    sums = [s.out.square().sum() + s.lse.square().sum() for s in (got, expected)]
    for ours, theirs in zip(*(torch.autograd.grad(s, (q, k, v)) for s in sums), strict=True):
        assert_rms(ours, theirs, 1e-5)


@pytest.mark.parametrize("how", ("reference", *FAST))
def test_ties_go_to_the_lower_index(how: str) -> None:
    q, k, v = projections(20, 70, heads=1, dim=16)
    k = (k[:, :, :10] * 4).round().div(4).repeat(1, 1, 7, 1)  # exact scores, each seven times
    q = (q * 4).round().div(4)
    assert torch.equal(run(q, k, v, 12, how).blocks, plain(q, k, 12))
    assert torch.equal(run(q * 0, k, v, 12, how).blocks[0, 0, 3], torch.arange(12, dtype=torch.int32))


def test_negative_zero_ranks_below_zero_and_order_is_total() -> None:
    values = torch.tensor([-torch.inf, torch.finfo().min, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, torch.inf])
    assert reference.ordered_bits(values).diff().min() > 0
    scores = torch.tensor([-0.0, 0.0, -0.0, 0.0])[None, :, None]
    assert torch_path._best(scores, scores, 1, 4, [])[0, 0].tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("how", ("reference", *FAST))
def test_masks_and_skipped_blocks(how: str) -> None:
    q, k, v = projections(6, 63, batch=2, heads=1, dim=16)
    mask = torch.ones(2, 63, dtype=torch.bool)
    mask[0, 40:] = False
    mask[0, 2] = False
    mask[1] = False
    mask[1, [7, 9, 30]] = True
    k[~mask[:, None]] = torch.nan  # what padding holds reaches nobody
    v[~mask[:, None]] = torch.nan
    got = run(q, k, v, 8, how, key_mask=mask, skip=(9, 2))
    assert_valid(got.blocks, 63)
    for row in range(6):
        scores = (q[0, 0, row] @ k[0, 0].T).masked_fill(~mask[0], -torch.inf)
        rest = [i for i in scores.argsort(descending=True).tolist() if i != 9]
        assert got.blocks[0, 0, row].tolist() == rest[:8]
    assert set(got.blocks[1].flatten().tolist()) == {7, 30, -1}
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.nan_to_num(), v.nan_to_num(), attn_mask=mask[:, None, None]
    )
    assert_rms(got.out, expected, 1e-5)

    repeated = run(q, k, v, 8, how, key_mask=mask, fill="repeat_last")
    assert (repeated.blocks[1, ..., 3:] == 30).all()
    nothing = run(q, k, v, 2, how, key_mask=mask & False)
    assert (nothing.blocks == -1).all() and (nothing.out == 0).all() and (nothing.lse == -torch.inf).all()


@pytest.mark.parametrize("how", ("reference", *FAST))
def test_nan_in_q_stays_in_its_row(how: str) -> None:
    q, k, v = projections(5, 63, heads=1, dim=16)
    clean = run(q, k, v, 4, how)
    q[0, 0, 3, 1] = torch.nan
    got = run(q, k, v, 4, how)
    assert got.out[0, 0, 3].isnan().all() and got.lse[0, 0, 3].isnan()
    assert_valid(got.blocks, 63)
    assert got.blocks[0, 0, 3].tolist() == [0, 1, 2, 3]
    others = [0, 1, 2, 4]
    assert torch.equal(got.blocks[:, :, others], clean.blocks[:, :, others])
    assert_rms(got.out[:, :, others], clean.out[:, :, others], 1e-6)


def test_release_fill_repeats_the_last_block() -> None:
    q, k, v = projections(3, 5)
    blocks = block_select(q, k, v, 8, fill="repeat_last").blocks
    assert (blocks[..., 5:] == 4).all() and torch.equal(blocks[..., :5], plain(q, k, 5))


def test_lower_precision_ranks_by_float32_scores_even_under_autocast() -> None:
    q, k, v = (t.bfloat16() for t in projections(63, 183))
    with torch.autocast("cpu", torch.bfloat16):
        got = block_select(q.float(), k.float(), v, 6)
    assert got.out.dtype == torch.bfloat16 and got.lse.dtype == torch.float32
    assert torch.equal(got.blocks, plain(q, k, 6))


def test_errors_name_what_was_expected() -> None:
    q, k, v = projections(3, 5)
    with pytest.raises(UsageError, match=r"blocks 0\.\.4, got 2\.\.5"):
        block_select(q, k, v, 4, skip=[2, 5])
    with pytest.raises(UsageError, match="top_k >= 1"):
        block_select(q, k, v, 0)
    with pytest.raises(UsageError, match=r"key_mask is torch.bool \[B, nk\] = \(1, 5\)"):
        block_select(q, k, v, 2, key_mask=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(UsageError, match="positive scale"):
        block_select(q, k, v, 2, scale=0.0)
    with pytest.raises(UsageError, match=r"expects q \[B, H, nq, D\]"):
        block_select(q[0], k, v, 2)
    with pytest.raises(KernelError, match="head_dim 160 is above 128"):
        block_select(*projections(3, 5, dim=160), 2, implementation="triton")


@pytest.mark.parametrize(("batch", "rows"), [(0, 3), (1, 0)])
@pytest.mark.parametrize("how", ["reference", "torch"])
def test_nothing_is_chosen_for_nothing(batch: int, rows: int, how: str) -> None:
    got = block_select(*projections(rows, 5, batch=batch), 2, implementation=how)
    assert got.blocks.shape == (batch, 2, rows, 2) and got.blocks.dtype == torch.int32
    assert got.out.shape == (batch, 2, rows, 32) and got.lse.shape == (batch, 2, rows)
