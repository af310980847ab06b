"""Sections as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from gancli import __version__
from gancli.chapters.base import Picture, Section, Table

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 17px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
.statement { border-left: 4px solid #3b6fb6; padding: .3rem .9rem; background: var(--soft); }
figure { margin: 1.2rem 0; } figcaption, caption { font-size: .88rem; opacity: .8; text-align: left; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; } nav a { display: block; }
"""


def page(sections: Sequence[Section]) -> str:
    """The whole file."""
    links = "\n".join(f'<a href="#{index}">{escape(each.title)}</a>' for index, each in enumerate(sections))
    bodies = "\n".join(_section(index, each) for index, each in enumerate(sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the theory of GANs says, measured</title><style>{_STYLE}</style></head><body>
<h1>What the theory of GANs says, measured</h1>
<p>Two networks play a game: D tells real samples from generated ones, G makes samples that it cannot tell. Every
figure, picture and table below was computed by the runs listed under it (gancli {__version__}).</p>
<nav>{links}</nav>
{bodies}
</body></html>
"""


def _section(index: int, section: Section) -> str:
    parts = "\n".join(_part(part) for part in section.parts)
    commands = escape("\n".join(section.commands))
    return f"""<section id="{index}"><h2>{escape(section.title)}</h2>
<p class="statement">{escape(section.statement)}</p>
{parts}
<details><summary>The runs behind it</summary><pre>{commands}</pre></details></section>"""


def _part(part: Table | Picture | str) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Picture):
        data = base64.b64encode(part.png).decode()
        caption = f"<figcaption>{escape(part.caption)}</figcaption>"
        return f'<figure><img alt="{escape(part.caption)}" src="data:image/png;base64,{data}">{caption}</figure>'
    head = "".join(f"<th>{escape(cell)}</th>" for cell in part.head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
    caption = f"<caption>{escape(part.caption)}</caption>" if part.caption else ""
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
