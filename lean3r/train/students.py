"""Students: copies of a teacher with a compression plan; only trained parameters require gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from lean3r.compress import compress, prepare
from lean3r.compress.plan import CompressionPlan
from lean3r.compress.sparsify import plan_of
from lean3r.errors import WeightsError
from lean3r.train.config import TrainConfig
from lean3r.train.freeze import names_of_stage

SMOOTH = ".smooth"

M = TypeVar("M", bound=nn.Module)


def student_of(start: M, plan: CompressionPlan | None) -> M:
    """A trainable copy of a model with the plan applied, if any; it shares no memory with the model.

    A model that has the mechanisms and gaps of the plan already keeps them. UsageError if the plan names blocks that
    the model lacks, or if the model is compressed in another way.
    """
    student, before = copy.deepcopy(start), plan_of(start)
    if plan is not None and before is not None and before.steps == plan.structure:
        plan = CompressionPlan(plan.quantizes, plan.name) if plan.quantizes else None
    if plan is None:
        return student
    return (prepare if plan.quantizes else compress)(student, plan)


def take_over(student: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the weights of an earlier phase, in place. Smoothing factors, which belong to its rounding, are left out or
    stay as they are if only one of both has them. WeightsError if other names or shapes differ."""
    own = student.state_dict()
    smooth = {name: value for name, value in own.items() if name.endswith(SMOOTH)}
    taken = {name: value for name, value in tensors.items() if name in own or not name.endswith(SMOOTH)}
    try:
        student.load_state_dict(smooth | taken)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit the student: {' '.join(str(error).split())}") from error


def only_trains(student: M, config: TrainConfig) -> M:
    """Turn off gradients of parameters that no stage trains; they are then neither computed nor stored."""
    trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    names = set().union(*(names_of_stage(student, stage, trainable) for stage in config.stages))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in names)
    return student
