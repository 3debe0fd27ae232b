"""Triton's interpreter without what it does in vain, which takes half of its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any


def make_quick() -> None:
    """In this process, which imports Triton here: the same results, and the same errors."""
    try:
        from triton import language
        from triton.runtime import interpreter
    except ImportError:
        return
    prepare, builder = interpreter._patch_lang, interpreter.interpreter_builder

    def prepare_once(function: Callable) -> Any:
        """A launch prepares the language; calls of functions within it find it so, and would prepare it again."""
        used = [each for each in function.__globals__.values() if each is language or each is language.core]
        is_done = not any(language.core.is_builtin(each.load) for each in used)
        return interpreter._LangPatchScope() if is_done else prepare(function)

    interpreter._patch_lang = prepare_once
    if not builder.options.debug:  # without which nobody hears of an overflow that was looked for
        builder.options = replace(builder.options, sanitize_overflow=False)
