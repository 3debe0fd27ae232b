"""Plans and number formats by name."""

from __future__ import annotations

from lean3r.registry import Registry

PLANS = Registry(
    "plan",
    {
        "dense": "lean3r.compress.presets:dense",
        "gsa": "lean3r.compress.presets:gsa",
        "sla": "lean3r.compress.presets:sla",
        "thu-sla": "lean3r.compress.presets:thu_sla",
        "block_sparse": "lean3r.compress.presets:block_sparse",
        "merge": "lean3r.compress.presets:merge",
        "kv_prune": "lean3r.compress.presets:kv_prune",
        "by_views": "lean3r.compress.presets:by_views",
        "frame_subset": "lean3r.compress.presets:frame_subset",
        "fp8": "lean3r.compress.presets:fp8",
        "fp8-weight": "lean3r.compress.presets:fp8_weight",
        "int8-dynamic": "lean3r.compress.presets:int8_dynamic",
        "gsa-fp8": "lean3r.compress.presets:gsa_fp8",
        "sla-fp8": "lean3r.compress.presets:sla_fp8",
        "lite3r": "lean3r.compress.presets:lite3r",
        "lite3r-w4a16": "lean3r.compress.presets:lite3r_w4a16",
        "lite3r-w4a8": "lean3r.compress.presets:lite3r_w4a8",
    },
)
SCHEMES = Registry(
    "scheme",
    {
        "fp8": "lean3r.compress.schemes:Fp8",
        "fp8-weight": "lean3r.compress.schemes:Fp8Weight",
        "w4a16": "lean3r.compress.schemes:W4A16",
        "w4a8": "lean3r.compress.schemes:W4A8",
        "int8-dynamic": "lean3r.compress.schemes:Int8Dynamic",
    },
)
