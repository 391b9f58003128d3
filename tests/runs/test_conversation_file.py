"""Conversations as files: read strictly, written so that they are read back the same."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from terminal import scene

from llava_video_cli import LlvidError, UsageError, load_preset
from llava_video_cli.demo.world import write_picture
from llava_video_cli.runs.conversation_file import (
    Conversation,
    Draft,
    read_conversation,
    write_conversation,
    write_yaml,
)
from llava_video_cli.validation import read_yaml

FULL = """
model: demo
quantize: none
sampling: {frames: 4}
generation: {temperature: 0.5, seed: 3}
messages:
- role: system
  content: Be brief.
- role: user
  content:
  - {type: video, path: clips/a.mp4}
  - {type: image, image: /b.png}
  - {type: text, text: 'What is it?'}
- role: assistant
  content: [{type: text, text: A circle.}]
- role: user
  content: |
    And
    then?
"""
DRAFTS = (
    Draft("system", "Be brief."),
    Draft("user", "What is it?", ("talks/clips/a.mp4", "/b.png")),
    Draft("assistant", "A circle."),
    Draft("user", "And\nthen?\n"),
)


def read(folder: Path, text: str, name: str = "talk.yaml") -> Conversation:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_conversation(path)


def test_a_conversation_is_read_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talks").mkdir()
    found = read(Path("talks"), FULL)
    assert found == Conversation(DRAFTS, "demo", "none", {"frames": 4}, {"temperature": 0.5, "seed": 3})
    assert found.system == "Be brief."
    over = found.over(load_preset("low-memory"))
    assert (over.model, over.quantize, over.sampling.frames, over.generation.seed) == ("demo", "none", 4, 3)
    assert over.generation.max_new_tokens == load_preset("low-memory").generation.max_new_tokens
    as_json = json.dumps(read_yaml(FULL))
    assert read(Path("talks"), as_json, "talk.json") == found
    assert read(Path("talks"), as_json) == found, "YAML holds JSON"
    bare = read(Path("talks"), "- {role: user, content: x}")
    assert bare == Conversation((Draft("user", "x"),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'messages' must be a non-empty list"),
        ("just text", "'messages' must be a non-empty list"),
        ("messages: []", "a non-empty list"),
        ("mesages: []", "unknown key 'mesages'"),
        ("a: [", "line 1: not YAML"),
        ("a: &x [1]\nb: *x", "line 2: not YAML: aliases"),
        ("[" * 5000, "nested too deeply"),
        (
            "- role: user\n  content: a\n  role: assistant\n  content: b",
            "line 3: not YAML: the key 'role' appears twice",
        ),
        ("- {role: user, content: 3}", "message 1: 'content' must be a non-empty list"),
        ("- {role: user, content: yes}", "got true"),
        ("- {role: user, content: x}\n- {role: cat, content: x}", "message 2: the role must be"),
        ("- {role: [user], content: x}", "the role must be"),
        ("- {role: user, content: [{type: [video], path: a}]}", "a part of a message"),
        ("- {role: user, content: [{type: video}]}", "a part of a message"),
        ("- {role: assistant, content: [{type: video, path: a}]}", "a part of a message"),
        ("- {role: user, content: [3]}", "a part of a message"),
        ("- {role: user}", "'role' and 'content'"),
        ("model: 3\nmessages: [{role: user, content: x}]", "'model' must be text"),
        ("quantize: 3bit\nmessages: [{role: user, content: x}]", "one of auto, none, 8bit, 4bit"),
        ("sampling: {frame: 3}\nmessages: [{role: user, content: x}]", "unknown key 'frame' in sampling"),
        ("sampling: {frames: 0}\nmessages: [{role: user, content: x}]", "from 1 to"),
        ("generation: {temperature: -1}\nmessages: [{role: user, content: x}]", "0 or more"),
        ("generation: hot\nmessages: [{role: user, content: x}]", "keys to values"),
        ('- {role: user, content: "\\uD800"}', "half of a character"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("x" * (2**18 + 1), "too long for a conversation"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'talk.yaml'}: ") and words in message and len(message) < 1000


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice.json").write_text('{"messages": [], "messages": []}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "cut.json").write_text('{"messages": [')
    for name, words in (
        ("none.yaml", "No such file"), ("odd.yaml", "not UTF-8 text"), ("twice.json", "twice"),
        ("deep.json", "not JSON"), ("cut.json", "not JSON"), (".", "Is a directory"), ("a\0b", "can't be read"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            read_conversation(tmp_path / name)


@pytest.mark.slow
def test_the_longest_file_is_read_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    for text in ("- " * 130_000, "a" * 2**18, "[" + "a, " * 80_000 + "]", "? " * 130_000, "- {a: b}\n" * 29_000):
        with pytest.raises(UsageError):
            read(tmp_path, text)
    assert time.monotonic() - began < 60


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(5)
    letters = "aB3 \n\t:-#'\"|>%@&*!?{}[],\\~=<é日\x85\u2028\r\x00\x1b\u202e\ufeff🎈"
    texts = ["", "yes", "3", "null", "- a", "a: b", "# a", " a ", "a\n", "\na", "a\n\n b\n", "2026-01-01", "---", "..."]
    texts += ["".join(rng.choice(letters) for _ in range(rng.randrange(30))) for _ in range(600)]
    for text in texts:
        assert read_yaml(write_yaml({"text": [text]})) == {"text": [text]}, repr(text)
    turns = [Draft(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
    for name in ("a.yaml", "a.YML", "a.json"):
        found = Conversation(tuple(turns), "demo", "4bit", {"frames": 3, "fps": None}, {"temperature": 0.1})
        write_conversation(tmp_path / name, found)
        assert read_conversation(tmp_path / name) == found


def test_a_written_conversation_can_be_read_by_a_person(tmp_path: Path) -> None:
    write_picture(tmp_path / "b.png", scene())
    draft = Draft("user", "One.\nTwo.", (str(tmp_path / "a.mp4"), str(tmp_path / "b.png")))
    write_conversation(tmp_path / "talk.yaml", Conversation((Draft("system", "Be: brief"), draft)))
    (tmp_path / "a.mp4").touch()
    write_conversation(tmp_path / "talk.yaml", Conversation((Draft("system", "Be: brief"), draft)))
    assert (
        (tmp_path / "talk.yaml").read_text().partition("\n")[2]
        == """\
messages:
- role: system
  content: 'Be: brief'
- role: user
  content:
  - type: video
    path: a.mp4
  - type: image
    path: b.png
  - type: text
    text: |-
      One.
      Two.
"""
    )


def test_paths_reach_the_same_files_from_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sub").mkdir()
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(tmp_path / "here")
    names = ["a.mp4", "file:odd.mp4", "sub/b.mp4", str(tmp_path / "far" / "c.mp4"), str(tmp_path / "here" / "a.mp4")]
    if os.name == "posix":
        names.append(os.fsdecode(b"caf\xe9.mp4"))
    for number, name in enumerate(names):
        Path(name).write_text(str(number))
    contents = [Path(name).read_text() for name in names]
    written: dict[str, list[Any]] = {}
    for target in ("talk.yaml", "sub/talk.json", str(tmp_path / "far" / "talk.yaml"), "link/talk.yaml"):
        write_conversation(Path(target), Conversation((Draft("user", "?", (*names, "gone.mp4")),)))
        (draft,) = read_conversation(Path(target)).drafts
        assert [Path(path).read_text() for path in draft.paths[:-1]] == contents
        content = read_yaml(Path(target).read_text())
        assert isinstance(content, dict)
        written[target] = [part["path"] for part in content["messages"][0]["content"][:-1]]
    assert written["talk.yaml"][:5] == ["a.mp4", "file:file%3Aodd.mp4", "sub/b.mp4", names[3], "a.mp4"]
    assert written["sub/talk.json"][0] == "../a.mp4" and written["sub/talk.json"][2] == "b.mp4"
    assert written["link/talk.yaml"][0] == str(tmp_path / "here" / "a.mp4"), "`..` leads elsewhere there"


def test_what_can_not_be_written(tmp_path: Path) -> None:
    found = Conversation((Draft("user", "x"),))
    with pytest.raises(UsageError, match=r"must end in \.yaml"):
        write_conversation(tmp_path / "talk.txt", found)
    with pytest.raises(LlvidError, match="can't write") as caught:
        write_conversation(tmp_path / "none" / "talk.yaml", found)
    assert caught.value.hint == "choose another path"
