"""HTML pages of tables, images and text; a page is one file that refers to no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 17px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
.statement { border-left: 4px solid #3b6fb6; padding: .3rem .9rem; background: var(--soft); }
figure { margin: 1.2rem 0; } figcaption { font-size: .88rem; opacity: .8; text-align: left; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
@media (max-width: 40rem) { figure { overflow-x: auto; } img { max-width: none; max-height: 17rem; } }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 45%), 1fr)); gap: 1rem; }
.gallery figure { margin: 0; } .gallery img { width: 100%; max-width: 100%; max-height: none; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; } nav a { display: block; }
"""


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; every row is as long as the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def lines(self) -> list[str]:
        """Returns the table for a terminal: the first column aligned left, the others right."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        return [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in (self.head, *self.rows)
        ]


@dataclass(frozen=True)
class Image:
    """An image with a caption. png: the bytes of the file."""

    png: bytes
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images to be compared, side by side."""

    images: Sequence[Image]


Part = Table | Image | Gallery | str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page. statement: what the parts show, in two lines. commands: that computed the parts."""

    title: str
    parts: Sequence[Part]
    statement: str = ""
    commands: Sequence[str] = field(default_factory=list)


def render_page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """Returns the HTML file, with a table of contents. All texts are escaped."""
    links = "\n".join(f'<a href="#{index}">{escape(section.title)}</a>' for index, section in enumerate(sections))
    bodies = "\n".join(_render_section(index, section) for index, section in enumerate(sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(introduction)}</p>
<nav>{links}</nav>
{bodies}
</body></html>
"""


def _render_section(index: int, section: Section) -> str:
    parts = "\n".join(_render_part(part) for part in section.parts)
    statement = f'<p class="statement">{escape(section.statement)}</p>' if section.statement else ""
    commands, details = escape("\n".join(section.commands)), ""
    if commands:
        details = f"<details><summary>Commands of these runs</summary><pre>{commands}</pre></details>"
    return f'<section id="{index}"><h2>{escape(section.title)}</h2>\n{statement}\n{parts}\n{details}</section>'


def _render_part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Image):
        data = base64.b64encode(part.png).decode()
        caption = f"<figcaption>{escape(part.caption)}</figcaption>"
        return f'<figure><img alt="{escape(part.caption)}" src="data:image/png;base64,{data}">{caption}</figure>'
    if isinstance(part, Gallery):
        return f'<div class="gallery">{"".join(map(_render_part, part.images))}</div>'
    head = "".join(f"<th>{escape(cell)}</th>" for cell in part.head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
    caption = f"<figcaption>{escape(part.caption)}</figcaption>" if part.caption else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure>{caption}<div class="wide">{table}</div></figure>'
