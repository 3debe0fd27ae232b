"""Attention mechanisms: from projected queries, keys and values to the output."""

from lean3r.registry import Registry

ATTENTION = Registry(
    "attention mechanism",
    {
        "dense": "lean3r.attention.dense:Dense",
        "gsa": "lean3r.attention.coarse_fine:Gsa",
        "sla": "lean3r.attention.sla:SLA",
        "thu-sla": "lean3r.attention.sla:ThuSLA",
        "block_sparse": "lean3r.attention.block_mask:BlockSparse",
        "merge": "lean3r.attention.merge:TokenMerge",
        "kv_prune": "lean3r.attention.kv_prune:KeyValuePrune",
        "by_views": "lean3r.attention.by_views:ByViews",
        "frame_subset": "lean3r.attention.frame_subset:FrameSubset",
        "mean_query": "lean3r.attention.mean_query:MeanQuery",
        "matches": "lean3r.attention.matches:Matches",
        "per_head": "lean3r.attention.per_head:PerHead",
        "frame_local": "lean3r.attention.frame_local:FrameLocal",
    },
)
