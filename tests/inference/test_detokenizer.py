from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llava_video_cli.inference.detokenizer import Detokenizer, byte_ids


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


def test_bytes_that_are_no_text_are_the_same_however_the_tokens_come(layouts: dict[str, Path]) -> None:
    """As where an answer is cut within the second of two emoji."""
    tokenizer = AutoTokenizer.from_pretrained(layouts["vicuna"])
    single, draw = byte_ids(tokenizer), random.Random(1)
    assert len(single) == 256
    emoji = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "😀😀".encode()]
    words = tokenizer.convert_tokens_to_ids(["▁w1", "▁w2", "%", "▁"])
    for _ in range(300):
        ids = draw.choices([*single, *5 * emoji, *50 * words], k=12) + emoji[: draw.randrange(9)]
        text, shown = Detokenizer(tokenizer.decode, byte_ids=single), ""
        left = list(ids)
        while left:
            count = draw.choice((1, 1, 2, 5))
            shown, left = shown + text.push(left[:count]), left[count:]
        assert shown + text.finish() == tokenizer.decode(ids).strip(), ids


def test_pieces_are_whole_words() -> None:
    assert pieces_of("A red circle moves.") == ["A", " red", " circle", " moves."]


def test_pieces_of_unspaced_script_come_one_by_one() -> None:
    assert pieces_of("日本語") == ["日", "本", "語"]


def test_an_unfinished_character_is_held_back_and_shown_at_the_end() -> None:
    pieces = Detokenizer(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    shown = "".join(pieces.push([byte]) for byte in "word 😀".encode()[:-1])
    assert "\ufffd" not in shown
    assert shown + pieces.finish() == "word \ufffd"
