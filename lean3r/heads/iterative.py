"""The iterative camera head of VGGT: attention between cameras refines their encodings a few times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.geometry.pose_encoding import SIZE
from lean3r.layers.block import Block
from lean3r.layers.causal import CausalBlock, Sight
from lean3r.layers.mlp import Mlp
from lean3r.types import TokenLayout

KEYS = (("", ""), ("poseLN_modulation.1.", "modulation."))
"""(official prefix, our prefix), relative to the prefix of the head."""


class IterativeCamera(nn.Module):
    """Camera tokens -> pose encodings (geometry/pose_encoding.py), refined `iterations` times.

    Each iteration starts from the same tokens, modulated by the encoding so far, and adds a correction to it. As in the
    official code, gradients do not pass from one iteration to the one before.
    """

    BLOCK: ClassVar[type[Block]] = Block

    def __init__(self, dim: int, heads: int, *, depth: int = 4, iterations: int = 4, eps: float = 1e-5):
        super().__init__()
        self.iterations = iterations
        self.trunk = nn.ModuleList(
            self.BLOCK(dim, heads, qk_norm=False, rope=False, layer_scale=0.01, eps=eps) for _ in range(depth)
        )
        self.token_norm = nn.LayerNorm(dim, eps=eps)
        self.trunk_norm = nn.LayerNorm(dim, eps=eps)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, SIZE))
        self.embed_pose = nn.Linear(SIZE, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.pose_branch = Mlp(dim, dim // 2, SIZE)

    def forward(self, tokens: Tensor, sights: Sequence[Sequence[Sight]] | None = None) -> list[Tensor]:
        """Camera tokens [B, S, C] -> the encoding [B, S, 9] after each iteration, angles of view at least 0.

        `sights` has one for each iteration that is to run and each of its blocks (CausalCamera).
        """
        batch, views, dim = tokens.shape
        layout = TokenLayout(views, 1, 0, 0)
        tokens = self.token_norm(tokens)
        plain = F.layer_norm(tokens, (dim,), eps=1e-6)
        encoding = torch.zeros(batch, views, SIZE, dtype=tokens.dtype, device=tokens.device)
        seen = self.empty_pose_tokens.expand(batch, views, -1)
        encodings = []
        for number in range(self.iterations if sights is None else len(sights)):
            shift, scale, gate = self.modulation(F.silu(self.embed_pose(seen))).chunk(3, dim=-1)
            x = gate * (plain * (1 + scale) + shift) + tokens
            for depth, block in enumerate(self.trunk):
                x = block(x, layout) if sights is None else block(x, layout, None, sights[number][depth])
            encoding = encoding.detach() + self.pose_branch(self.trunk_norm(x))
            seen = encoding.detach()
            encodings.append(torch.cat([encoding[..., :7], F.relu(encoding[..., 7:])], dim=-1))
        return encodings


class CausalCamera(IterativeCamera):
    """The same head over frames in order: each iteration of a frame sees that iteration of the frames in its sight."""

    BLOCK = CausalBlock
