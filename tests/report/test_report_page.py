"""The page of `llvid report` in a real browser: safe, searchable, with filters and keys, and quick."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from browser import KEYS, Browser, browser
from results import HOSTILE, line, reported, write

SHOWN = "[...document.querySelectorAll('article:not([hidden])')].map(a => a.getAttribute('aria-label'))"
FILLED = "document.querySelectorAll('article:not(:empty)').length"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def opened(window: Browser, folder: Path, *lines: dict[str, Any], errors: tuple[dict[str, Any], ...] = ()) -> None:
    write(folder / "out.errors.jsonl", *errors)
    reported(write(folder / "out.jsonl", *lines))
    window.open(folder / "out.html")


def test_hostile_names_and_texts_are_shown_and_not_executed(window: Browser, tmp_path: Path) -> None:
    lines = [line(text, text, notes=text, prompt=text, settings={text: text}) for text in HOSTILE]
    lines += [line(question=text, finish_reason=text, model={text: text}, id=text) for text in HOSTILE]
    lines += [line(f"{text}/a.mp4", segments=[{"text": text}, {"text": text}]) for text in HOSTILE]
    opened(window, tmp_path, *lines, errors=tuple({"video_path": t, "error": t, "hint": t} for t in HOSTILE))
    window.run("document.querySelectorAll('article:empty').forEach(a => { near.unobserve(a); fill(rowOf(a)); })")
    window.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert window.run(FILLED) == 4 * len(HOSTILE)
    captions = window.run("[...document.querySelectorAll('.caption')].map(c => c.textContent)")
    assert captions[: len(HOSTILE)] == list(HOSTILE)
    assert "\\u202egpj.mp4" in window.run(SHOWN) and "a\\u2028b\\u2029c" in window.run(SHOWN)
    folders = window.run("[...document.getElementById('folder').options].map(o => o.value)")
    assert "__proto__" in folders and "constructor" in folders
    assert window.run("document.querySelectorAll('main script, main img, main b b, h1 *').length") == 0
    assert (
        window.run("[...document.querySelectorAll('main *')].some(e => e.getAttributeNames().some(n => /^on/.test(n)))")
        is False
    )
    assert window.run("document.documentElement.scrollWidth <= innerWidth")
    assert window.logged() == []


def test_search_and_filters(window: Browser, tmp_path: Path) -> None:
    segments = [
        {"start_seconds": k, "end_seconds": k + 1, "text": t} for k, t in enumerate(("a cat", "Ein HÄSSLICHER Hund"))
    ]
    opened(
        window,
        tmp_path,
        line("a/one.mp4", "Red (circle)", segments=segments),
        line("a/b/two.mp4", "Red square", finish_reason="length"),
        line("c/three.mp4", "Blue circle", notes="only 2 frames"),
        errors=({"video_path": "c/four.mp4", "error": "no video stream", "hint": None},),
    )
    window.type("/red")
    assert window.wait(f"{COUNT} === '2 of 4' && {SHOWN}") == ["a/one.mp4", "a/b/two.mp4"]
    for text, names in (
        (" (CIRCLE)", ["a/one.mp4"]),
        (KEYS["escape"] + "hässlicher", ["a/one.mp4"]),
        (KEYS["escape"] + "stream", ["c/four.mp4"]),
        (KEYS["escape"] + "two.mp4", ["a/b/two.mp4"]),
        ("nothing", []),
    ):
        window.type(text)
        window.wait(f"JSON.stringify({SHOWN}) === JSON.stringify({names})")
    assert window.run("!document.getElementById('nothing').hidden")
    window.run("document.getElementById('clear').click()")
    assert window.run(COUNT) == "4 rows"
    for select, value, names in (
        ("folder", "a", ["a/one.mp4", "a/b/two.mp4"]),
        ("folder", "a/b", ["a/b/two.mp4"]),
        ("state", "failed", ["c/four.mp4"]),
        ("state", "length", ["a/b/two.mp4"]),
        ("state", "gone", ["a/one.mp4", "a/b/two.mp4", "c/three.mp4"]),
        ("notes", "with", ["c/three.mp4"]),
    ):
        window.run(
            f"(s => {{ s.value = '{value}'; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
            f"(document.getElementById('{select}'))"
        )
        assert window.run(SHOWN) == names, value
        window.run("document.getElementById('clear').click()")
    window.type("hund")
    window.wait("document.querySelector('.said').textContent.startsWith('0:01.0–0:02.0')")
    assert window.run("CSS.highlights.get('found')?.size ?? 1") >= 1


def test_scores_sort_and_filter(window: Browser, tmp_path: Path) -> None:
    opened(
        window,
        tmp_path,
        line("a.mp4", "yes", scores={"yes": 0.7, "no": 0.3}),
        line("b.mp4", "no", scores={"yes": 0.1, "no": 0.9}),
        line("c.mp4", "A cat."),
        line("d.mp4", "yes", scores={"yes": 0.95, "no": 0.05, "__proto__": 0.5, "odd": "x"}),
    )
    assert window.run("[...document.getElementById('sort').options].map(o => o.value)") == [
        *("", "az", "za", "-yes", "+yes", "-no", "+no", "-__proto__", "+__proto__")
    ]
    first = "document.querySelector('.scores').textContent"
    assert window.run(first) == "yes0.700no0.300"
    for order, names in (("-yes", "dabc"), ("+yes", "badc"), ("-no", "badc"), ("", "abcd")):
        window.run(
            f"(s => {{ s.value = '{order}'; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
            "(document.getElementById('sort'))"
        )
        assert window.run(SHOWN) == [f"{name}.mp4" for name in names], order
    for typed, names in (("yes>0.8", "d"), ("no >= 0.3", "ab"), ("yes<=0.1", "b"), ("", "abcd"), ("maybe>1", "abcd")):
        window.run(
            f"(s => {{ s.value = '{typed}'; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            "(document.getElementById('where'))"
        )
        assert window.run(SHOWN) == [f"{name}.mp4" for name in names], typed
        assert (
            window.run("document.getElementById('where').getAttribute('aria-invalid')")
            == str(typed == "maybe>1").lower()
        )
    window.run("document.getElementById('clear').click()")
    opened(window, tmp_path, line("a.mp4", "A cat."))
    assert window.run("document.getElementById('sort').hidden && document.getElementById('where').hidden")


def test_names_are_sorted_as_people_count(window: Browser, tmp_path: Path) -> None:
    errors = ({"video_path": "Clip5.mp4", "error": "no video stream", "hint": None},)
    opened(window, tmp_path, *(line(f"{name}.mp4") for name in ("clip10", "b", "clip9", "é")), errors=errors)
    for order, names in (
        ("az", ["b", "Clip5", "clip9", "clip10", "é"]),
        ("za", ["é", "clip10", "clip9", "Clip5", "b"]),
        ("", ["clip10", "b", "clip9", "é", "Clip5"]),
    ):
        window.run(
            f"(s => {{ s.value = '{order}'; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})"
            "(document.getElementById('sort'))"
        )
        assert window.run(SHOWN) == [f"{name}.mp4" for name in names], order
    window.run("document.getElementById('sort').value = 'az', sort(), document.body.focus()")
    window.type("jj")
    assert window.run("document.activeElement.getAttribute('aria-label')") == "Clip5.mp4"


def test_a_name_is_a_link_to_its_video(window: Browser, tmp_path: Path, clip: Path) -> None:
    names = ["a b#?%é.mp4", "javascript:alert(1).mp4", "<img src=x>.mp4", "sub/part.mp4", "page.html", "x.svg"]
    (tmp_path / "sub").mkdir()
    for name in names:
        shutil.copy(clip, tmp_path / name)
    urls = ["https://a.example/v?x=1", "javascript:alert(1)", "data:text/html,x.mp4", "https://a b/\n.mp4", "gone.mp4"]
    part = [{"start_seconds": 1.5, "end_seconds": 2, "text": "late"}]
    lines = [line(name, segments=part if name.startswith("sub/") else []) for name in [*names, *urls]]
    opened(window, tmp_path, *lines, errors=({"video_path": names[0], "error": "x", "hint": None},))
    window.run("document.querySelectorAll('article:empty').forEach(a => { near.unobserve(a); fill(rowOf(a)); })")
    links = window.run("[...document.querySelectorAll('h2')].map(h => h.querySelector('a')?.href ?? null)")
    files = [(tmp_path / name).resolve().as_uri() for name in names[:4]]
    assert [link and unquote(link) for link in links] == [
        *map(unquote, files[:3]), unquote(files[3]) + "#t=1.5", None, None, urls[0], None, None, None, None,
        unquote(files[0]),
    ]  # fmt: skip
    assert window.run("[...document.querySelectorAll('h2 a')].every(a => a.rel === 'noopener noreferrer')")
    window.visit(links[0])
    window.wait("document.querySelector('video').duration > 1.9")


def test_a_time_line_by_keys_and_by_pointer(window: Browser, tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "a.mp4")
    parts = [{"start_seconds": k / 2, "end_seconds": k / 2 + 0.5, "text": f"part {k}"} for k in range(4)]
    opened(window, tmp_path, line("a.mp4", segments=parts), line("b.mp4"), line("c.mp4"))
    said = "document.querySelector('.said').textContent"
    window.run("document.querySelector('.track').focus()")
    for keys, words in (
        ("", "part 0"),
        ("right", "part 1"),
        ("end", "part 3"),
        ("right", "part 3"),
        ("left", "part 2"),
    ):
        window.type(KEYS.get(keys, ""))
        assert words in window.run(said)
    assert window.run("document.activeElement.getAttribute('aria-valuetext')") == "0:01.0–0:01.5: part 2"
    x, y = window.run(
        "(b => [b.left + 0.4 * b.width, b.top + 9])(document.querySelector('.track').getBoundingClientRect())"
    )
    move = {"type": "pointerMove", "duration": 0, "x": int(x), "y": int(y)}
    window.call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})
    assert "part 1" in window.run(said)
    assert window.wait("document.querySelector('img').naturalWidth") == 640
    window.type("j")
    assert window.run("document.activeElement.getAttribute('aria-label')") == "b.mp4"
    window.type("jk")
    assert window.run("document.activeElement.getAttribute('aria-label')") == "b.mp4"


def test_thousands_of_rows_are_rendered_lazily(window: Browser, tmp_path: Path) -> None:
    with (tmp_path / "out.jsonl").open("w") as file:
        for number in range(5000):
            file.write(json.dumps(line(f"clips/{number}.mp4", f"Number {number}. " * 20)) + "\n")
    reported(tmp_path / "out.jsonl", "--no-sheets")
    window.open(tmp_path / "out.html")
    assert window.run(COUNT) == "5,000 rows" and 0 < window.wait(FILLED) < 60
    window.run("scrollTo(0, document.body.scrollHeight)")
    window.wait("document.querySelector('article:last-child').childElementCount")
    assert window.run(FILLED) < 120
    assert window.run("(t => { apply(); return performance.now() - t; })(performance.now())") < 500


def test_a_phone_in_dark_mode(window: Browser, tmp_path: Path) -> None:
    name = "a_folder_of_a_very_long_name_without_any_break_in_it_at_all/" * 3 + "x" * 120 + ".mp4"
    with window.emulating(390, 844, "dark"):
        opened(window, tmp_path, line(name, settings={"k" * 90: "v" * 90}), line("b.mp4", notes="n" * 200))
        window.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert window.run("innerWidth") == 390 and window.run("document.documentElement.scrollWidth <= innerWidth")
        assert window.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 21, 19)"
