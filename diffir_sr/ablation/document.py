"""Putting the report of an ablation into a document, between marks, so that no number in it is typed by hand."""

from __future__ import annotations

from pathlib import Path

from diffir_sr.errors import InputError
from diffir_sr.files.atomic import write_atomically


def marks(name: str) -> tuple[str, str]:
    """The lines between which the report of the ablation `name` stands; Markdown does not show them."""
    return f"<!-- begin of {name} -->", f"<!-- end of {name} -->"


def check_document(document: Path, name: str) -> None:
    """Raise InputError unless the document has both marks once, in their order."""
    text = document.read_text(encoding="utf-8") if document.is_file() else None
    begin, end = marks(name)
    if text is None or text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        found = "there is no such file" if text is None else "they are not there once each, in this order"
        raise InputError(
            f"{document}: expected the lines {begin!r} and {end!r}, between which the report goes; {found}"
        )


def put_into(document: Path, name: str, report: Path) -> list[Path]:
    """Replace what is between the marks by the report, its picture beside the document; gives the files written.

    The picture lies in a folder called as the document: experiments/<name>.png for experiments.md.
    """
    check_document(document, name)
    picture = document.parent / document.stem / f"{name}.png"
    write_atomically((report.parent / "plot.png").read_bytes(), picture)
    _, _, table = report.read_text(encoding="utf-8").partition("\n\n")  # the document has headings of its own
    table = table.replace("(plot.png)", f"({document.stem}/{picture.name})").strip()
    fill(document, name, table)
    return [document, picture]


def fill(document: Path, name: str, text: str) -> None:
    """Replace what is between the marks of `name`; raises InputError where they are not."""
    check_document(document, name)
    begin, end = marks(name)
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    write_atomically(f"{before}{begin}\n\n{text}\n\n{end}{after}".encode(), document)
