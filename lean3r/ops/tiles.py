"""Triton pieces that several kernels share: rows of a matrix, lists of key blocks, the online softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 512  # list that a program sorts
TABLE_BYTES = 1 << 28
LOG2_E = tl.constexpr(math.log2(math.e))
_NOTHING = tl.constexpr(2147483647)  # sorts behind every listed block


def last_dim_dense(x: Tensor) -> Tensor:
    """x [..., D] such that the D numbers of a row are neighbours in memory, itself where they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def launch(kernel, programs: int | Callable[[dict], int], first: Tensor, *args, **constants) -> None:
    """Run a kernel in so many programs (a function of an autotuner's choice, too) on the device of `first`.

    Triton itself takes the current device, whatever the tensors are on. The programs stand in one dimension, where
    CUDA has room for 2^31 - 1; in the others, for 65,535, which 4,096 views of 16 heads exceed. `place` takes them
    apart again.
    """
    if programs == 0:
        return
    with torch.cuda.device_of(first):
        kernel[(lambda meta: (programs(meta),)) if callable(programs) else (programs,)](first, *args, **constants)


@triton.jit
def place(tiles):
    """(tile, pair of batch and head) of this program, where each pair has so many tiles."""
    at = tl.program_id(0)
    return at % tiles, (at // tiles).to(tl.int64)


def group_constants(query_block: int, listed: int, size: int) -> dict[str, int]:
    """Compile-time constants of kernels whose programs serve groups of query blocks, with unions of `size` places."""
    members = _members(query_block, listed)
    rows = triton.next_power_of_2(members * query_block)
    return {"MEMBERS": members, "BITS": _bits(members), "ROWS": rows, "SIZE": size}


def _members(query_block: int, listed: int) -> int:
    """Query blocks that share loads: up to 128 rows, and list counts that fit the bits of their share of an int32."""
    if query_block > 64 or listed > 65535:
        return 1
    return 2 if query_block > 32 or listed > 255 else 4


def _bits(members: int) -> int:
    """Bits of one member's running count."""
    return 8 if members == 4 else 16


def constants(dim: int, kind: torch.dtype, query_block: int, key_block: int) -> dict[str, int | str]:
    """Compile-time constants that all attention kernels share."""
    exact = kind == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "D": dim,
        "DIM": triton.next_power_of_2(dim),
        "QUERY_BLOCK": query_block,
        "KEY_BLOCK": key_block,
        "PRECISION": "ieee" if exact else "tf32",
    }


def unions(blocks: Tensor, query_block: int, key_blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Union of the lists of each group of query blocks. Lists of any length; above LONGEST they are not sorted, but
    counted in a table of all key blocks, for as many groups at a time as TABLE_BYTES allow.

    Returns blocks [B * H, groups, SIZE] in ascending order; running counts of the same shape, in which every member of
    the group has its own bits; and lengths [B * H, groups].
    """
    batch, heads, count, listed = blocks.shape
    members = _members(query_block, listed)
    groups, width = triton.cdiv(count, members), triton.next_power_of_2(max(1, listed))
    is_long = listed > LONGEST
    size = min(members * width, triton.next_power_of_2(max(1, key_blocks))) if is_long else members * width
    union, counts = (blocks.new_empty(batch * heads, groups, size) for _ in range(2))
    lengths = blocks.new_empty(batch * heads, groups)
    programs = groups * batch * heads
    if not is_long:
        ordered = torch.empty_like(union)
        launch(_sort_lists, programs, blocks, ordered, count, key_blocks, listed, members, width, size)
        launch(_merge_lists, programs, ordered, union, counts, lengths, members, size, _bits(members))
        return union, counts, lengths
    step = max(1, TABLE_BYTES // (4 * max(1, key_blocks)))
    for first in range(0, programs, step):
        some = min(step, programs - first)
        table = blocks.new_zeros(some, key_blocks)
        launch(_count_lists, some, blocks, table, first, count, key_blocks, listed, members, _bits(members), 1024)
        launch(_read_counts, some, table, union, counts, lengths, first, key_blocks, size, 1024)
    return union, counts, lengths


@triton.jit
def _sort_lists(
    blocks, ordered, count, key_blocks, listed, MEMBERS: tl.constexpr, LIST: tl.constexpr, SIZE: tl.constexpr
):
    """Entries block * MEMBERS + member of a group's lists, ascending; skipped entries last."""
    groups = tl.cdiv(count, MEMBERS)
    group, head = place(groups)
    i = tl.arange(0, SIZE)
    member, slot = i // LIST, i % LIST
    row = group * MEMBERS + member
    block = tl.load(blocks + (head * count + row) * listed + slot, mask=(row < count) & (slot < listed), other=-1)
    entry = tl.where((block >= 0) & (block < key_blocks), block * MEMBERS + member, _NOTHING)
    tl.store(ordered + (head * groups + group) * SIZE + i, tl.sort(entry))


@triton.jit
def _merge_lists(ordered, union, counts, lengths, MEMBERS: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Each block once, with the running counts of all members up to and including it."""
    at = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    entry = tl.load(ordered + at * SIZE + i)
    following = tl.load(ordered + at * SIZE + i + 1, mask=i + 1 < SIZE, other=_NOTHING)
    listed = entry != _NOTHING
    block = entry // MEMBERS
    last = listed & ((following == _NOTHING) | (following // MEMBERS != block))
    running = tl.cumsum(tl.where(listed, 1 << (entry % MEMBERS) * BITS, 0), 0)
    order = tl.cumsum(last.to(tl.int32), 0) - 1
    tl.store(union + at * SIZE + order, block, mask=last)
    tl.store(counts + at * SIZE + order, running, mask=last)
    tl.store(lengths + at, tl.sum(last.to(tl.int32), 0))


@triton.jit
def _count_lists(
    blocks, table, first, count, key_blocks, listed, MEMBERS: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr
):
    """How often each member of a group lists each key block. Integers, so that any order of adding gives the same."""
    groups = tl.cdiv(count, MEMBERS)
    at = first + tl.program_id(0).to(tl.int64)
    table += tl.program_id(0).to(tl.int64) * key_blocks
    for member in tl.static_range(MEMBERS):
        row = at % groups * MEMBERS + member
        source = blocks + (at // groups * count + row) * listed
        for start in range(0, listed, TILE):
            slot = start + tl.arange(0, TILE)
            block = tl.load(source + slot, mask=(row < count) & (slot < listed), other=-1)
            known = (block >= 0) & (block < key_blocks)
            tl.atomic_add(table + block, 1 << member * BITS, mask=known, sem="relaxed")


@triton.jit
def _read_counts(table, union, counts, lengths, first, key_blocks, SIZE: tl.constexpr, TILE: tl.constexpr):
    """As `_merge_lists`, from a table of counts."""
    at = first + tl.program_id(0).to(tl.int64)
    table += tl.program_id(0).to(tl.int64) * key_blocks
    length, running = 0, 0
    for start in range(0, key_blocks, TILE):
        block = start + tl.arange(0, TILE)
        times = tl.load(table + block, mask=block < key_blocks, other=0)
        listed = (times != 0).to(tl.int32)
        place_of = at * SIZE + length + tl.cumsum(listed, 0) - 1
        tl.store(union + place_of, block, mask=times != 0)
        tl.store(counts + place_of, running + tl.cumsum(times, 0), mask=times != 0)
        length += tl.sum(listed, 0)
        running += tl.sum(times, 0)
    tl.store(lengths + at, length)


def configs() -> list[triton.Config]:
    """Keys at a time, warps and stages to try; the interpreter has nothing to time.

    A list of blocks is read a stage before the keys that it names, so that three stages hold two tiles of keys.
    """
    if triton.knobs.runtime.interpret:
        return [triton.Config({"LANES": 32})]
    return [
        triton.Config({"LANES": lanes}, num_warps=warps, num_stages=stages)
        for lanes, warps, stages in ((32, 4, 2), (32, 4, 3), (32, 4, 5), (64, 4, 3), (64, 8, 3), (128, 8, 3))
    ]


def fitting(rows: str, lanes: str, dim: str) -> dict[str, Callable[..., list[triton.Config]]]:
    """Rule for an autotuner: those configurations whose tiles fit the card and its registers, else the smallest.

    The names are those of the constants that hold the sizes of the tiles. An upper bound: two tiles [rows, dim] stay,
    two [lanes, dim] pass in every stage, one [rows, lanes] lies between two products.
    """

    def those_that_fit(configs: list[triton.Config], args: dict, **constants: int | str) -> list[triton.Config]:
        if triton.knobs.runtime.interpret:
            return configs
        card = triton.runtime.driver.active
        limit = card.utils.get_device_properties(card.get_current_device())["max_shared_mem"]
        size = next(iter(args.values())).element_size()

        def tile(config: triton.Config) -> tuple[int, int, int]:
            sizes = constants | config.kwargs
            return sizes[rows], sizes[lanes], sizes[dim]

        def shared(config: triton.Config) -> int:
            r, n, d = tile(config)
            return size * (2 * r * d + r * n + 2 * config.num_stages * n * d)

        def sums(config: triton.Config) -> int:
            r, n, d = tile(config)
            return r * (n + d) // (32 * config.num_warps)

        smallest = min(configs, key=shared)
        if (
            constants["PRECISION"] == "ieee"
        ):  # keeps its operands in registers: larger tiles spill, and compile for minutes
            return [smallest]
        return [c for c in configs if shared(c) <= limit and sums(c) <= _SUMS] or [smallest]

    return {"early_config_prune": those_that_fit}


_SUMS = 128  # float32 numbers of scores and results that a thread can hold without spilling
PRUNE = fitting("ROWS", "LANES", "DIM")
GROUP_KEYS = ["QUERY_BLOCK", "KEY_BLOCK", "DIM", "SIZE", "HAS_MASK", "HAS_EXTRA", "PRECISION"]


@triton.jit
def load(base, row, stride, valid, D: tl.constexpr, DIM: tl.constexpr):
    """Rows [R, DIM] of a matrix, zero where they are not valid."""
    dim = tl.arange(0, DIM)
    return tl.load(base + row[:, None] * stride + dim[None, :], mask=valid[:, None] & (dim < D)[None, :], other=0.0)


@triton.jit
def keys_of_union(
    union, counts, length, start, key_mask, shift, FIELD: tl.constexpr, KEY_BLOCK: tl.constexpr,
    LANES: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The next keys: their rows, which of them count, and how often each row's list names them, [ROWS, LANES]."""
    lane = start + tl.arange(0, LANES)
    at = lane // KEY_BLOCK
    valid = at < length
    row = tl.load(union + at, mask=valid, other=0).to(tl.int64) * KEY_BLOCK + lane % KEY_BLOCK
    before = tl.load(counts + at - 1, mask=valid & (at > 0), other=0)
    times = tl.load(counts + at, mask=valid, other=0) - before
    if HAS_MASK:
        valid = valid & (tl.load(key_mask + row, mask=valid, other=0) != 0)
    weight = (times[None, :] >> shift[:, None]) & FIELD
    return row, valid, tl.where(valid[None, :], weight, 0)


@triton.jit
def absorb(query, key, value, weight, top, total, mixed, scale_log2, PRECISION: tl.constexpr):
    """One step of the online softmax, base 2; without a weight every key counts once."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale_log2
    if weight is not None:
        score = tl.where(weight > 0, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    share = tl.exp2(score - anchor[:, None])
    if weight is not None:
        share = share * weight
    fade = tl.exp2(top - anchor)
    mixed = mixed * fade[:, None] + tl.dot(share.to(value.dtype), value, input_precision=PRECISION)
    return higher, total * fade + tl.sum(share, 1), mixed


@triton.jit
def absorb_all(
    query, k, v, count, top, total, mixed, scale_log2, D: tl.constexpr, DIM: tl.constexpr, LANES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`count` keys and values, rows of contiguous matrices, each once: whole tiles without weights, then the rest."""
    whole = count // LANES * LANES
    for start in range(0, whole, LANES):
        at = start + tl.arange(0, LANES)
        key, value = load(k, at, D, at >= 0, D, DIM), load(v, at, D, at >= 0, D, DIM)
        top, total, mixed = absorb(query, key, value, None, top, total, mixed, scale_log2, PRECISION)
    for start in range(whole, count, LANES):
        at = start + tl.arange(0, LANES)
        key, value = load(k, at, D, at < count, D, DIM), load(v, at, D, at < count, D, DIM)
        weight = (at < count).to(tl.int32)[None, :]
        top, total, mixed = absorb(query, key, value, weight, top, total, mixed, scale_log2, PRECISION)
    return top, total, mixed
