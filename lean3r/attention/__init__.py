"""Attention mechanisms: what happens between projected queries, keys, values and the output."""

from lean3r.registry import Registry

ATTENTION = Registry(
    "attention mechanism",
    {
        "dense": "lean3r.attention.dense:Dense",
        "gsa": "lean3r.attention.coarse_fine:Gsa",
    },
)
