"""For the site's Markdown: `a\\|b` in a table's code shows as a|b, as on GitHub."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString


class _Pipes(Treeprocessor):
    def run(self, root: Element) -> None:
        for cell in root.iter("td"):
            for code in cell.iter("code"):
                code.text = AtomicString((code.text or "").replace("\\|", "|"))


class Pipes(Extension):
    """Runs once code is told from text."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the processor behind the inline ones (20)."""
        md.treeprocessors.register(_Pipes(md), "pipes", 15)


def makeExtension(**options: object) -> Pipes:
    """What Markdown asks an extension's module for."""
    return Pipes(**options)
