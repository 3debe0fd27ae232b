"""Plans that a file of weights cannot have; files of the Lite3R release: what they do not record is asked for."""

from __future__ import annotations

from lean3r.compress.plan import CompressionPlan
from lean3r.compress.sparsify import stored_plan
from lean3r.errors import UsageError
from lean3r.models import lite3r
from lean3r.models.weight_files import WeightFiles


def check_plan(stored: WeightFiles, plan: CompressionPlan | None) -> None:
    """UsageError if a plan removes blocks of a file that has them, without pictures; if a file is of the Lite3R release
    and no plan says what it does not record, or a plan of another stage."""
    if plan is not None and plan.removals and stored_plan(stored.metadata) is None:
        raise UsageError(
            f"plan {plan.name} removes blocks, and {stored.path} has them all. Write a file with the matrices that "
            "replace them, fitted on pictures: lean3r compress IN OUT --plan PLAN --fit PHOTOS; then use OUT."
        )
    stage = stored.metadata.get(lite3r.RELEASE)
    if stage is None:
        return
    trained = trained_as(stored)
    if plan is None:
        exact = "FP8" if stage == lite3r.FINAL else "weights of 4 bits"
        raise UsageError(
            f"{stored.path} is a file of the Lite3R release ({stage}), which records neither keep ratio nor mode nor "
            f"number format. Name them with --plan: {trained} is how the release trained and evaluated it (keep 0.3, "
            f"by tokens, {exact}); {trained}:keep=0.2 is what its paper and its inference script for Depth Anything 3 "
            "say; mode=block and rounding=none are other settings."
        )
    if not any(step.mechanism == "sla" for step in plan.exchanges):
        raise UsageError(f"{stored.path} has the linear branches of Lite3R, plan {plan} has none. Use {trained}.")
    if any(step.settings.get("smooth") for step in plan.quantizes) != (stage == lite3r.STAGE_1):
        has = "has" if stage == lite3r.STAGE_1 else "lacks"
        raise UsageError(
            f"{stored.path} is of another stage than plan {plan.name}: it {has} the smoothing factors of stage 1, "
            f"whose weights have 4 bits. Use --plan {trained}, with the settings that you need."
        )


def trained_as(stored: WeightFiles) -> str:
    """The plan that a file of the release was trained for."""
    if stored.metadata[lite3r.RELEASE] == lite3r.FINAL:
        return "lite3r"
    return "lite3r-w4a8" if any(name.endswith(".attn.qkv.smooth") for name in stored.shapes) else "lite3r-w4a16"
