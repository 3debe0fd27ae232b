"""Which configurations the autotuned kernels try: one, some that were found before, or all of their lists."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import triton
from triton.runtime.autotuner import Autotuner

import lean3r.ops

Choice = Callable[[str, list[triton.Config]], list[triton.Config]]


@cache
def autotuned() -> dict[str, Autotuner]:
    """Every autotuned kernel of lean3r, as "block_sparse.kernel._forward"."""
    found: dict[str, Autotuner] = {}
    for module in pkgutil.walk_packages(lean3r.ops.__path__, "lean3r.ops."):
        if "kernel" in module.name.rpartition(".")[2]:
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, Autotuner) and value not in found.values():
                    found[f"{module.name.removeprefix('lean3r.ops.')}.{name}"] = value
    return found


@contextmanager
def pinned(choose: Choice) -> Iterator[None]:
    """Inside, every autotuned kernel tries only choose(its name, its list) of its configurations; one is not timed."""
    before = {kernel: (kernel.configs, kernel.cache) for kernel in autotuned().values()}
    try:
        for name, kernel in autotuned().items():
            kernel.configs, kernel.cache = choose(name, kernel.configs), {}
        yield
    finally:
        for kernel, (configs, tuned) in before.items():
            kernel.configs, kernel.cache = configs, tuned


def smallest(_: str, configs: list[triton.Config]) -> list[triton.Config]:
    """The smallest tile with the fewest warps and stages: compiles fastest, and fits every card."""
    return [min(configs, key=lambda c: (sum(c.kwargs.values()), c.num_warps, c.num_stages))]


def number(index: int) -> Choice:
    """Configuration `index` of every list, counted round."""
    return lambda _, configs: [configs[index % len(configs)]]


def longest_list() -> int:
    """Configurations of the kernel that has most of them."""
    return max(len(kernel.configs) for kernel in autotuned().values())


def found_before(rows: list[dict]) -> Choice:
    """What the first of these rows to name a kernel chose for it; for kernels that none names the first of the list."""
    chosen = {name: found for row in reversed(rows) for name, found in row.get("configurations", {}).items()}

    def choose(name: str, configs: list[triton.Config]) -> list[triton.Config]:
        return [c for c in configs if described(c) == chosen.get(name)] or configs[:1]

    return choose


def described(config: triton.Config) -> dict[str, int]:
    """JSON-ready."""
    return {**config.kwargs, "warps": config.num_warps, "stages": config.num_stages}


def forget_used() -> None:
    """Forget which configurations ran last, and how long those that were tried took."""
    for kernel in autotuned().values():
        for what in ("best_config", "configs_timings"):
            vars(kernel).pop(what, None)


def configurations_used() -> dict[str, dict[str, int]]:
    """The configuration that each autotuned kernel ran with last, since `forget_used`."""
    ran = {name: vars(kernel).get("best_config") for name, kernel in autotuned().items()}
    return {name: described(config) for name, config in ran.items() if config is not None}


def milliseconds_tried() -> dict[str, list[dict[str, float]]]:
    """Of every kernel that was tuned since `forget_used`, its configurations with the median time of each."""
    tried = {name: vars(kernel).get("configs_timings") or {} for name, kernel in autotuned().items()}
    return {
        name: [{**described(config), "ms": round(times[0], 4)} for config, times in found.items()]
        for name, found in tried.items()
        if found
    }
