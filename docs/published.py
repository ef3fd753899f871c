"""A hook of mkdocs: published plots and tables, which lie beside docs/, become part of the site.

Pages link to them as they lie in the repository (`../plots/published/…`), so that the links work there, too.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\((?:\.\./)+((?:plots|results)/published/)")


def on_files(files: Any, config: Any) -> Any:
    """Add the published files under their paths in the repository."""
    for kind in ("plots/published/**/*.png", "plots/published/**/*.svg", "results/published/**/*.csv"):
        for path in sorted(ROOT.glob(kind)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to published files, which lie a folder higher in the repository than on the site."""
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(rf"]({up}\1", markdown)
