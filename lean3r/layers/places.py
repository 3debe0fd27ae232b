"""Where a call's frames lie in the buffers of a FrameCache, as numbers on the device that kernels read there.

The next call only changes the numbers, so that a CUDA graph of one step serves the steps after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Places:
    """Tensors on a device: `rows` [S * T] of the call's tokens and `slots` [S], its pages, int64; `seen` int32 [1, 2],
    the first row that it sees and their number; `always` and `others` [n] int64, pages of which some are chosen."""

    def __init__(self, sizes: Sequence[int], device: torch.device):
        # Made in inference mode they could not be written by a later call without it.
        with torch.inference_mode(False):
            self._numbers = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
            self.seen = torch.zeros(1, 2, dtype=torch.int32, device=device)
        self.rows, self.slots, self._seen, self.always, self.others = self._numbers.split(list(sizes))

    def write(self, parts: Sequence[np.ndarray]) -> None:
        """Take the numbers of a call."""
        self._numbers.copy_(torch.from_numpy(np.concatenate(parts)))
        self.seen.copy_(self._seen[None])
