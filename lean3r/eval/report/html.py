"""A report as one HTML file: style, plots and pictures are in it, and no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from lean3r.eval.report.page import Block, Cell, Figure, Gallery, Heading, Picture, Plot, Table, Text

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --page: #fff; --line: #d1d9e0; --band: #f6f8fa;
  --bad: #b3261e; --bad-band: #fdecea; --good: #1a7f37; --doubt: #8a5a00; --link: #0858c0; }
@media (prefers-color-scheme: dark) { :root { --ink: #d7dce2; --soft: #9ea7b1; --page: #11151a; --line: #363d47;
  --band: #1a2027; --bad: #ff8a80; --bad-band: #3a1a1a; --good: #57c278; --doubt: #e0b050; --link: #6cb0ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 72rem; margin: 2rem auto 4rem; padding: 0 1.2rem; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; margin-bottom: .2rem; } h2 { margin-top: 2.8rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 1.8rem; } a { color: var(--link); } code { font-size: .9em; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1.2rem 0; } table { border-collapse: collapse; font-size: .92rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline; }
thead th { border-bottom: 2px solid var(--line); font-size: .85rem; } tbody th { font-weight: 500; }
td.figures { font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:hover { background: var(--band); } [data-from] { cursor: help; }
.worse, .lost, .failed { color: var(--bad); font-weight: 600; } .better { color: var(--good); font-weight: 600; }
.unclear { color: var(--doubt); } p.worse, p.better, p.unclear { padding: .7rem 1rem; background: var(--band);
  border-left: .3rem solid; } p.worse { background: var(--bad-band); }
figure { margin: 1.4rem 0; } figure > img { max-width: 100%; height: auto; } figcaption { color: var(--soft);
  font-size: .92rem; } summary { cursor: pointer; color: var(--link); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem;
  margin-bottom: 1.2rem; }
.gallery figure { margin: 0; } .gallery img { width: 100%; border-radius: .3rem; }
.none { height: 9rem; display: grid; place-items: center; background: var(--band); color: var(--soft); }
"""


def html(title: str, blocks: Iterable[Block]) -> str:
    """The page. Every figure is a `data` element whose attribute `data-from` is its source."""
    body = "\n".join(_write(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _write(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p{_class(block.content.mark)}>{_parts(block.content)}</p>"
        case Table():
            return _table(block)
        case Plot():
            image = _image("image/svg+xml", block.svg.encode(), block.alt)
            return f"<figure>{image}<figcaption>{escape(block.caption)}</figcaption></figure>"
        case Gallery():
            return f'<div class="gallery">{"".join(map(_picture, block.pictures))}</div>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in table.head)
    rows = "\n".join(
        f'<tr><th scope="row">{_parts(first)}</th>{"".join(map(_cell, rest))}</tr>' for first, *rest in table.rows
    )
    caption = escape(table.caption)
    inner = (
        f'<div class="table"><table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )
    return f"<details>\n<summary>{caption}</summary>\n{inner}\n</details>" if table.folded else inner


def _cell(each: Cell) -> str:
    name = " ".join(filter(None, ("figures" if each.figures else "", each.mark)))
    return f"<td{_class(name)}>{_parts(each)}</td>"


def _parts(each: Cell) -> str:
    return "".join(escape(part) if isinstance(part, str) else _figure(part) for part in each.parts)


def _figure(figure: Figure) -> str:
    source = escape(figure.source)
    return (
        f'<data value="{escape(str(figure.value))}" data-from="{source}" title="{source}">{escape(figure.text)}</data>'
    )


def _picture(picture: Picture) -> str:
    image = _image("image/jpeg", picture.jpeg, picture.alt) if picture.jpeg else '<div class="none">no picture</div>'
    return f"<figure>{image}<figcaption>{_parts(picture.caption)}</figcaption></figure>"


def _image(kind: str, content: bytes, alt: str) -> str:
    return f'<img src="data:{kind};base64,{base64.b64encode(content).decode()}" alt="{escape(alt)}">'


def _class(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""
