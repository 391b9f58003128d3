"""Pictures in the terminal, for terminals that say they can show them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Literal

Protocol = Literal["kitty", "iterm"]

_CHUNK = 4096  # characters of a picture in one escape sequence, the most that kitty's protocol allows
_PROGRAMS: dict[str, Protocol] = {"ghostty": "kitty", "WezTerm": "iterm", "iTerm.app": "iterm"}
_TERMS: dict[str, Protocol] = {"xterm-kitty": "kitty", "xterm-ghostty": "kitty"}


def protocol(environment: Mapping[str, str]) -> Protocol | None:
    """Return the terminal's protocol for pictures, by the variables that it sets; None in tmux and screen.

    Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol and https://iterm2.com/documentation-images.html
    """
    term = environment.get("TERM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment:
        return "kitty"
    program = environment.get("TERM_PROGRAM", "") or {"iTerm2": "iTerm.app"}.get(environment.get("LC_TERMINAL", ""), "")
    return _TERMS.get(term) or _PROGRAMS.get(program)


def drawn(png: bytes, how: Protocol, columns: int) -> str:
    """Return the escape sequence that shows a picture, `columns` characters wide, and ends the line."""
    data = base64.b64encode(png).decode("ascii")
    if how == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png)};width={columns};preserveAspectRatio=1:{data}\a\n"
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    # a=T: store and show; f=100: a PNG; q=2: no reply, which would arrive as typed text
    keys = [f"a=T,f=100,q=2,c={columns},", *[""] * (len(chunks) - 1)]
    pieces = [
        f"\x1b_G{key}m={int(number < len(chunks))};{chunk}\x1b\\"
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True), start=1)
    ]
    return "".join(pieces) + "\n"
