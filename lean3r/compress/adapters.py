"""More adapters for third-party networks: separate projections (Hugging Face), and the official Depth Anything 3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lean3r.attention.base import Projected
from lean3r.compress.foreign import FusedQkv, called, one_role, refuse, with_roles
from lean3r.compress.targets import Part, Site
from lean3r.errors import UsageError
from lean3r.types import TokenLayout


@dataclass(frozen=True)
class SeparateQkv:
    """Attention layers with a linear layer each for queries, keys, values and output, as in transformers' ViT.

    `read_layout` returns the layout of one view from the inputs of the network, `role` the role of the n-th layer whose
    path ends in `suffix`; None leaves the layer as it is. `parts` are the names of the four layers, `heads` that of the
    number of heads. `is_pair`: the layer returns (result, attention weights); the weights are then None. Masks and
    rotations raise UsageError.
    """

    read_layout: Callable[..., TokenLayout]
    role: Callable[[int], Part | None] = one_role
    suffix: str = "attention"
    parts: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    heads: str = "num_attention_heads"
    is_pair: bool = True

    def sites(self, model: nn.Module) -> list[Site]:
        """See ForeignAttention."""
        sites: list[Site] = []
        for name, module, role in with_roles(called(model, self.suffix), self.role):
            missing = [part for part in (*self.parts, self.heads) if not hasattr(module, part)]
            if missing:
                raise UsageError(
                    f"{name} ({type(module).__name__}) lacks {', '.join(missing)}: name its own parts, or write "
                    "your own adapter for it."
                )
            query, key = (getattr(module, part).out_features for part in self.parts[:2])
            if query != key:
                raise UsageError(
                    f"{name} has keys of {key} channels and queries of {query}: write your own adapter for it."
                )
            sites.append(Site(name, role, query, getattr(module, self.heads)))
        return sites

    def layout(self, *inputs: object, **named: object) -> TokenLayout:
        """See ForeignAttention."""
        return self.read_layout(*inputs, **named)

    def project(self, attention: Any, x: Tensor, *unknown: object, **named: object) -> Projected:
        """See ForeignAttention."""
        refuse(unknown, named)
        layers = (getattr(attention, part) for part in self.parts[:3])
        q, k, v = (layer(x).unflatten(-1, (getattr(attention, self.heads), -1)).transpose(1, 2) for layer in layers)
        return Projected(x, q, k, v, lambda q, k, positions=None: (q, k))

    def output(self, attention: Any, mixed: Tensor, *inputs: object, **named: object) -> Any:
        """See ForeignAttention."""
        result = getattr(attention, self.parts[3])(mixed.transpose(1, 2).flatten(2))
        return (result, None) if self.is_pair else result


def depth_anything_3(network: nn.Module) -> FusedQkv:
    """The adapter for an any-view network of the package depth-anything-3, DepthAnything3Net.

    Blocks before `alt_start` belong to the encoder; from there on, odd blocks attend across views. The camera encoder
    stays as it is. UsageError for another network, the monocular ones included.
    """
    vit: Any = getattr(getattr(network, "backbone", None), "pretrained", None)
    start = getattr(vit, "alt_start", None)
    if start is None or start < 0:
        raise UsageError(
            f"{type(network).__name__} is no any-view network of depth-anything-3, with backbone.pretrained whose "
            "blocks alternate; expected a DepthAnything3Net (of api.DepthAnything3: its `model`)."
        )

    def layout(x: Tensor, *inputs: object, **named: object) -> TokenLayout:
        rows, cols = (side // vit.patch_size for side in x.shape[-2:])
        return TokenLayout(x.shape[1], 1 + vit.num_register_tokens, rows, cols)

    def role(index: int) -> Part | None:
        if index >= len(vit.blocks):
            return None
        return "encoder" if index < start else "global" if index % 2 else "frame"

    return FusedQkv(layout, role)
