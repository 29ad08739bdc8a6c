"""The two-column table (label, text) that every command prints."""

from __future__ import annotations

import sys


def show(rows: list[tuple[str, str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, text)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
