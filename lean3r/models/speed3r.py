"""Speed3R-Pi3: Pi3 without registers, its global blocks with coarse-to-fine sparse attention.

`from_pi3` converts a dense Pi3: weights keep their names, register tokens are dropped, gates have their initial
values. In official names, `decoder.b` is `local_decoder.(b / 2)` for even b and `global_decoder.((b - 1) / 2)` for
odd b. Source: Ren et al. 2026, "Speed3R", and its released checkpoint.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar, Literal

from lean3r.attention.coarse_fine import Gsa
from lean3r.errors import UsageError
from lean3r.layers.block import Block
from lean3r.models.base import Backbone
from lean3r.models.keymap import KeyMap, number_blocks
from lean3r.models.pi3 import Pi3, Pi3Config


@dataclass(frozen=True)
class Speed3rConfig(Pi3Config):
    """Sizes of Speed3R-Pi3; `window`, `top_k` and `fill` are those of attention/coarse_fine.py."""

    registers: int = 0
    window: int = 4
    top_k: int = 32
    fill: Literal["unique", "repeat_last"] = "repeat_last"


def key_map(config: Speed3rConfig) -> KeyMap:
    """Names in Speed3R-Pi3 checkpoints <-> ours."""
    pairs = range(config.depth // 2)
    return KeyMap(
        (
            *number_blocks("local_decoder.{}.", "trunk.blocks.{}.", ((i, 2 * i) for i in pairs)),
            *number_blocks("global_decoder.{}.", "trunk.blocks.{}.", ((i, 2 * i + 1) for i in pairs)),
            *number_blocks(
                "global_decoder.{}.attn.gate.0.",
                "trunk.blocks.{}.attn.mechanism.gate.",
                ((i, 2 * i + 1) for i in pairs),
            ),
            ("", ""),
        )
    )


class Speed3rPi3(Pi3):
    """Pi3 for many views: any aspect ratio, sides multiples of 14. Scale is unknown; known cameras are not read.

    If all views together have fewer windows of 4 x 4 patches than top_k, the last window counts many times, as in the
    released code. The order of the views then matters a little.
    """

    name = "speed3r-pi3"
    TELLTALE: ClassVar = ("local_decoder.0.norm1.weight", (1024,))

    SIZES: ClassVar = {"speed3r-pi3": Speed3rConfig()}
    SMALLEST: ClassVar = Speed3rConfig(
        width=32,
        heads=2,
        encoder_depth=1,
        depth=4,
        grid=4,
        camera_width=16,
        # With fewer windows than top_k the last one would count several times, as in the release.
        window=2,
        top_k=2,
    )
    KEY_MAP = key_map(Speed3rConfig())

    def __init__(self, config: Speed3rConfig | None = None):
        config = config or self.SIZES["speed3r-pi3"]
        super().__init__(config)
        self.KEY_MAP = key_map(config)
        for role, block in zip(self.trunk.schedule, self.trunk.blocks, strict=True):
            if role == "global":
                assert isinstance(block, Block)
                block.attn.mechanism = Gsa(
                    config.width, config.heads, window=config.window, top_k=config.top_k, fill=config.fill
                )


def is_speed3r(names: Container[str]) -> bool:
    """Whether official names in a checkpoint are those of Speed3R-Pi3, not of Pi3."""
    return "global_decoder.0.attn.gate.0.weight" in names


def from_pi3(dense: Backbone) -> Speed3rPi3:
    """A Speed3R-Pi3 with the weights of a dense Pi3, register tokens dropped: the start of training.

    UsageError on a model with parts that Pi3 lacks (Pi3X).
    """
    if not isinstance(dense, Pi3) or type(dense.config) is not Pi3Config:
        raise UsageError(f"got {dense.name}, which Speed3R-Pi3 cannot start from; expected a Pi3.")
    model = Speed3rPi3(Speed3rConfig(**{**vars(dense.config), "registers": 0}))
    own = {name: value for name, value in dense.state_dict().items() if name != "register_token"}
    model.load_state_dict(model.state_dict() | own)
    model.origin = dense.origin
    return model.to(next(dense.parameters()).device)
