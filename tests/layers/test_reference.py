"""The choice of the reference view."""

from __future__ import annotations

import pytest
import torch

from lean3r.errors import UsageError
from lean3r.layers.reference import STRATEGIES, choose_reference


def test_reference_choices() -> None:
    classes = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert choose_reference(classes, "middle").tolist() == [2, 2]
    assert choose_reference(classes[:, :2]).tolist() == [0, 0]
    assert choose_reference(torch.ones(1, 4, 8)).tolist() == [0]
    with pytest.raises(UsageError, match="saddle_balanced"):
        choose_reference(classes, "last")


@pytest.mark.parametrize("strategy", ["saddle_balanced", "saddle_sim_range"])
def test_the_choice_does_not_depend_on_the_order_of_views(strategy: str) -> None:
    assert strategy in STRATEGIES
    classes = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 4, 0, 2])
    chosen, moved = choose_reference(classes, strategy), choose_reference(classes[:, order], strategy)
    assert order[moved] == chosen
