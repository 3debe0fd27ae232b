"""Students: copies of a teacher with a compression plan; only trained parameters require gradients."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from lean3r.compress import compress, prepare
from lean3r.compress.plan import CompressionPlan
from lean3r.train.config import TrainConfig
from lean3r.train.freeze import trainable_names

M = TypeVar("M", bound=nn.Module)


def student_of(teacher: M, plan: CompressionPlan) -> M:
    """A trainable copy of the teacher with the plan applied; it shares no memory with the teacher.

    UsageError if the plan names blocks that the teacher lacks, or if the teacher is compressed itself.
    """
    return (prepare if plan.quantizes else compress)(copy.deepcopy(teacher), plan)


def only_trains(student: M, config: TrainConfig) -> M:
    """Turn off gradients of parameters that no stage trains; they are then neither computed nor stored."""
    names = set().union(*(trainable_names(student, stage.train) for stage in config.stages))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    return student
