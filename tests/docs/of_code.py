"""The tables that are made from the tables of the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from docs.lite3r_forms import lite3r_forms
from docs.markdown import code, says, table
from lean3r.attention import ATTENTION
from lean3r.cli import COMMANDS
from lean3r.compress import PLANS, SCHEMES
from lean3r.compress.plan import Step
from lean3r.data import DATASETS
from lean3r.eval.predicted import READERS
from lean3r.export import EXPORTERS
from lean3r.models import CARDS, EMBEDDED, MODELS, is_non_commercial
from lean3r.models.base import KNOWN_PARTS
from lean3r.registry import Registry
from lean3r.train import DISTILLATIONS, RECIPES

GUIDE = re.compile(r"\bdocs/([\w./-]+\.md)")


def commands() -> str:
    """What each command does, and the page that its docstring names."""

    def row(name: str) -> list[str]:
        guides = GUIDE.findall(inspect.getdoc(COMMANDS.get(name)) or "")
        return [f"`lean3r {name}`", says(COMMANDS.get(name)), ", ".join(f"[{Path(g).stem}]({g})" for g in guides)]

    return table(["command", "what it does", "more"], map(row, COMMANDS))


def formats() -> str:
    """What each format writes."""
    rows = (
        [code(row.files), row.about, f"`{name}`" + ("" if row.default else ", if asked for")]
        for name, row in ((name, EXPORTERS[name]) for name in EXPORTERS)
    )
    return table(["in the folder", "what it holds", "format"], rows)


def files() -> str:
    """The files of the folder, in a sentence."""
    by_default, on_request = (
        ", ".join(
            dict.fromkeys(code(row.files) for row in map(EXPORTERS.__getitem__, EXPORTERS) if row.default == wanted)
        )
        for wanted in (True, False)
    )
    return f"{by_default}; on request {on_request}.\n"


def models() -> str:
    """Where the weights of each model are, under which licence, and who says so."""

    def row(name: str) -> list[str]:
        card = CARDS[name]
        inside = "in the package" if (EMBEDDED / f"{name}.safetensors").is_file() else "none: train it, or give a file"
        stated = f"[its authors]({card.stated})" if card.stated else "this repository"
        licence = card.licence + (", non-commercial" if is_non_commercial(card.licence) else "")
        return [f"`{name}`", f"`{card.repository}`" if card.repository else inside, licence, stated]

    return table(["model", "official repository", "licence of the weights", "stated by"], map(row, CARDS))


def cameras() -> str:
    """Which known cameras each model reads, and whether one of its views is the reference."""

    def row(name: str) -> list[str]:
        kind = MODELS.get(name)
        reads = ", ".join(text for part, text in KNOWN_PARTS.items() if part in kind.ACCEPTS)
        some = "no: all parts, for all views" if kind.ACCEPTS_WHOLE else "yes" if reads else ""
        return [f"`{name}`", reads or "none", some, "yes" if kind.REFERENCE is not None else "no"]

    return table(
        ["model", "known parts that it reads", "for a subset of views", "`--reference-view`"], map(row, MODELS)
    )


def mechanisms() -> str:
    """What each mechanism does, its settings, and what its docstring says of source, time and use."""
    labels = ("Source", "Time", "Use")

    def row(name: str) -> list[str]:
        kind = ATTENTION.get(name)
        given = [
            p for p in inspect.signature(kind).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        settings = ", ".join(f"`{p.name}` ({p.default!r})" for p in given if p.default is not p.empty)
        lines = dict(re.findall(r"^(\w+): (.*)\.$", inspect.getdoc(kind) or "", re.MULTILINE))
        return [f"`{name}`", says(kind), settings, *(lines.get(label, "") for label in labels)]

    return table(["name", "what it does", "settings (defaults)", *map(str.lower, labels)], map(row, ATTENTION))


def described(what: str, registry: Registry, names: Iterable[str] | None = None) -> str:
    """The rows of a registry, as the docstrings of their objects say."""
    rows = ([f"`{name}`", says(registry.get(name))] for name in (registry if names is None else names))
    return table([what, "what it does"], rows)


def plans(of_attention: bool) -> str:
    """The plans that change attention, or those that change numbers."""
    chosen = [n for n in PLANS if any(isinstance(s, Step) == of_attention for s in PLANS.get(n)().steps)]
    return described("plan", PLANS, chosen)


def distillations() -> str:
    """Teacher, student and phases of each recipe."""

    def row(name: str) -> list[str]:
        recipe = DISTILLATIONS.get(name)(None)
        phases = ", ".join(f"{phase.config.name} ({phase.config.total_steps:,})" for phase in recipe.phases)
        about = f"{says(inspect.getmodule(DISTILLATIONS.get(name)))} {says(DISTILLATIONS.get(name))}"
        student = f"`{recipe.plan.name}`" if recipe.plan else f"none: a `{recipe.student}`"
        return [f"`{name}`", f"`{recipe.teacher}`", student, phases, about]

    return table(["recipe", "teacher", "plan of the student", "phases (steps)", "what it is"], map(row, DISTILLATIONS))


def data_sets() -> str:
    """The sets on disk; the synthetic world is none."""

    def row(name: str) -> list[str]:
        kind = DATASETS.get(name)
        depth, metres = ("yes" if has else "no" for has in (kind.has_depth, kind.is_metric))
        return [f"`{name}`", kind.title, depth, metres, kind.licence, kind.source]

    header = ["name", "set", "depth", "metres", "licence", "where to get it"]
    return table(header, [row(name) for name in DATASETS if hasattr(DATASETS.get(name), "title")])


def predictions() -> str:
    """The forms of predictions that are read."""
    rows = ([f"`{name}`", code(READERS[name].files), READERS[name].holds] for name in READERS)
    return table(["form", "in the folder of a scene", "what it holds"], rows)


OF_CODE: dict[str, Callable[[], str]] = {
    "commands": commands,
    "formats": formats,
    "files": files,
    "models": models,
    "cameras": cameras,
    "mechanisms": mechanisms,
    "attention-plans": lambda: plans(True),
    "number-plans": lambda: plans(False),
    "schemes": lambda: described("scheme", SCHEMES),
    "recipes": lambda: described("recipe", RECIPES),
    "distillations": distillations,
    "lite3r-forms": lite3r_forms,
    "data-sets": data_sets,
    "predictions": predictions,
}
"""Name of a table on a page -> what makes it."""
