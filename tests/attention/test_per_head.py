"""Each head by its own mechanism: equal to running that mechanism and taking the head."""

from __future__ import annotations

import pytest
import torch

from lean3r.attention import ATTENTION
from lean3r.attention.per_head import PerHead
from lean3r.compress import compress
from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.models.nano import Nano, NanoConfig
from lean3r.types import TokenLayout

GROUPS = ([[2, 0], "frame_local", {}], [[3], "frame_subset", {"keep": [0]}])


def test_each_head_does_what_its_mechanism_does() -> None:
    torch.manual_seed(0)
    layout = TokenLayout(views=3, special=1, rows=4, cols=5)
    layer = SelfAttention(32, 4).eval()
    layer.proj = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 63, 32)

    def heads(name: str, **settings: object) -> torch.Tensor:
        layer.mechanism = ATTENTION.get(name)(**settings)
        return layer(x, layout).unflatten(-1, (4, 8))

    with torch.inference_mode():
        found = heads("per_head", heads=4, groups=GROUPS)
        own, first, dense = heads("frame_local"), heads("frame_subset", keep=[0]), heads("dense")
    for head, expected in enumerate((own, dense, own, first)):
        torch.testing.assert_close(found[:, :, head], expected[:, :, head])
    assert (own - dense).abs().max() > 0.01 < (first - dense).abs().max()


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([[[0], "merge", {}], [[0, 1], "kv_prune", {}]], "each of 0 to 1 once"),
        ([[[2], "merge", {}]], "each of 0 to 1 once"),
        ([[[0], "sla", {}]], "sla cannot be one of several"),
        ([[[0], "mergge", {}]], "merge"),
    ],
)
def test_groups_that_cannot_be(groups: list, said: str) -> None:
    model = Nano(NanoConfig(width=32, heads=2, pairs=1))
    with pytest.raises(UsageError, match=said):
        compress(
            model, {"steps": [{"target": "global blocks", "mechanism": "per_head", "settings": {"groups": groups}}]}
        )
    assert PerHead(2).heads == [[0, 1]]
