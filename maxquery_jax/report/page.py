"""One offline HTML page: tables and pictures in a single file, no scripts, nothing loaded."""

import base64
import html
import os
import pathlib
from collections.abc import Sequence

from maxquery_jax.files import write_text
from maxquery_jax.report.tables import Table

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 0 0 2rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
figure { margin: 0 0 2rem; }
.note { color: #666; }
"""


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    tables: Sequence[Table] = (),
    pictures: Sequence[tuple[str, pathlib.Path]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: HTML file.
        title: heading.
        tables: shown first.
        pictures: (caption, PNG file); inlined as base64.
        notes: lines under the heading.
    """
    body = [f'<h1>{html.escape(title)}</h1>']
    body += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    body += [_table(table) for table in tables]
    body += [_picture(caption, file) for caption, file in pictures]
    write_text(
        path,
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        + '\n'.join(body)
        + '\n</body>\n</html>\n',
    )


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inner = ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)
        return f'<tr>{inner}</tr>'

    rows = '\n'.join(row(cells, 'td') for cells in table.rows)
    return (
        f'<div class="wide"><table>\n<caption>{html.escape(table.title)}</caption>\n'
        f'<thead>{row(table.columns, "th")}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _picture(caption: str, file: pathlib.Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f'<figcaption>{text}</figcaption></figure>'
    )
