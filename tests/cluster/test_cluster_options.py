"""`--ray` before it connects to a cluster: what is refused, and how."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llava_video_cli.cli.app import run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "2"], "--gpus needs --ray"),
        (["--dry-run"], "--dry-run needs --ray"),
        (["--ray", "here"], "--ray must be auto or local, got 'here'"),
        (["--ray", "local", "--gpus", "many"], "--gpus must be a number above 0, or MIN-MAX, got 'many'"),
        (["--ray", "local", "--gpus", "4-2"], "--gpus must be a number above 0, or MIN-MAX, got '4-2'"),
        (["--ray", "local", "--gpus", "0"], "--gpus must be a number above 0, or MIN-MAX, got '0'"),
        (["--ray", "local", "--sidecar", "txt"], "--sidecar can't be used with --ray"),
        (["--ray", "local", "-o", "out.srt"], "out.srt must end in .jsonl, .csv, .parquet"),
    ],
)
def test_flags_that_are_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["caption", str(tmp_path), "-m", "demo", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {words}")


@pytest.mark.parametrize("command", [["eval", "demo"], ["batch", "requests.jsonl", "-o", "out.jsonl"]], ids=str)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--readers", "2"], "--readers needs --ray"),
        (["--ray", "here"], "--ray must be auto or local, got 'here'"),
        (["--ray", "local", "--dry-run"], "--dry-run is for `llvid caption`"),
        (["--ray", "local", "--device", "cuda:1"], "--device cuda:1 can't be used with --ray"),
    ],
)
def test_flags_that_runs_of_requests_refuse(
    command: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "-m", "demo", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: {words}")


@pytest.mark.parametrize("from_environment", [False, True])
def test_a_ray_client_is_refused_with_a_hint_to_ray_job_submit(
    from_environment: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "ray://head.example:10001"
    if from_environment:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert run(["caption", str(tmp_path), "-m", "demo", "--ray", "auto" if from_environment else address]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: llvid can't use a Ray client address ({address})")
    command = "ray job submit --address http://head.example:8265 -- llvid caption /shared/clips"
    assert hint == f"hint: {command} -o /shared/captions.jsonl --ray auto"


def test_without_ray_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as an import of what is not installed
    assert run(["caption", str(tmp_path), "-m", "demo", "--ray", "local", "-o", str(tmp_path / "out.jsonl")]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: --ray needs the package ray"
    assert hint == "hint: pip install '.[ray]' in your clone of llvid"
