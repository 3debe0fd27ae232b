"""Where a model comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Origin:
    """How a model was loaded: the file or `hf:` source of its weights, their fingerprint (models/fingerprint.py), the
    number type to run in, and the changes that a memory budget made, in words; `is_exact` is True if these changes
    leave the results as they are; `why_dtype` says why the number type was chosen. The defaults describe a model that
    was built by hand."""

    weights: str = "built by hand"
    hash: str = ""
    dtype: torch.dtype = torch.float32
    changes: tuple[str, ...] = ()
    is_exact: bool = True
    why_dtype: str = ""
