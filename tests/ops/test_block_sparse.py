"""Attention over listed key blocks: the same results from every implementation, and what odd input comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lean3r.errors import KernelError, UsageError
from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.testing import assert_close, assert_rms

FAST = ("torch", "triton")


@dataclass(frozen=True)
class Case:
    """One call; the implementation and type are chosen later."""

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: Tensor
    query_block: int
    key_block: int
    key_mask: Tensor | None = None
    dense_keys: tuple[Tensor, Tensor] | None = None

    def attend(self, implementation: str, **changes: object) -> Tensor:
        case = replace(self, **changes)  # type: ignore[arg-type]
        return block_sparse_attention(**case.__dict__, implementation=implementation)  # type: ignore[arg-type]

    def results(self, implementation: str, kind: torch.dtype = torch.float64, device: object = "cpu") -> list[Tensor]:
        """Output, then the gradients of q, k, v and the dense keys, for a fixed cotangent; on the CPU."""

        def leaf(x: Tensor) -> Tensor:
            return x.to(device, kind).requires_grad_()  # type: ignore[call-overload]

        q, k, v = leaf(self.q), leaf(self.k), leaf(self.v)
        dense = None if self.dense_keys is None else (leaf(self.dense_keys[0]), leaf(self.dense_keys[1]))
        mask = None if self.key_mask is None else self.key_mask.to(device)  # type: ignore[call-overload]
        lists = self.blocks.to(device)  # type: ignore[call-overload]
        out = self.attend(implementation, q=q, k=k, v=v, blocks=lists, key_mask=mask, dense_keys=dense)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out)
        cotangent[q.isnan().any(-1)] = 0  # padding goes nowhere
        grads = torch.autograd.grad(out, [q, k, v, *(dense or ())], cotangent)
        return [x.detach().cpu() for x in (out, *grads)]


def random_case(
    blocks: tuple[int, int] = (5, 7), sizes: tuple[int, int] = (16, 16), dim: int = 32, listed: int = 4, seed: int = 0
) -> Case:
    """Plain lists, each block at most once."""
    made = torch.Generator().manual_seed(seed)
    (nq, nk), (query_block, key_block) = blocks, sizes
    q, k, v = (
        torch.randn(1, n, 2, dim, generator=made).transpose(1, 2) for n in (nq * sizes[0], *(nk * sizes[1],) * 2)
    )
    lists = torch.rand(1, 2, nq, nk, generator=made).topk(listed).indices.int()
    return Case(q, k, v, lists, query_block, key_block)


def everything_odd(case: Case) -> Case:
    """Duplicates, skipped entries, an empty list, hidden keys and padding queries that hold NaN, 37 dense keys."""
    made = torch.Generator().manual_seed(1)
    lists = case.blocks.clone()
    lists[0, 0, 1] = torch.tensor([2, 2, 2, 1])[: lists.shape[-1]]
    lists[0, 0, 2, ::2] = -1
    lists[0, 1, 1, 1] = case.k.shape[2] // case.key_block
    lists[0, 1, 3] = -5
    q, k, v = case.q.clone(), case.k.clone(), case.v.clone()
    mask = torch.rand(1, k.shape[2], generator=made) > 0.3
    k[:, :, ~mask[0]] = v[:, :, ~mask[0]] = torch.nan
    q[:, :, -3:] = torch.nan
    dense = torch.randn(2, 1, 2, 37, q.shape[-1], generator=made)
    return replace(case, q=q, k=k, v=v, blocks=lists, key_mask=mask, dense_keys=(dense[0], dense[1]))


def assert_agree(actual: list[Tensor], expected: list[Tensor], limit: float) -> None:
    for found, wanted in zip(actual, expected, strict=True):
        assert torch.equal(found.isnan(), wanted.isnan())
        assert_rms(found.nan_to_num(0), wanted.nan_to_num(0), limit)


@pytest.mark.parametrize("listed", [1, 3])
@pytest.mark.parametrize("extra", [0, 2])
def test_a_query_of_nan_gives_nan_however_few_its_keys(listed: int, extra: int) -> None:
    """torch's fused kernel gives 0 there for fewer keys than a register of the processor holds."""
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 2, 5, 32, generator=generator)
    q[0, 0, 3] = torch.nan
    blocks = torch.randint(5, (1, 2, 5, listed), generator=generator)
    extras = (k[:, :, :extra], k[:, :, :extra]) if extra else None
    found = block_sparse_attention(
        q, k, k, blocks, query_block=1, key_block=1, dense_keys=extras, implementation="torch"
    )
    assert found[0, 0, 3].isnan().all() and found.isnan().sum() == 32


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("odd", [False, True])
def test_gathering_equals_the_reference_in_float64(odd: bool, dense: bool) -> None:
    case = everything_odd(random_case()) if odd else random_case(sizes=(8, 24), dim=20)
    if not dense:
        case = replace(case, dense_keys=None)
    elif not odd:
        case = replace(case, dense_keys=(case.k[:, :, :24], case.v[:, :, :24]))
    assert_agree(case.results("torch"), case.results("reference"), 1e-13)


@pytest.mark.parametrize("native", [False, True])
def test_gathering_in_bfloat16(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of half types, where the processor has them, add in float32; gradients are those of float32 anywhere."""
    monkeypatch.setattr("lean3r.ops.block_sparse.gather.has_fast_bfloat16", lambda: native)
    case = everything_odd(random_case(dim=48))
    tensors = (case.q, case.k, case.v, *(case.dense_keys or ()))
    q, k, v, *dense = (x.bfloat16().double() for x in tensors)  # the same rounded input for both
    case = replace(case, q=q, k=k, v=v, dense_keys=tuple(dense))
    assert_agree(case.results("torch", torch.bfloat16), case.results("reference"), 1e-2)
    assert_agree(case.results("torch", torch.bfloat16)[:1], case.results("reference")[:1], 5e-3)


def test_gradients_of_gathering_by_differences() -> None:
    case = random_case((2, 3), (2, 2), dim=3, listed=2)
    lists = torch.tensor([[[[0, 0], [2, -1]], [[1, 2], [-1, -1]]]])
    mask = torch.tensor([[True, True, False, True, True, True]])

    def attend(q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor) -> Tensor:
        return block_sparse_attention(
            *(q, k, v, lists), query_block=2, key_block=2, key_mask=mask, dense_keys=(extra_k, extra_v)
        )

    leaves = [x.double().requires_grad_() for x in (case.q, case.k, case.v, case.k[:, :, :1], case.v[:, :, :1])]
    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize(("kind", "limit"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 5e-3)])
def test_kernel_equals_the_reference(kind: torch.dtype, limit: float, kernel_device: torch.device) -> None:
    if kernel_device.type == "cpu" and kind == torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 wrongly")
    case = everything_odd(random_case(dim=48))
    case = replace(case, q=case.q.to(kind), k=case.k.to(kind), v=case.v.to(kind))  # the same rounded input for both
    assert_agree(case.results("triton", kind, kernel_device), case.results("reference"), limit)


@pytest.mark.parametrize(
    ("sizes", "dim", "listed"), [((64, 16), 32, 3), ((16, 49), 64, 1), ((25, 64), 80, 3), ((128, 128), 128, 2)]
)
def test_kernel_sizes(sizes: tuple[int, int], dim: int, listed: int, kernel_device: torch.device) -> None:
    case = random_case((3, 3), sizes, dim, listed)
    case = replace(case, **{name: getattr(case, name)[:, :1] for name in ("q", "k", "v", "blocks")})
    assert_agree(case.results("triton", torch.float32, kernel_device), case.results("reference"), 1e-5)


@pytest.mark.parametrize("listed", [300, 700])
def test_kernel_counts_long_lists_of_one_block(listed: int, kernel_device: torch.device) -> None:
    """Lists over 255 entries need more than eight bits for a count; those over 512 are not sorted."""
    case = random_case((2, 2), listed=2)
    lists = torch.zeros(1, 1, 2, listed, dtype=torch.int32)
    lists[..., 1, :7] = 1
    case = Case(case.q[:, :1], case.k[:, :1], case.v[:, :1], lists, 16, 16)
    found = case.attend("triton", **{x: getattr(case, x).to(kernel_device) for x in ("q", "k", "v", "blocks")})
    assert_rms(found.cpu(), case.attend("reference"), 1e-5)


@pytest.mark.parametrize(("query_block", "listed"), [(16, 19), (64, 11), (128, 5), (16, 0)])
def test_kernel_takes_lists_of_any_length(
    query_block: int, listed: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above 512 blocks, where lists are counted, not sorted."""
    from lean3r.ops import tiles

    monkeypatch.setattr(tiles, "LONGEST", 4)
    case = random_case((5, 16), (query_block, 16), listed=0)
    lists = torch.randint(-1, 17, (1, 1, 5, listed), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    case = Case(case.q[:, :1], case.k[:, :1], case.v[:, :1], lists, query_block, 16)
    assert_agree(case.results("triton", torch.float32, kernel_device), case.results("reference"), 1e-5)


@pytest.mark.parametrize("implementation", ["reference", *FAST])
def test_keeping_everything_is_dense_attention(implementation: str, kernel_device: torch.device) -> None:
    case = random_case((4, 4), listed=4)
    case = replace(case, q=case.q.to(kernel_device), k=case.k.to(kernel_device), v=case.v.to(kernel_device))
    found = case.attend(implementation, blocks=case.blocks.to(kernel_device))
    assert_close(found, F.scaled_dot_product_attention(case.q, case.k, case.v), 1e-5)
    one = random_case((1, 1), listed=1)
    one = replace(one, **{x: getattr(one, x).to(kernel_device) for x in ("q", "k", "v", "blocks")})
    assert_close(one.attend(implementation), F.scaled_dot_product_attention(one.q, one.k, one.v), 1e-5)


@pytest.mark.parametrize(
    ("tokens", "block", "implementation"),
    [(63, 16, "reference"), (63, 16, "torch"), (183, 64, "torch"), (1374, 16, "torch"), (63, 32, "triton")],
)
def test_frames_of_odd_length(tokens: int, block: int, implementation: str, kernel_device: torch.device) -> None:
    """Each frame is padded to whole blocks, so none straddles two; padding holds NaN and changes nothing."""
    device = kernel_device if implementation == "triton" else "cpu"
    made = torch.Generator().manual_seed(2)
    leaves = [torch.randn(1, 1, 2, tokens, 32, generator=made).to(device).requires_grad_() for _ in range(3)]
    pad = -tokens % block
    q, k, v = (F.pad(x, (0, 0, 0, pad), value=torch.nan).flatten(2, 3) for x in leaves)
    mask = F.pad(torch.ones(1, 2, tokens, dtype=torch.bool, device=device), (0, pad)).flatten(1)
    count = q.shape[2] // block
    lists = torch.arange(count, dtype=torch.int32, device=device).expand(1, 1, count, count)
    out = Case(q, k, v, lists, block, block, mask).attend(implementation)
    out = out.unflatten(2, (2, -1))[:, :, :, :tokens]
    expected = F.scaled_dot_product_attention(*(x.flatten(2, 3) for x in leaves)).view_as(out)
    assert_close(out, expected, 1e-5)
    cotangent = torch.randn(out.shape, generator=made).to(device)
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for found, gradient in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
        assert_rms(found, gradient, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_a_list_counts_its_repeats(implementation: str) -> None:
    case = random_case((1, 2), listed=2)
    lists = torch.tensor([1, 0, 1, 1], dtype=torch.int64).expand(1, 2, 1, 4)
    scores = case.q @ case.k.mT * 32**-0.5
    scores[..., 16:] += math.log(3)
    assert_close(case.attend(implementation, blocks=lists), scores.softmax(-1) @ case.v, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_nothing_to_attend_to_gives_zeros(implementation: str) -> None:
    case = random_case()
    for empty in (
        replace(case, blocks=torch.full_like(case.blocks, -1)),
        replace(case, blocks=case.blocks[..., :0]),
        replace(case, key_mask=torch.zeros(1, case.k.shape[2], dtype=torch.bool)),
    ):
        q = empty.q.clone().requires_grad_()
        out = empty.attend(implementation, q=q)
        assert not out.any()
        assert not torch.autograd.grad(out.sum(), q)[0].any()
    no_keys = replace(case, k=case.k[:, :, :0], v=case.v[:, :, :0])
    assert not no_keys.attend(implementation).any()
    dense = (case.k[:, :, :7], case.v[:, :, :7])
    only_dense = no_keys.attend(implementation, dense_keys=dense)
    assert_close(only_dense, F.scaled_dot_product_attention(case.q, *dense), 1e-5)


def test_half_types_are_computed_in_float32_on_the_cpu() -> None:
    case = random_case()
    for kind in (torch.float16, torch.bfloat16):
        rounded = replace(case, q=case.q.to(kind), k=case.k.to(kind), v=case.v.to(kind))
        with torch.autocast("cpu", torch.bfloat16):
            found = rounded.attend("torch")
        assert found.dtype == kind
        exact = rounded.attend("reference", q=rounded.q.float(), k=rounded.k.float(), v=rounded.v.float())
        assert_close(found, exact.to(kind), 2e-2 if kind == torch.bfloat16 else 2e-3)


def test_gathering_repeats_exactly_and_is_what_auto_takes_on_the_cpu() -> None:
    case = everything_odd(random_case())
    first, second, chosen = (case.results(how, torch.float32) for how in ("torch", "torch", "auto"))
    for a, b, c in zip(first, second, chosen, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.nan_to_num(), c.nan_to_num())


def test_gathering_stays_in_bounded_memory() -> None:
    """3,200 keys for each of 400 query blocks would be 164 MB; no tensor exceeds the buffers of 2 MB."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.size = max(self.size, result.untyped_storage().nbytes())
            return result

    case = random_case((400, 400), dim=32, listed=200)
    leaves = {x: getattr(case, x)[:, :1].requires_grad_() for x in ("q", "k", "v")}
    with Largest() as seen:
        case.attend("torch", blocks=case.blocks[:, :1], **leaves).sum().backward()
    assert seen.size <= 2 << 20


def test_refusals_name_the_reason(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> None:
    for case, reason in (
        (random_case(dim=160), "head_dim 160 is not within 32 to 128"),
        (random_case(dim=16), "head_dim 16 is not within"),
        (random_case(sizes=(8, 16)), "query blocks of 8 are not within 16 to 128"),
        (random_case((1, 1), (16, 144), listed=1), "key blocks of 144"),
    ):
        with pytest.raises(KernelError, match=reason):
            case.attend("triton")
        assert case.attend("auto").isfinite().all()
    with pytest.raises(KernelError, match="float64 is not"):
        random_case().attend("triton", **{x: torch.zeros(1, 2, 112, 32).double()[:, :, :n] for x, n in SIZES})
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(KernelError, match="the tensors are on the CPU"):
        random_case().attend("triton")


SIZES = (("q", 80), ("k", 112), ("v", 112))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_block": 24}, "queries are padded to a multiple of query_block 24, got 80"),
        ({"key_block": 13}, "keys are padded to a multiple of key_block 13, got 112"),
        ({"key_block": 0}, "block sizes are at least 1"),
        ({"v": torch.zeros(1, 2, 96, 32)}, "k and v are"),
        ({"k": torch.zeros(1, 3, 112, 32), "v": torch.zeros(1, 3, 112, 32)}, "like q"),
        ({"q": torch.zeros(2, 80, 32)}, r"q is \[B, H, N, D\], got \[2, 80, 32\]"),
        ({"blocks": torch.zeros(1, 2, 4, 3, dtype=torch.int32)}, r"blocks is \[1, 2, 5, K\]"),
        ({"blocks": torch.zeros(1, 2, 5, 3)}, "blocks holds indices, got torch.float32"),
        ({"key_mask": torch.ones(1, 80, dtype=torch.bool)}, r"key_mask is a bool \[1, 112\]"),
        ({"key_mask": torch.ones(1, 112)}, "key_mask is a bool"),
        ({"dense_keys": (torch.zeros(1, 2, 3, 16),) * 2}, "dense_keys are two"),
        ({"dense_keys": (torch.zeros(1, 2, 3, 32), torch.zeros(1, 2, 4, 32))}, "dense_keys have one shape"),
        ({"q": torch.zeros(1, 2, 80, 32).half()}, "have one dtype, got torch.float16, torch.float32"),
    ],
)
def test_bad_shapes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        random_case().attend("auto", **changes)


def test_key_blocks_that_everyone_lists_are_summed_in_pieces(
    monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device
) -> None:
    from lean3r.ops.block_sparse import gradients, kernel

    monkeypatch.setattr(kernel, "_PIECE", 32)
    monkeypatch.setattr(gradients, "_ENTRIES", 40)  # a head at a time
    case = random_case((13, 40), listed=3)
    lists = case.blocks.clone()
    lists[:, 0, :, 0], lists[:, 1, ::2, 1] = 2, 39
    case = replace(case, blocks=lists)
    found = case.results("triton", torch.float32, kernel_device)
    assert_agree(found, case.results("reference"), 1e-5)
    again = case.results("triton", torch.float32, kernel_device)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    pieces = gradients.listed_by(lists, 40, 2)
    assert pieces.most == 2 and pieces.slots[0, 3] - pieces.slots[0, 2] >= 6
