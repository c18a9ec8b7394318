"""The documentation as a site: `make docs` writes it to build/docs."""

import re
from pathlib import Path
from typing import Any

from diffir_sr import __version__

project = "diffir_sr"
copyright = "the authors of diffir_sr"  # noqa: A001 - the name that Sphinx reads
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
source_suffix = {".md": "markdown"}
exclude_patterns = []
suppress_warnings = ["misc.highlighting_failure"]  # the list of layers in CONTRIBUTING.md is in no language

html_theme = "furo"
html_title = f"diffir_sr {__version__}"
html_show_sourcelink = False
html_copy_source = False

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_preserve_defaults = True

# Pages that stand elsewhere in the repository and are pages of the site, too.
_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "data.md",
    "experiments/README.md": "experiments_folder.md",
    "examples/plugin/README.md": "plugin.md",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)((?:#[^)\s]*)?)\)")
_ROOT = Path(__file__).resolve().parents[1]


def _include(app: Any, document: str, source: list[str]) -> None:
    """`{from} PATH` becomes the file's text, with the links that it has to other pages of the site."""
    page = re.fullmatch(r"\{from\} (\S+)\s*", source[0])
    home = _ROOT / page[1] if page else Path(app.srcdir) / f"{document}.md"
    text = home.read_text(encoding="utf-8") if page else source[0]
    source[0] = _LINK.sub(lambda link: f"]({_target(home.parent, link[1])}{link[2]})", text)


def _target(folder: Path, link: str) -> str:
    path = (folder / link).resolve()
    if not path.exists() or not path.is_relative_to(_ROOT):
        return link  # Sphinx reports it
    name = path.relative_to(_ROOT).as_posix()
    if name in _PAGES:
        return _PAGES[name]
    results = re.fullmatch(r"benchmarks/results/(\w+)\.md", name)
    if results:
        return f"benchmarks.md#{results[1]}"
    return name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}"


def setup(app: Any) -> dict[str, bool]:
    """Registers what is done to each page before it is read."""
    app.connect("source-read", _include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
