"""`llvid pull` against a stand-in for the hub: what comes, what stays, and what goes wrong."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import COMMIT, Faults, Hub, running_hub, use_hub
from terminal import Typed, failed, llvid, ran

SMALL = ("config.json", "tokenizer.json", "tokenizer.model", "model.safetensors.index.json", "Font.ttf", "README.md")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
# More than the ten MiB that huggingface_hub reads at a time, so that a part is left when the connection ends.
LARGE_BYTES = 24 * 2**20


def source(folder: Path, large_bytes: int = 5000) -> Path:
    """A repository of a checkpoint in two files, and what must not be fetched."""
    folder.mkdir()
    draw = random.Random(0)
    (folder / "config.json").write_text('{"model_type": "llava_next_video"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "Font.ttf").write_bytes(b"letters")
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))
    for name, size in zip(SHARDS, (large_bytes, 3000), strict=True):
        (folder / name).write_bytes(draw.randbytes(size))
    for name in ("pytorch_model.bin", "modeling_evil.py", "optimizer.safetensors", "notes.md"):
        (folder / name).write_bytes(b"not wanted")
    (folder / "original").mkdir()
    (folder / "original" / "model.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source(tmp_path_factory.mktemp("hub") / "small")


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source(tmp_path_factory.mktemp("hub") / "large", LARGE_BYTES)


@pytest.fixture
def hub(folder: Path, large_folder: Path) -> Iterator[Hub]:
    with running_hub({"org/small": folder, "org/large": large_folder}) as running:
        yield running


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"} | more


Pull = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pull:
    """`llvid pull` in this process: one of its own takes half a second."""

    def pulled(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        use_hub(monkeypatch, hub.address, home / "hub")
        return ran(capsys, "pull", *arguments)

    return pulled


def blobs(home: Path, ending: str = "") -> list[Path]:
    return sorted(path for path in home.glob(f"hub/models--*/blobs/*{ending}"))


def test_a_checkpoint_comes_whole_of_one_commit_and_nothing_else(
    pull: Pull, hub: Hub, folder: Path, tmp_path: Path
) -> None:
    done = pull(hub, tmp_path, "org/small")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.removesuffix("\n"))
    wanted = {*SMALL, *SHARDS}
    assert {each.name for each in path.iterdir()} == wanted, "no pickles, no code, no folders, no weights of others"
    assert all((path / name).read_bytes() == (folder / name).read_bytes() for name in wanted)
    assert path.name == COMMIT and COMMIT in done.stderr and not blobs(tmp_path, "incomplete")
    hub.asked.clear()
    hub.sent.clear()
    again = pull(hub, tmp_path, "org/small", "--json", "-q")
    values = json.loads(again.stdout)
    total = sum((folder / name).stat().st_size for name in wanted)
    assert values == {
        "model": "org/small", "revision": COMMIT, "folder": str(path), "bytes": total, "downloaded_bytes": 0,
        "checked": True,
    }  # fmt: skip
    assert again.stderr == "" and not hub.sent
    hub.faults.status = 500
    offline = pull(hub, tmp_path, "org/small", "--offline")
    assert (offline.returncode, offline.stdout) == (0, done.stdout) and "was not asked" in offline.stderr
    (path / SHARDS[1]).unlink()
    assert "isn't in the local cache" in failed(pull(hub, tmp_path, "org/small", "--offline"), 1)


def test_a_file_of_the_wrong_size_in_the_cache_is_mended(pull: Pull, hub: Hub, folder: Path, tmp_path: Path) -> None:
    path = Path(pull(hub, tmp_path, "org/small").stdout.strip())
    for name in (SHARDS[1], "config.json"):
        (path / name).resolve().write_bytes(b"cut")
    done = pull(hub, tmp_path, "org/small", "--json")
    assert json.loads(done.stdout)["downloaded_bytes"] == sum(
        (folder / name).stat().st_size for name in (SHARDS[1], "config.json")
    )
    assert (path / SHARDS[1]).read_bytes() == (folder / SHARDS[1]).read_bytes()


def test_a_connection_that_is_cut_goes_on_and_so_does_the_next_run(
    pull: Pull, hub: Hub, large_folder: Path, tmp_path: Path
) -> None:
    hub.faults = Faults(cut_after=11 * 2**20, cuts=1)
    done = pull(hub, tmp_path / "once", "org/large")
    assert done.returncode == 0, done.stderr
    content = (large_folder / SHARDS[0]).read_bytes()
    assert (Path(done.stdout.strip()) / SHARDS[0]).read_bytes() == content
    assert LARGE_BYTES < sum(hub.sent) < LARGE_BYTES + 2 * 2**20, "only what was lost is sent again"

    hub.faults = Faults(rate=6 * 2**20)
    command = [sys.executable, "-m", "llava_video_cli", "pull", "org/large"]
    env = os.environ | environment(hub, tmp_path / "twice")
    begun = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not any(_size(path) > 2**20 for path in blobs(tmp_path / "twice", ".incomplete")):  # the large file's
            assert time.monotonic() < deadline and begun.poll() is None
            time.sleep(0.02)
        begun.send_signal(signal.SIGINT)
        out, err = begun.communicate(timeout=30)
    finally:
        begun.kill()
    assert (begun.returncode, out) == (130, "") and "run the same command to resume" in err and "Traceback" not in err
    (partial,) = [path for path in blobs(tmp_path / "twice", ".incomplete") if path.stat().st_size]
    kept = partial.stat().st_size
    hub.faults = Faults()
    done = pull(hub, tmp_path / "twice", "org/large", "--json")
    values = json.loads(done.stdout)
    assert 0 < kept < LARGE_BYTES and 0 <= values["downloaded_bytes"] - (LARGE_BYTES - kept) <= 4000
    assert (Path(values["folder"]) / SHARDS[0]).read_bytes() == content


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has become whole meanwhile
        return 0


def test_a_hub_without_ranges_sends_the_file_again(pull: Pull, hub: Hub, large_folder: Path, tmp_path: Path) -> None:
    hub.faults = Faults(cut_after=11 * 2**20, cuts=1, ranges=False)
    done = pull(hub, tmp_path, "org/large")
    path = Path(done.stdout.strip()) / SHARDS[0]
    assert done.returncode == 0 and path.read_bytes() == (large_folder / SHARDS[0]).read_bytes()


def test_a_hub_that_fails_is_told(pull: Pull, hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(listing_status=500)
    assert "the hub failed: status 500" in failed(pull(hub, tmp_path, "org/small"), 1)


@pytest.mark.parametrize("name", [SHARDS[1], "tokenizer.json"])  # of the large storage, and not
def test_a_wrong_checksum_is_told_and_the_bytes_go(
    name: str, pull: Pull, hub: Hub, folder: Path, tmp_path: Path
) -> None:
    hub.faults = Faults(wrong={name})
    assert f"{name} was damaged on the way" in failed(pull(hub, tmp_path, "org/small"), 1)
    hub.faults = Faults()
    done = pull(hub, tmp_path, "org/small")
    assert (Path(done.stdout.strip()) / name).read_bytes() == (folder / name).read_bytes()


def test_a_partial_file_that_is_damaged_is_no_trap(pull: Pull, hub: Hub, folder: Path, tmp_path: Path) -> None:
    path = Path(pull(hub, tmp_path, "org/small").stdout.strip()) / SHARDS[0]
    blob = path.resolve()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(b"damaged")
    path.unlink()
    blob.unlink()
    assert "was damaged on the way" in failed(pull(hub, tmp_path, "org/small"), 1)
    assert pull(hub, tmp_path, "org/small").returncode == 0
    assert path.read_bytes() == (folder / SHARDS[0]).read_bytes()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "asks for a login or a licence"),
        (403, "only to users who are logged in (status 403)"),
        (404, "the hub has no model org/small"),
    ],
)
def test_what_the_hub_refuses(status: int, words: str, pull: Pull, hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(status=status)
    result = pull(hub, tmp_path, "org/small")
    assert words in failed(result, 1)
    assert ("hf auth login" in result.stderr) == (status in (401, 403, 404))


def test_room_is_looked_at_before_and_a_full_disk_keeps_what_came(pull: Pull, hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(claims={SHARDS[0]: 10**18})
    assert "GB is free" in failed(pull(hub, tmp_path, "org/small"), 1) and not hub.sent[3:]
    hub.faults = Faults()

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE_BYTES // 2, LARGE_BYTES // 2))

    result = llvid("pull", "org/large", env=environment(hub, tmp_path), preexec_fn=little_room)
    assert "not enough disk space for org/large" in failed(result, 1) and "HF_HOME" in result.stderr
    assert max(path.stat().st_size for path in blobs(tmp_path, ".incomplete")) > 10 * 2**20
    done = pull(hub, tmp_path, "org/large", "--json")
    assert json.loads(done.stdout)["downloaded_bytes"] < LARGE_BYTES


def test_what_needs_no_download_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    done = ran(capsys, "pull", "demo", "--json")
    values = json.loads(done.stdout)
    assert values["revision"] is None and values["downloaded_bytes"] == 0 and "demo needs no download" in done.stderr
    assert ran(capsys, "pull", values["folder"]).stdout == f"{values['folder']}\n"
    assert "doesn't exist" in failed(ran(capsys, "pull", "./nothing"), 1)
    assert "there is no model" in failed(ran(capsys, "pull", ""), 2)


def test_a_terminal_shows_bytes_rate_and_time_left(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(rate=12 * 2**20)
    typed = Typed("pull", "org/large", cwd=tmp_path, env=environment(hub, tmp_path))
    try:
        typed.until("/25.2 MB")
        typed.until("MB/s")
        assert typed.end() == 0
        assert f"snapshots/{COMMIT}" in typed.shown
    finally:
        typed.close()


@pytest.mark.slow
def test_a_terminal_shows_that_the_connection_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(cut_after=10, cuts=3)  # too few bytes to be kept
    typed = Typed("pull", "org/large", cwd=tmp_path, env=environment(hub, tmp_path))
    try:
        typed.until("asking the hub, try 2 of 5")
        assert typed.end() == 0
    finally:
        typed.close()


def test_a_first_question_shows_the_download_and_ctrl_c_keeps_what_came(hub: Hub, clip: Path, tmp_path: Path) -> None:
    hub.faults = Faults(rate=12 * 2**20)
    typed = Typed(
        "ask", str(clip), "What?", "-m", "org/large", "--frames", "2", cwd=tmp_path, env=environment(hub, tmp_path)
    )
    try:
        typed.until("10.5/25.2 MB")
        typed.type("\x03")
        typed.until("run the same command to resume the download")
        assert typed.end() == 130
    finally:
        typed.close()
    assert max(path.stat().st_size for path in blobs(tmp_path, ".incomplete")) >= 10 * 2**20
