"""HTML pages of tables, images and text; a page is one file that refers to no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from gancli.errors import printable

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
* { box-sizing: border-box; }
body { font: 17px/1.55 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }
body { overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
h3 { margin: 2.2rem 0 .5rem; } p, dl { max-width: 46rem; }
.statement { border-left: 4px solid #3b6fb6; padding: .3rem .9rem; background: var(--soft); }
.formula { white-space: pre-wrap; padding: .2rem 0 .2rem 1.2rem; font-family: Cambria, Georgia, serif; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .94rem; }
dt { font-weight: 600; } dd { margin: 0; }
figure { margin: 1.2rem 0; } figcaption { font-size: .9rem; opacity: .85; text-align: left; max-width: 46rem; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 45%), 1fr)); gap: 1rem; }
.gallery.plots { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); margin: 1.2rem 0; }
.gallery.plots figure { max-width: 34rem; }
.gallery figure { margin: 0; } .gallery img { width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { overflow-wrap: normal; min-width: 4.5rem; }
table.sortable th { cursor: pointer; } th[aria-sort=ascending]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
table.sortable td:last-child { min-width: 12rem; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; max-width: none; }
nav a { display: block; padding: .15rem 0; }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin: 0 0 .5rem; }
  figure { overflow-x: auto; } figure > img { max-width: none; max-height: 17rem; }
  .gallery figure > img { max-width: 100%; max-height: none; }
}
"""


# Sorts a table by the column whose head is clicked, numbers by their value, empty cells last.
_SORT = """
for (const head of document.querySelectorAll("table.sortable th")) {
  head.tabIndex = 0;
  head.onclick = () => {
    const index = head.cellIndex, body = head.closest("table").tBodies[0];
    const falling = head.getAttribute("aria-sort") === "ascending";
    const value = row => {
      const text = row.cells[index].textContent.replaceAll(",", ""), number = parseFloat(text);
      return text && isFinite(number) ? number : text;
    };
    const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => {
      const one = value(a), other = value(b);
      if (one === "" || other === "") return (one === "") - (other === "");
      return falling ? compare(other, one) : compare(one, other);
    });
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    body.append(...rows);
  };
  head.onkeydown = event => { if (event.key === "Enter") head.onclick(); };
}
"""


@dataclass(frozen=True)
class Link:
    """A text that leads to `url`."""

    text: str
    url: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; every row is as long as the head. sortable: whether a click on a head sorts them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    caption: str = ""
    sortable: bool = False

    def lines(self, width: int | None = None) -> list[str]:
        """Returns the table for a terminal: the first column aligned left, the others right.

        width: of the terminal; a wider table is divided into several, each with the first column, if that helps.
        """
        head, *rows = [[printable(str(cell)) for cell in row] for row in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        parts, used = [[0]], widths[0]
        for column in range(1, len(widths)):
            used += 2 + widths[column]
            if width is not None and used > width and len(parts[-1]) > 1:
                parts.append([0])
                used = widths[0] + 2 + widths[column]
            parts[-1].append(column)
        lines: list[str] = []
        for part in parts:
            lines += [""] if lines else []
            for row in (head, *rows):
                cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in part[1:])]
                lines.append("  ".join(cells))
        return lines


@dataclass(frozen=True)
class Image:
    """An image with a caption. png: the bytes of the file."""

    png: bytes
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images to be compared, side by side. plots: whether they are plots, which fill the width of a phone."""

    images: Sequence[Image]
    plots: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Formula:
    """A formula, on lines of its own."""

    text: str


@dataclass(frozen=True)
class Terms:
    """Words or symbols, and what each means."""

    meanings: Mapping[str, str]


Part = Table | Image | Gallery | Heading | Formula | Terms | str  # a string is a paragraph


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page. statement: its message, in two lines. commands: that computed the parts."""

    title: str
    parts: Sequence[Part]
    statement: str = ""
    commands: Sequence[str] = field(default_factory=list)


def render_page(title: str, introduction: str, sections: Sequence[Section], *, refresh: float | None = None) -> str:
    """Returns the HTML file, with a table of contents. All texts are escaped.

    refresh: seconds after which a browser reads the file again, None for never.
    """
    sortable = any(isinstance(part, Table) and part.sortable for section in sections for part in section.parts)
    script = f"<script>{_SORT}</script>\n" if sortable else ""
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh:g}">'
    links = "\n".join(f'<a href="#{index}">{escape(section.title)}</a>' for index, section in enumerate(sections))
    bodies = "\n".join(_render_section(index, section) for index, section in enumerate(sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{again}
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{escape(introduction)}</p>
<nav>{links}</nav>
{bodies}
{script}</body></html>
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
        kind = "gallery plots" if part.plots else "gallery"
        return f'<div class="{kind}">{"".join(map(_render_part, part.images))}</div>'
    if isinstance(part, Heading):
        return f"<h3>{escape(part.text)}</h3>"
    if isinstance(part, Formula):
        return f'<p class="formula">{escape(part.text)}</p>'
    if isinstance(part, Terms):
        meanings = part.meanings.items()
        return f"<dl>{''.join(f'<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>' for word, meaning in meanings)}</dl>"
    head = "".join(f"<th>{escape(cell)}</th>" for cell in part.head)
    body = "\n".join("<tr>" + "".join(f"<td>{_render_cell(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
    caption = f"<figcaption>{escape(part.caption)}</figcaption>" if part.caption else ""
    kind = ' class="sortable"' if part.sortable else ""
    table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure>{caption}<div class="wide">{table}</div></figure>'


def _render_cell(cell: str | Link) -> str:
    return escape(cell) if isinstance(cell, str) else f'<a href="{escape(cell.url)}">{escape(cell.text)}</a>'
