from __future__ import annotations

import pytest

from llava_video_cli.inference.detokenizer import Detokenizer


def pieces_of(text: str) -> list[str]:
    """Feed UTF-8 bytes one at a time, as a tokenizer with byte fallback would."""
    pieces = Detokenizer(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    return [piece for piece in [*(pieces.push([byte]) for byte in text.encode()), pieces.finish()] if piece]


@pytest.mark.parametrize(
    "text",
    [
        "A red circle moves left.",
        "  spaces   inside \n\n and around  ",
        "wörld 😀 ok",
        "日本語のテキスト",
        "a",
        "",
        " \n",
        "x😀",
    ],
)
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces_of(text)) == text.strip()


def test_pieces_are_whole_words() -> None:
    assert pieces_of("A red circle moves.") == ["A", " red", " circle", " moves."]


def test_pieces_of_unspaced_script_come_one_by_one() -> None:
    assert pieces_of("日本語") == ["日", "本", "語"]


def test_an_unfinished_character_is_held_back_and_shown_at_the_end() -> None:
    pieces = Detokenizer(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    shown = "".join(pieces.push([byte]) for byte in "word 😀".encode()[:-1])
    assert "\ufffd" not in shown
    assert shown + pieces.finish() == "word \ufffd"
