"""Lines as `llvid caption` and `llvid batch` write them, and what a report's page holds."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava_video_cli.cli.app import run

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "<!-- <script </script x",
    "__proto__",
    "constructor",
    "\u202egpj.mp4",
    "a\u2028b\u2029c",
    "a\nb\tc\x1b[31m",
    "&lt;b&gt; &amp; \"quotes\" 'and' `ticks` ${x} {{script}} {{rows}} {{sheets}}",
    "\udcff lone \ud800",
    "]]> <![CDATA[",
    "سيارة حمراء 日本語 😀",
    "long " * 2000,
)


def line(video: str = "clips/a.mp4", caption: str = "A red circle moves right.", **changes: Any) -> dict[str, Any]:
    """Return a line of `llvid caption`; None takes a field away."""
    values: dict[str, Any] = {
        "video_path": video,
        "caption": caption,
        "segments": [{"start_seconds": 0.0, "end_seconds": 2.0, "text": caption}],
        "prompt": "What happens?",
        "model": "demo",
        "finish_reason": "stop",
        "frames": {"count": 4, "times_seconds": [0.0, 0.5, 1.0, 1.5], "sampling": "uniform", "duration_seconds": 2.0},
        "notes": "",
        "usage": {"generated_tokens": 9},
        "settings": {
            "preset": "demo",
            "sampling": {"frames": 4, "fps": None, "start_seconds": 0.0, "end_seconds": None, "mode": "uniform"},
        },
        "key": "ab12",
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in lines), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Page:
    """A page taken apart: its rows as the page's script reads them, and each sheet as a picture or a reason."""

    text: str

    def block(self, name: str) -> Any:
        found = re.search(rf'<script type="application/json" id="{name}"[^>]*>(.*?)</script>', self.text, re.DOTALL)
        assert found, name
        return json.loads(found[1])

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.block("rows")
        return rows

    def sheet(self, index: int) -> Image.Image | str:
        found = re.search(rf'<script type="text/plain" id="sheet-{index}">([^<]*)<', self.text)
        if found is None:
            return str(self.block(f"sheet-{index}"))
        return Image.open(io.BytesIO(base64.b64decode(found[1], validate=True)))


def reported(results: Path, *arguments: str) -> Page:
    """Run `llvid report` in this process, quietly, and return the page."""
    page = results.with_suffix(".html")
    assert run(["report", "-q", "--overwrite", "-o", str(page), *arguments, "--", str(results)]) == 0
    return Page(page.read_text(encoding="utf-8"))
