"""Where a model comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Origin:
    """How a model was loaded: the file or `hf:` source of its weights, their fingerprint (models/fingerprint.py), the
    number type to run in, and what a budget of memory changed, in words; `is_exact` says that none of that changes
    results. The defaults are those of a model that was built by hand."""

    weights: str = "built by hand"
    hash: str = ""
    dtype: torch.dtype = torch.float32
    changes: tuple[str, ...] = ()
    is_exact: bool = True
