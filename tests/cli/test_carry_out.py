"""How a long run is shown and ended, of a run whose outcomes are the test's own."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llava_video_cli import LlvidError, MediaError, load_preset
from llava_video_cli.cli import console
from llava_video_cli.cli.options import OutputFlags, RunFlags
from llava_video_cli.cli.run import Meter, carry_out, confirm_overwrite, exit_code, run_options, show_outcome
from llava_video_cli.cli.settings import Settings
from llava_video_cli.model import Loading
from llava_video_cli.runs.record import Failure, Record
from llava_video_cli.runs.resumable import ResumableRun, RunOptions, RunPlan
from llava_video_cli.system.files import whole_file

OUTPUT, QUIET = OutputFlags(), OutputFlags(quiet=True)


def record(name: str = "a.mp4", **values: Any) -> Record:
    return Record({"video_path": name, "caption": "A cat.", "finish_reason": "stop", **values})


def failure(words: str = "a.mp4: it broke") -> Failure:
    return Failure({"video_path": "a.mp4"}, MediaError(words))


class Made(ResumableRun):
    """A run with these outcomes; a function is called in its place, and may raise."""

    def __init__(
        self,
        *steps: Record | Failure | Callable[[], object],
        done_before: int = 0,
        loading: Callable[[], object] = bool,
    ) -> None:
        plan = RunPlan(lambda *_: iter(()), len(steps), done_before, (), lambda _: False)
        super().__init__(plan, options=RunOptions())
        self._steps, self._loading = steps, loading

    def _load(self) -> None:
        self._loading()

    def _outcomes(self) -> Iterable[Record | Failure]:
        for step in self._steps:
            if self.stop.is_set():
                return
            if isinstance(step, (Record, Failure)):
                yield step
            else:
                step()


class Spinner(console.Progress):
    """Counts how often it is hidden."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1


def carried(run: ResumableRun, output: OutputFlags = OUTPUT, **options: Any) -> int:
    return carry_out(run, (), output, Spinner(), **options)


def fail(words: str = "the disk is full") -> Callable[[], object]:
    def raising() -> None:
        raise LlvidError(words)

    return raising


@pytest.mark.parametrize(
    ("signals", "failed", "code"),
    [((), 0, 0), ((), 2, 3), ((signal.SIGINT,), 2, 130), ((signal.SIGTERM, signal.SIGINT), 0, 143)],
)
def test_exit_codes(signals: tuple[int, ...], failed: int, code: int) -> None:
    assert exit_code(signals, failed) == code


def test_what_came_of_a_run_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert carried(Made(record(), failure(), done_before=4)) == 3
    assert capsys.readouterr() == ("", "1 captioned, 4 done before, 1 failed\n")
    assert carried(Made(record(), failure()), QUIET) == 3
    assert capsys.readouterr() == ("", "")
    assert carried(Made()) == 0
    assert capsys.readouterr().err == "no videos to process\n"


def test_where_all_fail_the_first_reason_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert carried(Made(failure("a: \x1b[31mit broke"), failure("b: another"))) == 3
    assert capsys.readouterr().err == "error: a: \u241b[31mit broke\n0 captioned, 2 failed\n"
    assert carried(Made(failure(), done_before=1)) == 3
    assert capsys.readouterr().err == "0 captioned, 1 done before, 1 failed\n"


def test_records_go_to_stdout_and_failures_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert carried(Made(record(), failure(), record("b.mp4")), to_stdout=True) == 3
    out, err = capsys.readouterr()
    assert [line[:23] for line in out.splitlines()] == ['{"video_path": "a.mp4",', '{"video_path": "b.mp4",']
    assert err == "error: a.mp4: it broke\n2 captioned, 1 failed\n"
    shown: list[object] = []
    carried(Made(record()), to_stdout=True, show=shown.append)
    assert len(shown) == 1 and capsys.readouterr().out == ""


def test_a_record_on_a_terminal_is_shown_not_executed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "stdout_is_terminal", lambda: True)
    show_outcome(record("a\n\x1b]0;x\a.mp4", caption="A \x1b[31mcat."), as_json=False)
    assert capsys.readouterr().out == "a\u240a\u241b]0;x\u2407.mp4: A \u241b[31mcat.\n"


def test_what_ends_a_run_is_raised_and_what_is_done_stays_told(capsys: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with pytest.raises(LlvidError, match="the disk is full"):
        carried(Made(record(), fail()))
    assert capsys.readouterr().err == "1 captioned so far: run the same command to continue\n"
    for options in ({"to_stdout": True, "show": bool}, {"output": QUIET}):
        with pytest.raises(LlvidError):
            carried(Made(record(), fail()), **options)
        assert capsys.readouterr().err == ""
    spinner = Spinner()
    with pytest.raises(LlvidError, match="no weights"):
        carry_out(Made(record(), loading=fail("no weights")), (), OUTPUT, spinner)
    assert spinner.stopped == 1 and capsys.readouterr().err == ""
    deadline = threading.Event()
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        deadline.wait(0.05)
    assert threading.active_count() <= threads, "nothing goes on to write lines"


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_what_runs_finish_and_the_handlers_come_back(
    kind: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert carried(Made(lambda: os.kill(os.getpid(), kind), record())) == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    first, last = capsys.readouterr().err.splitlines()
    assert first == "finishing what is running; press Ctrl-C again to stop at once"
    assert last == "0 captioned, 2 left: run the same command to continue"


def test_a_second_signal_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []

    class Ended(BaseException):
        """In place of the program's end."""

    def end(code: int) -> None:
        left.extend(path.name for path in tmp_path.iterdir())
        raise Ended(code)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with whole_file(tmp_path / "sheet.png") as beside:
            beside.write_text("half of")
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match="143"):
        carried(Made(twice))
    assert not left, "no half file stays under another name"


def test_the_meter_counts_what_is_left() -> None:
    totals: list[int] = []

    class Counted(Meter):
        def __init__(self, total: int, *more: Any, **options: Any) -> None:
            totals.append(total)
            super().__init__(total, *more, **options)

    carried(Made(record(), failure(), done_before=5), QUIET, meter_of=Counted)
    assert totals == [2]


def test_the_flags_of_a_run_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(load_preset("demo"), Loading(), None)
    options = run_options(settings, OUTPUT, RunFlags(batch_size=3, timeout=7.5), Spinner())
    assert (options.batch_size, options.limits.seconds) == (3, 7.5)
    options.notify("a note")
    assert capsys.readouterr().err == "a note\n"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], io.StringIO]]:
    def prepare(line: str) -> io.StringIO:
        screen, keyboard = io.StringIO(), io.StringIO(line)
        keyboard.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", keyboard)
        monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, color_system=None))
        return screen

    yield prepare


def test_a_file_with_something_in_it_is_replaced_after_a_yes(
    tmp_path: Path, typed: Callable[[str], io.StringIO]
) -> None:
    path = tmp_path / "a\x1b[2J.jsonl"
    path.write_text("{}")
    screen = typed("n\n")
    with pytest.raises(LlvidError, match="is unchanged"):
        confirm_overwrite(path, OUTPUT)
    assert (
        "replace" in screen.getvalue()
        and "\u241b[2J.jsonl?" in screen.getvalue()
        and "\x1b[2J" not in screen.getvalue()
    )
    typed("y\n")
    confirm_overwrite(path, OUTPUT)
    screen = typed("n\n")
    confirm_overwrite(path, QUIET)
    path.write_text("")
    confirm_overwrite(path, OUTPUT)
    assert screen.getvalue() == "", "nothing is asked"
