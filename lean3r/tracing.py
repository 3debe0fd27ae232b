"""What runs differently while torch.export records a model: no value can be looked at, and sizes are symbols.

Work is then done whole, not in pieces: the number of pieces would be fixed to that of the example.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def is_traced() -> bool:
    """Whether torch.export is recording what runs (lean3r/deploy)."""
    return torch.compiler.is_exporting()


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Products in the tensors' own number types; a traced model has no autocast, and a region of it would not load."""
    return nullcontext() if is_traced() else torch.autocast(device, enabled=False)
