"""Lite3R's and thu-ml's sparse-linear attention, block-sparse VGGT, and FastVGGT's merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from thin import same_places
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, recording
from lean3r.attention.block_mask import BlockSparse, count_kept
from lean3r.attention.blocks import block_scores, pad_mask, pad_to_blocks, pool_blocks
from lean3r.attention.dense import softmax_attention
from lean3r.attention.merge import TokenMerge, destinations, evenly_spaced, plan_merges, region_choice
from lean3r.attention.merging import MergePlan, merge, unmerge
from lean3r.attention.sla import SLA, ThuSLA, top_tokens
from lean3r.ops.rope2d import rope2d
from lean3r.testing import assert_rms, rms_ratio
from lean3r.types import TokenLayout

LIMIT = 1e-5


def load(path: Path) -> dict[str, Tensor]:
    arrays = np.load(path)
    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays if arrays[name].dtype.kind in "fiub"}


def line(tokens: int) -> TokenLayout:
    """Tokens without any picture behind them."""
    return TokenLayout(views=1, special=0, rows=1, cols=tokens)


def table_of(mechanism: Mechanism, p: Projected, layout: TokenLayout, key_blocks: int) -> Tensor:
    """The recorded lists as a table [B, H, n, m] of zeros and ones."""
    with recording() as log, torch.no_grad():
        mechanism(p, layout)
    blocks = log[-1].values["blocks"].long()
    table = torch.zeros(*blocks.shape[:3], key_blocks + 1, dtype=torch.uint8)
    return table.scatter_(-1, blocks.masked_fill(blocks < 0, key_blocks), 1)[..., :key_blocks]


def compare_gradients(out: Tensor, arrays: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
    found = torch.autograd.grad((out * arrays["cotangent"]).sum(), list(leaves.values()))
    for name, gradient in zip(leaves, found, strict=True):
        assert_rms(gradient, arrays[f"grad_{name}"], LIMIT)


def as_share(count: int, total: int) -> float:
    """A share that stands for `count` of `total`, away from any rounding."""
    return min(1.0, (count + 0.25) / total)


def sla_settings(arrays: dict[str, Tensor]) -> dict:
    """The mode, and shares that give the counts of the stored masks; token mode stores none."""
    if "critical" in arrays:
        critical, negligible = arrays["critical"], arrays["negligible"]
        total = critical.shape[-1]
        counts = [int(t[0, 0, 0].sum()) for t in (critical, negligible)]
        block = next(b for b in (16, 32, 64, 128) if -(-arrays["x"].shape[1] // b) == total)
        shares = {"critical": as_share(counts[0], total), "negligible": as_share(counts[1], total)}
        return {"mode": "three-way", "block": block, **shares}
    if "selected_blocks" in arrays:
        total, kept = arrays["selected_blocks"].shape[-1], int(arrays["selected_blocks"][0, 0, 0].sum())
        block = next(b for b in (16, 32, 64, 128) if -(-arrays["x"].shape[1] // b) == total)
        return {"mode": "block", "block": block, "keep": as_share(kept, total)}
    return {"mode": "token"}


def share_behind(expected: Tensor, p: Projected) -> float:
    """The keep ratio, a multiple of 1/20, that gives a softmax branch; the files do not state it."""
    with torch.no_grad():
        q, k = p.finish(p.q, p.k)
        return min((i / 20 for i in range(1, 21)), key=lambda s: rms_ratio(top_tokens(q, k, p.v, s), expected))


def sla(path: Path, implementation: str) -> None:
    """The whole layer: the norms and projections of the file around our mechanism."""
    arrays = load(path)
    names = [name.removeprefix("grad_") for name in arrays if name.startswith("grad_")]
    leaves = {name: arrays[name].clone().requires_grad_() for name in names}
    x, dim = leaves["x"], arrays["x"].shape[-1]
    head_dim = arrays["proj_lin.weight"].shape[0]
    settings = sla_settings(arrays)
    mechanism = SLA(dim, dim // head_dim, filling="zeros", implementation=implementation, **settings)  # type: ignore[arg-type]
    mechanism.load_state_dict({"proj_lin.weight": arrays["proj_lin.weight"], "lam": torch.tensor(0.5)})
    leaves["proj_lin.weight"] = mechanism.proj_lin.weight

    def finish(*pair: Tensor) -> tuple[Tensor, ...]:
        for which, name in enumerate(("q_norm", "k_norm")):
            t = pair[which]
            if f"{name}.weight" in leaves:
                t = F.layer_norm(t, t.shape[-1:], leaves[f"{name}.weight"], leaves[f"{name}.bias"], 1e-5)
            if "pos" in arrays:
                t = rope2d(t, arrays["pos"])
            pair = (*pair[:which], t, *pair[which + 1 :])
        return pair

    qkv = F.linear(x, leaves["qkv.weight"], leaves["qkv.bias"])
    q, k, v = qkv.unflatten(-1, (3, -1, head_dim)).permute(2, 0, 3, 1, 4)
    p = Projected(x, q, k, v, finish)  # type: ignore[arg-type]
    layout = line(x.shape[1])
    if mechanism.mode == "token":
        mechanism.keep = share_behind(arrays["a_topk"], p)
    near, far = mechanism.branches(p, layout)
    assert_rms(near, arrays["a_topk"], LIMIT)
    assert_rms(far, arrays["a_lin"], LIMIT)
    for name in ("selected_blocks", "critical"):
        if name in arrays:
            assert torch.equal(table_of(mechanism, p, layout, arrays[name].shape[-1]), arrays[name])
    out = F.linear(mechanism(p, layout).transpose(1, 2).flatten(2), leaves["proj.weight"], leaves["proj.bias"])
    assert_rms(out, arrays["out"], LIMIT)
    compare_gradients(out, arrays, leaves)


def thu_sla(path: Path, implementation: str) -> None:
    arrays, file = load(path), np.load(path)
    leaves = {name: arrays[name].clone().requires_grad_() for name in "qkv"}
    q, k, v = leaves.values()
    heads, tokens, head_dim = q.shape[1:]
    sizes = {name: int(arrays[source]) for name, source in (("query_block", "block_q"), ("key_block", "block_k"))}
    mechanism = ThuSLA(
        heads * head_dim,
        heads,
        keep=float(arrays["topk_ratio"]),
        feature=str(file["feature_map"]),  # type: ignore[arg-type]
        implementation=implementation,  # type: ignore[arg-type]
        **sizes,
    )
    mechanism.load_state_dict({name: arrays[name] for name in ("proj_l.weight", "proj_l.bias")})
    leaves |= {f"proj_l.{name}": value for name, value in mechanism.proj_l.named_parameters()}
    p = Projected(q.detach().transpose(1, 2).flatten(2), q, k, v, lambda q, k: (q, k))
    layout = line(tokens)
    near, far = mechanism.branches(p, layout)
    assert_rms(near, arrays["out_sparse"], LIMIT)
    assert_rms(far, arrays["out_linear"], LIMIT)
    wanted = arrays["selected_blocks"]
    if not wanted.all():
        assert torch.equal(table_of(mechanism, p, layout, wanted.shape[-1]), wanted)
    out = mechanism(p, layout)
    assert_rms(out, arrays["out"], LIMIT)
    compare_gradients(out, arrays, leaves)


def sparse_vggt(path: Path, implementation: str) -> None:
    arrays, file = load(path), np.load(path)
    q, k, v = (arrays[name] for name in "qkv")
    rows, cols = arrays["grid"].tolist()
    layout = TokenLayout(int(arrays["frames"]), int(arrays["special"]), rows, cols)
    used = {"sparsity": float(arrays["sparse_ratio"]), "threshold": float(arrays["cdf_threshold"])}
    used = {name: None if value < 0 else value for name, value in used.items()}
    pool = str(file["pool_mode"])
    mechanism = BlockSparse(**used, pool=pool, implementation=implementation)  # type: ignore[arg-type]

    patches = [t.unflatten(2, (layout.views, -1))[:, :, :, layout.special :].flatten(2, 3) for t in (q, k)]
    means = [
        pool_blocks(pad_to_blocks(t, size), size, pad_mask(None, t, size), pool)[0]  # type: ignore[arg-type]
        for t, size in zip(patches, (128, 64), strict=True)
    ]
    prob = block_scores(means[0] * q.shape[-1] ** -0.5, means[1], None).softmax(-1)
    assert_rms(prob, arrays["pooled_prob"], LIMIT)
    kept = count_kept(prob.sort(dim=-1, descending=True).values, **used)
    assert torch.equal(kept.int(), arrays["num_selected"])

    p = Projected(q.transpose(1, 2).flatten(2), q, k, v, lambda q, k: (q, k))
    mask = arrays["block_mask"]
    assert torch.equal(table_of(mechanism, p, layout, mask.shape[-1]), mask)
    assert_rms(mechanism(p, layout), arrays["out"], LIMIT)


def fastvggt(path: Path, implementation: str) -> None:
    """Arithmetic with the sets of the file; then which sets we would have taken."""
    arrays = load(path)
    sets = {name: arrays[name].long() for name in arrays if name.endswith("_tokens") or name == "src_dst_index"}
    plan = MergePlan(
        sets["dst_tokens"], sets["src_tokens"][None], sets["src_dst_index"][None], sets["unmerged_tokens"][None],
        sets["protected_tokens"],
    )  # fmt: skip
    heads, tokens = int(arrays["heads"]), arrays["q"].shape[1]
    q, k, v = (arrays[name].unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv")
    merged = [merge(t, plan) for t in (q, k, v)]
    for name, found in zip("qkv", merged, strict=True):
        assert_rms(*same_places(found.transpose(1, 2).flatten(2), arrays, f"{name}_merged"), LIMIT)
    attended = softmax_attention(*merged)
    assert_rms(*same_places(attended.transpose(1, 2).flatten(2), arrays, "attn_merged"), LIMIT)
    assert_rms(*same_places(unmerge(attended, plan, tokens).transpose(1, 2).flatten(2), arrays, "out"), LIMIT)

    special = tokens // int(arrays["frames"]) - int(arrays["grid_w"]) * int(arrays["grid_h"])
    layout = TokenLayout(int(arrays["frames"]), special, int(arrays["grid_h"]), int(arrays["grid_w"]))
    choice = None if arrays["no_rand"] else arrays["region_choice"].long()
    to = destinations(layout, choice).nonzero()[:, 0]
    kept = evenly_spaced(layout, 0.1 if arrays["protection"] else 0.0)
    assert set(to.tolist()) == set(sets["dst_tokens"].tolist())
    assert kept.tolist() == sets["protected_tokens"].tolist()
    sources = torch.tensor(sorted(set(range(tokens)) - set(to.tolist()) - set(kept.tolist())))
    found = plan_merges(arrays["metric"], to, sources, kept, int(arrays["r"]))
    joined = dict(zip(found.sources[0].tolist(), to[found.targets[0]].tolist(), strict=True))
    assert joined == dict(zip(sets["src_tokens"].tolist(), to_tokens(sets), strict=True))
    assert set(found.unmerged[0].tolist()) == set(sets["unmerged_tokens"].tolist())

    if choice is not None and not torch.equal(choice, region_choice(layout, 33)):
        return  # the regions of another seed: the whole mechanism cannot be asked for them
    mechanism = TokenMerge(
        float(arrays["ratio"]), protect=0.1 if arrays["protection"] else 0.0, random=not arrays["no_rand"]
    )
    p = Projected(arrays["metric"], q, k, v, lambda q, k: (q, k))
    assert_rms(*same_places(mechanism(p, layout).transpose(1, 2).flatten(2), arrays, "out"), LIMIT)


def to_tokens(sets: dict[str, Tensor]) -> list[int]:
    """Destination token of each merged source."""
    return sets["dst_tokens"][sets["src_dst_index"]].tolist()


CASES = {"sla_": sla, "sla_3way": sla, "thu_sla": thu_sla, "sparse_vggt": sparse_vggt, "fastvggt": fastvggt}
IMPLEMENTATIONS = {
    "sla_": ("reference", "auto"),
    "sla_3way": ("reference", "auto", "triton"),
    "thu_sla": ("reference", "auto", "triton"),
    "sparse_vggt": ("reference", "auto"),
}
