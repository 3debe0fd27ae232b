"""Keys and values in E4M3, one scale a block: every path says the same, gradients pass, and what it costs is stated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.attention import ATTENTION
from lean3r.compress import resolve_plan
from lean3r.errors import UsageError
from lean3r.ops.block_sparse import block_sparse_attention, rounded_blocks
from lean3r.ops.block_sparse.coded import quantize_blocks
from lean3r.ops.fp8 import dequantize, quantize_rows
from lean3r.testing import assert_rms, snr_db

BLOCK, DIM, HEADS, QUERIES, KEYS = 16, 48, 2, 5, 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v whose blocks are of very different size, and lists with repeats and gaps."""
    q, k, v = draw(1, HEADS, QUERIES * BLOCK, DIM), *draw(2, 1, HEADS, KEYS * BLOCK, DIM, seed=1)
    k[:, :, BLOCK : 2 * BLOCK] *= 3
    v[:, 1, 2 * BLOCK : 3 * BLOCK] *= 1000
    lists = torch.rand(1, HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(2)).topk(4).indices.int()
    lists[0, 0, 1] = torch.tensor([2, 2, 2, 1])
    lists[0, 1, 3] = -1
    return q.to(kind), k.to(kind), v.to(kind), lists


def attend(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, **settings: object) -> Tensor:
    return block_sparse_attention(q, k, v, lists, query_block=BLOCK, key_block=BLOCK, **settings)  # type: ignore[arg-type]


def test_a_block_is_rounded_as_a_row_is() -> None:
    _, k, _, _ = inputs()
    for mask in (None, torch.rand(1, KEYS * BLOCK) > 0.3):
        shown = k if mask is None else k.masked_fill(~mask[:, None, :, None], 0)
        given = k if mask is None else k.masked_fill(~mask[:, None, :, None], torch.nan)
        codes, scale = quantize_rows(shown.reshape(1, HEADS, KEYS, BLOCK * DIM))
        ours, scales = quantize_blocks(given, BLOCK, mask)
        assert torch.equal(scales, scale) and scale.shape == (1, HEADS, KEYS, 1)
        assert torch.equal(ours.view(torch.uint8).view(codes.shape), codes.view(torch.uint8))
        assert torch.equal(rounded_blocks(given, BLOCK, mask), dequantize(codes, scale).view(k.shape))
        assert ours.nbytes + scales.nbytes < 0.51 * k.nbytes / 2  # half of bfloat16, but for the scales
    assert snr_db(rounded_blocks(k, BLOCK), k) > 30


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize(
    ("implementation", "kind", "limit"),
    [("torch", torch.float32, 1e-6), ("triton", torch.float32, 1e-5), ("triton", torch.float16, 5e-3)],
)
def test_every_path_multiplies_the_same_numbers(
    implementation: str, kind: torch.dtype, limit: float, extra: bool, kernel_device: torch.device
) -> None:
    device = kernel_device if implementation == "triton" else torch.device("cpu")
    q, k, v, lists = inputs(kind)
    mask = torch.rand(1, KEYS * BLOCK, generator=torch.Generator().manual_seed(3)) > 0.3 if extra else None
    dense = (k[:, :, :37], v[:, :, :37]) if extra else None
    expected = attend(
        q, rounded_blocks(k, BLOCK, mask), rounded_blocks(v, BLOCK, mask), lists,
        key_mask=mask, dense_keys=dense, implementation="reference",
    )  # fmt: skip
    if mask is not None:
        k, v = (x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (k, v))
    found = attend(
        *(x.to(device) for x in (q, k, v, lists)),
        key_mask=None if mask is None else mask.to(device),
        dense_keys=None if dense is None else tuple(x.to(device) for x in dense),
        kv="fp8",
        implementation=implementation,
    )
    assert found.isfinite().all() and found.dtype == kind
    assert_rms(found.cpu().float(), expected.float(), limit)


@pytest.mark.parametrize("implementation", ["reference", "torch", "triton"])
def test_gradients_pass_straight_through(implementation: str, kernel_device: torch.device) -> None:
    device = kernel_device if implementation == "triton" else torch.device("cpu")
    given, lists = [x.to(device) for x in inputs()[:3]], inputs()[3].to(device)

    def gradients(values: list[Tensor], how: str, kv: str) -> tuple[Tensor, ...]:
        q, k, v = leaves = [x.clone().requires_grad_() for x in values]
        return torch.autograd.grad(attend(q, k, v, lists, kv=kv, implementation=how).square().sum(), leaves)

    rounded = [given[0], *(rounded_blocks(x, BLOCK) for x in given[1:])]
    wanted = gradients(rounded, "reference", "full")
    for gradient, expected in zip(gradients(given, implementation, "fp8"), wanted, strict=True):
        assert_rms(gradient, expected, 1e-5)


def test_noise_of_8_bit_keys_and_values() -> None:
    """At least 20 dB on normal numbers, also where scores are large (queries of length 3)."""
    q, k, v = draw(3, 1, 4, 1024, 64)
    lists = torch.arange(16, dtype=torch.int32).expand(1, 4, 16, 16)
    for size in (1, 3):
        exact, near = (
            block_sparse_attention(size * q, k, v, lists, query_block=64, key_block=64, kv=kv) for kv in ("full", "fp8")
        )
        assert snr_db(near, exact) > 20


@pytest.mark.parametrize("size", [2e-3, 1.0, 6e4])
def test_values_of_any_size_in_float16(size: float, kernel_device: torch.device) -> None:
    """Shares times scales stay in the range of float16, also for a block that is listed 600 times."""
    q, k, v, lists = inputs()
    q, k, v = 0.1 * q.half(), k.half(), (size * v / v.abs().amax((2, 3), keepdim=True)).half()
    lists = lists.repeat(1, 1, 1, 150)
    lists[0, 0, 0] = 3
    exact = (q.float(), rounded_blocks(k.float(), BLOCK), rounded_blocks(v.float(), BLOCK), lists)
    expected = attend(*exact, implementation="reference")
    given = (x.to(kernel_device) for x in (q, k, v, lists))
    found = attend(*given, kv="fp8", implementation="triton").cpu().float()
    for head in range(HEADS):
        assert_rms(found[0, head], expected[0, head], 3e-3)


@pytest.mark.parametrize("broken", ["key", "value"])
def test_an_infinite_number_affects_the_queries_that_read_its_block(broken: str, kernel_device: torch.device) -> None:
    q, k, v, lists = inputs()
    (k if broken == "key" else v)[0, 0, 2 * BLOCK, 3] = torch.inf
    reads = (lists[0, 0] == 2).any(-1).repeat_interleave(BLOCK)
    for implementation in ("torch", "triton"):
        device = kernel_device if implementation == "triton" else torch.device("cpu")
        given = (x.to(device) for x in (q, k, v, lists))
        found = attend(*given, kv="fp8", implementation=implementation).cpu()
        assert torch.equal(found[0, 0].isnan().any(-1), reads) and found[0, 1].isfinite().all()


def test_no_keys_and_unknown_forms() -> None:
    q, k, v, lists = inputs()
    assert not attend(q, k[:, :, :0], v[:, :, :0], lists, kv="fp8").any()
    with pytest.raises(UsageError, match="kv is one of full, fp8, got 'int8'"):
        attend(q, k, v, lists, kv="int8")
    for name in ("gsa", "sla", "thu-sla", "block_sparse"):
        sizes = {} if name == "block_sparse" else {"dim": 64, "heads": 2}
        with pytest.raises(UsageError, match="kv is one of"):
            ATTENTION.get(name)(**sizes, kv="half")
        plan = {"steps": [{"target": "global blocks", "mechanism": name, "settings": {"kv": "fp8"}}]}
        assert "kv='fp8'" in str(resolve_plan(plan))
    with pytest.raises(UsageError, match="blocks of keys"):
        ATTENTION.get("sla")(64, 2, mode="token", kv="fp8")
