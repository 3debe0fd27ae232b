"""Choice of the reference view (Depth Anything 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.tracing import is_traced, without_autocast

STRATEGIES = ("saddle_balanced", "saddle_sim_range", "first", "middle")


def choose_reference(classes: Tensor, strategy: str = "saddle_balanced") -> Tensor:
    """Index [B] of the reference view, chosen from the class tokens [B, S, C] of all views.

    "saddle_balanced": the view closest to the middle of the range in similarity to the others, token norm and
    token variance; "saddle_sim_range": the view with the widest range of similarities; "first"; "middle": S // 2.
    With fewer than three views it is always the first. Raises UsageError for another strategy.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"unknown reference strategy '{strategy}': expected one of {', '.join(STRATEGIES)}")
    batch, views, _ = classes.shape
    if strategy == "first" or (not is_traced() and views < 3):
        return torch.zeros(batch, dtype=torch.long, device=classes.device)
    if strategy == "middle":
        return torch.full((batch,), views // 2, device=classes.device)
    unit = F.normalize(classes.float(), dim=-1)
    with without_autocast(classes.device.type):  # in bfloat16, most views would be alike
        similarity = unit @ unit.mT - torch.eye(views, device=classes.device)
    if strategy == "saddle_sim_range":
        return _of_few(views, (similarity.amax(-1) - similarity.amin(-1)).argmax(-1))
    measures = torch.stack([similarity.sum(-1) / (views - 1), classes.float().norm(dim=-1), unit.var(-1)])
    low, high = measures.amin(-1, keepdim=True), measures.amax(-1, keepdim=True)
    scaled = (measures - low) / (high - low + 1e-8)
    return _of_few(views, (scaled - 0.5).abs().sum(0).argmin(-1))


def _of_few(views: int, chosen: Tensor) -> Tensor:
    """The choice, or the first of fewer than three views, whose number is a symbol in a traced model."""
    return chosen * (torch.full_like(chosen, views) >= 3) if is_traced() else chosen
