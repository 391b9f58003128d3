"""The page for quick demos, and the contact sheet that it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from ..conversation import Media
from ..runs.record import media_values
from ..video.contact_sheet import sheet_of
from ..video.image import Picture

_FILE = Path(__file__).with_name("page.html")
_SHEET_PIXELS = 1280
_QUALITY = 85  # of a JPEG, in percent


def page() -> tuple[str, dict[str, str]]:
    """Return the page and the headers that go with it: nothing but its own script and style runs in it."""
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
    """Return the JSON values of a medium: `sheet`, a JPEG as a `data:` URL, and its `frames`, None for a picture.

    The frames are shown as the model sees them.
    """
    if isinstance(medium, Picture):
        from PIL import Image

        sheet = Image.fromarray(medium.pixels)
        sheet.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS))
    else:
        sheet = sheet_of(medium.images, medium.times_seconds, width_pixels=_SHEET_PIXELS)
    stream = BytesIO()
    sheet.save(stream, "JPEG", quality=_QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    told = media_values("", medium)
    return {"sheet": url, "frames": told["frames"], "notes": told["notes"]}


def _hash(text: str, tag: str) -> str:
    """Return how a policy names the one script or style of a page."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
