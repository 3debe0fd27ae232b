"""Students: copies of a teacher that wear a plan, and ask gradients for what trains alone."""

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
    """A network with the teacher's weights, in memory of its own, that wears a plan and can be trained.

    UsageError where the plan names blocks that the teacher lacks, and where the teacher is compressed itself.
    """
    return (prepare if plan.quantizes else compress)(copy.deepcopy(teacher), plan)


def only_trains(student: M, config: TrainConfig) -> M:
    """The student, asking gradients for nothing that no stage trains: neither are they computed nor held."""
    names = set().union(*(trainable_names(student, stage.train) for stage in config.stages))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    return student
