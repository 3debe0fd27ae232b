"""nano with one shared pair of blocks and one set of heads, looped: the number of loops is chosen at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.layers.causal import Sight
from lean3r.layers.looped import LoopedTrunk, positions
from lean3r.layers.matching import Feedback
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano, NanoConfig, initialise
from lean3r.types import TokenLayout


@dataclass(frozen=True)
class LoopedConfig(NanoConfig):
    """Sizes of nano-looped: always one pair. `loops` is the default number of loops."""

    pairs: int = field(default=1, init=False)
    loops: int = 4


class NanoLooped(Nano):
    """nano whose (frame, global) blocks, camera, depth and feedback heads are one set, run `loops` times.

    Set `model.loops` at any time: more loops take more time and no more parameters. In training
    the number of loops varies from step to step (train/recipes/looped.py). Beyond the trained range nothing is
    guaranteed; docs/nano.md has measurements. Source of the loop: DVLT, see layers/looped.py.
    """

    name = "nano-looped"
    TELLTALE: ClassVar = ("trunk.scales.0.out_bias", (384,))

    SIZES: ClassVar[dict[str, NanoConfig]] = {"nano-looped": LoopedConfig()}
    SMALLEST: ClassVar = LoopedConfig(width=32, heads=2)

    def __init__(self, config: NanoConfig | None = None):
        config = config or self.SIZES["nano-looped"]
        if not isinstance(config, LoopedConfig):
            config = LoopedConfig(width=config.width, heads=config.heads, patch=config.patch)
        super().__init__(config)
        dim = config.width
        self.trunk = LoopedTrunk(("frame", "frame", "global"), dim, config.heads, looped_from=1)
        self.feedbacks = nn.ModuleList([Feedback(dim)])
        self.trunk.apply(initialise)
        self.feedbacks.apply(initialise)
        self.loops = config.loops

    @property
    def loops(self) -> int:
        """Number of runs of the shared pair of blocks; UsageError unless it is a whole number of at least 1."""
        return self._loops

    @loops.setter
    def loops(self, value: int) -> None:
        """Set the number of loops, from the next call on."""
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"got {value!r} loops, expected a whole number of at least 1.")
        self._loops = value

    @property
    def rounds(self) -> int:
        """See Nano.rounds."""
        return self._loops

    def blocks_of_round(self, x: Tensor, layout: TokenLayout, index: int, sight: Sight | None = None) -> Tensor:
        """See Nano.blocks_of_round."""
        assert isinstance(self.trunk, LoopedTrunk)
        return self.trunk.one_pass(x, layout, positions(self._loops)[index])


def set_loops(model: Backbone, loops: int) -> None:
    """Set the number of loops of a looped model; UsageError on a model without a looped trunk."""
    if not isinstance(model, NanoLooped):
        raise UsageError(f"{model.name} has no looped trunk; leave the number of loops out, or use nano-looped.")
    model.loops = loops
