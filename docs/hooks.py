"""Hooks of the documentation site: pages of the repository outside docs/ belong to it, and it loads nothing else."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[1]
_OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "tests/benchmarks/RESULTS.md": "results.md",
}
_LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\s\">]+")
log = logging.getLogger("mkdocs.hooks.llvid")


def on_config(config: Any) -> Any:
    """Give sections the anchors that GitHub gives them, so that links work in both."""
    config["mdx_configs"]["toc"]["slugify"] = lambda title, _: re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/."""
    for path, name in _OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    pages = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    folder = Path(page.file.abs_src_path).resolve().parent

    def linked(link: re.Match[str]) -> str:
        name = pages.get((folder / link[1]).resolve())
        return f"]({name}" if name else link[0]

    return re.sub(r"\]\(([^)#:\s]+)", linked, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warn of what a page would load from another site: `--strict` makes an error of it."""
    for tag in _LOADED.findall(output):
        log.warning("%s loads something from another site: %s", page.file.src_uri, tag)
    return output
