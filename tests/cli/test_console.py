"""What reaches the terminal: at once, without what it would execute, and whatever ends it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import typer
from rich.console import Console
from rich.text import Text

from llava_video_cli import LlvidError, load_preset
from llava_video_cli.checkpoint import hub
from llava_video_cli.cli import console
from llava_video_cli.cli.answer import note_unfinished, show_answer
from llava_video_cli.cli.app import failing_as, run
from llava_video_cli.cli.download import download, prefetch
from llava_video_cli.cli.settings import Settings
from llava_video_cli.conversation import Answer, Chunk, Usage
from llava_video_cli.model import Loading

EVIL = "\x1b]0;evil\x07\u202e"
USAGE = Usage(1, 0, 1, 0.0, 0.0, 0)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal in the place of stderr."""
    written = io.StringIO()
    monkeypatch.setattr(
        console,
        "stderr",
        Console(file=written, force_terminal=True, markup=False, highlight=False, soft_wrap=True, width=200),
    )
    return written


def test_a_note_keeps_to_the_width_of_stderr_also_where_stdout_is_a_file(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.__stdout__", io.StringIO())
    console.stderr.width = 30
    console.note("用 clip.mp4 再试一次因为模型不能看见所有帧 and a-very-long/path/of/a/clip.mp4")
    assert [Text.from_ansi(line).plain for line in screen.getvalue().splitlines()] == [
        "用 clip.mp4 再试一次因为模型不",
        "能看见所有帧 and",
        "a-very-long/path/of/a/clip.mp4",
    ]


def spin(show: Callable[[console.Progress], object]) -> None:
    with console.progress(quiet=False) as spinner:
        show(spinner)


@pytest.mark.parametrize(
    "show",
    [
        lambda: console.error(LlvidError(f"a {EVIL}", f"b {EVIL}")),
        lambda: console.error(f"a {EVIL}", f"b {EVIL}"),
        lambda: console.note(f"a {EVIL} b"),
        lambda: spin(lambda spinner: spinner.say(f"a {EVIL} b")),
        lambda: spin(lambda spinner: spinner.watch(f"a {EVIL} b")(0.5)),
    ],
)
def test_what_a_terminal_would_execute_is_shown(show: Callable[[], object], screen: io.StringIO) -> None:
    show()
    text = screen.getvalue()
    assert "\x1b]" not in text and "\x07" not in text and "\u202e" not in text


def test_an_error_has_a_bound(screen: io.StringIO) -> None:
    console.error(LlvidError("a" * 10**6, "b" * 10**6))
    assert (screen.getvalue().count("a"), screen.getvalue().count("b")) == (10_000, 10_000)


def test_a_piece_of_an_answer_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="utf-8", write_through=False))
    console.write("a piece")
    assert raw.getvalue() == b"a piece"
    console.write_json({"a": EVIL})
    assert raw.getvalue().endswith(b"\n") and b"\x1b" not in raw.getvalue() and "\u202e".encode() not in raw.getvalue()


def test_a_spinner_is_hidden_whatever_happens(screen: io.StringIO) -> None:
    with pytest.raises(KeyError), console.progress(quiet=False) as spinner:
        spinner.say("working")
        raise KeyError
    shown, hidden = screen.getvalue().rfind("\x1b[?25l"), screen.getvalue().rfind("\x1b[?25h")
    assert 0 <= shown < hidden, "the cursor is there again"
    before = screen.getvalue()
    with console.progress(quiet=True) as spinner:
        spinner.say("working")
    assert screen.getvalue() == before


def test_an_answer_that_ends_early_ends_its_line_and_its_generation(capsys: pytest.CaptureFixture[str]) -> None:
    closed: list[str] = []

    def chunks() -> Iterator[Chunk]:
        try:
            yield Chunk("It is")
            yield Chunk(" a")
        finally:
            closed.append("closed")

    class Leaving(console.Progress):
        """Ctrl-C is pressed when the second piece is there."""

        def stop(self) -> None:
            closed.append("")
            if len(closed) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_answer(chunks(), Leaving(quiet=True), silent=False)
    assert capsys.readouterr().out == "It is\n" and closed[-1] == "closed"
    whole = show_answer(iter([Chunk("x"), Chunk("", "stop", USAGE)]), console.Progress(quiet=True), silent=True)
    assert whole.text == "x" and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("yes", "stop", USAGE), []),
        (Answer("yes", "length", USAGE), ["the answer was cut off at 9 tokens; --max-new-tokens allows more"]),
        (
            Answer("yes", "repetition", USAGE),
            ["the answer began to repeat itself and was stopped; --repetition-penalty 1.1 may help"],
        ),
    ],
)
def test_an_answer_that_was_not_finished_says_so(answer: Answer, words: list[str]) -> None:
    notes: list[str] = []
    note_unfinished(answer, 9, notes.append)
    assert notes == words


def test_a_download_that_is_interrupted_exits_as_such_and_takes_its_bar_away(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fetch(*given: object, offline: bool, progress: Callable[[hub.DownloadProgress], None]) -> None:
        asked.extend((*given, offline))
        progress(hub.DownloadProgress(10, 10, 100))
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "fetch", fetch)
    with pytest.raises(typer.Exit) as leaving:
        download(f"a/b{EVIL}", "main", console.Progress(quiet=False), quiet=False, offline=True)
    text = screen.getvalue()
    assert leaving.value.exit_code == 130 and "run the same command to resume the download" in text
    assert "\x1b]" not in text and 0 <= text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")
    assert asked == [f"a/b{EVIL}", "main", True]


def test_a_run_downloads_the_revision_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(hub, "fetch", lambda *given, **_: asked.extend(given))
    preset = replace(load_preset("demo"), model="nobody/nothing")
    prefetch(Settings(preset, Loading(), "v1"), console.Progress(quiet=True), quiet=True)
    assert asked == ["nobody/nothing", "v1"]


@pytest.mark.parametrize("error", [LlvidError("no"), typer.Exit(0), OSError(28, "No space left"), ValueError("a bug")])
def test_whatever_fails_has_the_code_that_is_asked_for(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((LlvidError, typer.Exit)) as failure, failing_as(2):
        raise error
    assert failure.value.exit_code == 2  # type: ignore[attr-defined]
    assert ("a bug" in capsys.readouterr().err) == isinstance(error, ValueError)
    with pytest.raises(BrokenPipeError), failing_as(2):
        raise BrokenPipeError


def test_ctrl_c_and_a_reader_that_leaves_have_their_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((KeyboardInterrupt(), 130), (BrokenPipeError(), 141)):

        def presets(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(console, "write", presets)
        assert run(["--version"]) == code
    assert capsys.readouterr().err == "interrupted\n"
