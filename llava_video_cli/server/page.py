"""The web page for quick demos, and the contact sheet that it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from ..conversation import Media
from ..runs.record import media_values
from ..video.contact_sheet import contact_sheet
from ..video.image import Picture

_FILE = Path(__file__).with_name("page.html")
_SHEET_PIXELS = 1280
_JPEG_QUALITY = 85  # of 100


def page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers, which let only its own script and style run."""
    text = _FILE.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(text, 'script')}; style-src {_hash(text, 'style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def sheet_values(medium: Media) -> dict[str, Any]:
    """Return the JSON values of a contact sheet; `medium` has whole frames, and what the model gets of them.

    `sheet` is a JPEG as a `data:` URL, `frames` has the times (None for a picture), `notes` are for the user.
    """
    if isinstance(medium, Picture):
        from PIL import Image

        sheet = Image.fromarray(medium.pixels)
        sheet.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS))
    else:
        sheet = contact_sheet(medium, width_pixels=_SHEET_PIXELS)
    stream = BytesIO()
    sheet.save(stream, "JPEG", quality=_JPEG_QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    record = media_values("", medium)
    return {"sheet": url, "frames": record["frames"], "notes": record["notes"]}


def _hash(text: str, tag: str) -> str:
    """Return the hash by which a content security policy allows the one script or style of a page."""
    match = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert match is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}'"
