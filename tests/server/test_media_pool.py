"""Media of requests are decoded in processes of their own, which end when their time or their client is gone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import sample
from numpy.typing import NDArray
from PIL import Image
from serving import data_url, message, serving
from waiting_model import WaitingModel

from llava_video_cli import Frames, Sampling, read_frames
from llava_video_cli.errors import LlvidError, MediaError
from llava_video_cli.server import media_pool, media_worker
from llava_video_cli.server.media import MediaSources, remove_leftovers
from llava_video_cli.server.media_pool import Cancellation, FairSlots, MediaPool
from llava_video_cli.video import Resize
from llava_video_cli.video.image import Picture, read_image
from llava_video_cli.video.limits import Limits

LIMITS = Limits(seconds=60.0, bytes=2 * 2**30, cores=1)
PIXELS = 10**7


@pytest.fixture
def pool() -> Iterator[MediaPool]:
    opened = MediaPool(2)
    yield opened
    opened.close()


def unchanged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


def decode(
    pool: MediaPool, path: Path, sampling: Sampling | None = None, resize: Resize = unchanged
) -> Frames | Picture:
    return pool.decode(str(path), sampling or Sampling(8), LIMITS, PIXELS, resize, Cancellation())


@pytest.mark.parametrize("name", ["circle.mp4", "bikes.mp4", "sample.avi", "pigs_in_a_polka.gif"])
def test_the_frames_are_those_of_the_reader(pool: MediaPool, clip: Path, name: str) -> None:
    path = clip if name == clip.name else sample(name)
    sampling = Sampling(5, start_seconds=0.3, mode="endpoints")
    got, expected = decode(pool, path, sampling, lambda image: image[:9, ::2]), read_frames(path, sampling)
    assert isinstance(got, Frames)
    assert np.array_equal(got.images, expected.images[:, :9, ::2])
    assert (got.times_seconds, got.info, got.notes) == (expected.times_seconds, expected.info, expected.notes)
    assert got.sampling == sampling


def test_the_pictures_are_those_of_the_reader(pool: MediaPool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 4), np.uint8), "RGBA").save(path)
    got = decode(pool, path)
    assert isinstance(got, Picture) and np.array_equal(got.pixels, read_image(path).pixels)


def test_an_error_is_that_of_the_reader(pool: MediaPool, tmp_path: Path, clip: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    with pytest.raises(MediaError) as expected:
        read_frames(broken)
    with pytest.raises(MediaError) as got:
        decode(pool, broken)
    assert (str(got.value), got.value.hint) == (str(expected.value), expected.value.hint)
    assert isinstance(decode(pool, clip), Frames)


def test_a_process_that_was_killed_while_it_was_idle_is_replaced(pool: MediaPool, clip: Path) -> None:
    decode(pool, clip)
    (pid,) = children()
    os.kill(pid, 9)
    until(lambda: pid not in children())
    assert isinstance(decode(pool, clip), Frames)
    assert children() != [pid]


def children() -> list[int]:
    """Return the decoding processes of this one."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "media_worker" in line]


def slow_gif(path: Path, frames: int = 3000) -> Path:
    """Write an animation whose decoding takes many seconds, though it has few bytes."""
    images = [Image.new("P", (3000, 3000), number % 2) for number in range(2)]
    images[0].save(path, save_all=True, append_images=[images[1], images[0]] * 20, duration=40, loop=0)
    content = path.read_bytes()
    body = content[content.index(b"!\xf9") : -1]
    path.write_bytes(content[: content.index(b"!\xf9")] + body * (frames // 40) + b";")
    return path


def test_a_picture_that_takes_too_long_is_ended(
    pool: MediaPool, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_pool, "_MAX_SECONDS", 1.5)
    decode(pool, clip)  # the process has started
    (pid,) = children()
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"slow\.gif: not read within 1\.5 seconds"):
        decode(pool, slow_gif(tmp_path / "slow.gif"))
    assert time.monotonic() - start < 10 and pid not in children()


def test_the_processor_time_and_the_memory_of_a_process_are_bounded(clip: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from llava_video_cli.server import media_worker as w; w.PICTURE_SECONDS = 1; "
        "w.MAX_MEMORY_BYTES = 200 * 2**20; w.main()"
    )

    def run(path: Path) -> subprocess.CompletedProcess[bytes]:
        job = {"path": str(path), "sampling": {}, "limits": {}, "max_pixels": 10**9}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, input=json.dumps(job).encode() + b"\n", capture_output=True, timeout=60)

    assert b'"numbers"' in run(clip).stdout
    assert run(slow_gif(tmp_path / "slow.gif")).returncode == -24  # SIGXCPU
    large = tmp_path / "large.png"
    Image.new("RGB", (12_000, 12_000)).save(large)
    assert b"needs more than" in run(large).stdout


def test_a_bug_in_the_decoder_is_logged_and_is_no_error_of_the_client(
    pool: MediaPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clip: Path
) -> None:
    monkeypatch.setattr(media_pool, "asdict", lambda value: {"seconds": 1.0, "nonsense": value is None})
    with pytest.raises(LlvidError, match="an error inside the server") as error:
        decode(pool, clip)
    assert not isinstance(error.value, MediaError)
    assert "TypeError" in caplog.text and "media_worker.py" in caplog.text


def test_a_client_that_disconnects_ends_its_process(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_worker, "PICTURE_SECONDS", 60)
    slow_gif(tmp_path / "slow.gif")
    with serving(WaitingModel(), sources=MediaSources([tmp_path, clip.parent])) as served:
        assert served.answer(clip.as_uri(), "a") == "text: a"
        (pid,) = children()
        import socket

        body = json.dumps({"messages": [message("b", (tmp_path / "slow.gif").as_uri())]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            until(lambda: processor_seconds(pid) > 0.5)
            assert served.answer(clip.as_uri(), "c", sampling={"frames": 3}) == "text: c"  # beside it
        until(lambda: pid not in children(), 5)


def test_a_server_that_stops_does_not_wait_for_media(tmp_path: Path) -> None:
    slow_gif(tmp_path / "slow.gif")
    statuses: list[int] = []
    with serving(WaitingModel(), sources=MediaSources([tmp_path])) as served:
        (pid,) = children()
        values = {"messages": [message("a", (tmp_path / "slow.gif").as_uri())]}
        thread = threading.Thread(target=lambda: statuses.append(served.post(values)[0]))
        thread.start()
        until(lambda: processor_seconds(pid) > 0.5)
        start = time.monotonic()
    thread.join(20)
    assert statuses == [503] and time.monotonic() - start < 5
    until(lambda: not children(), 5)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_clients_take_turns() -> None:
    async def run() -> list[str]:
        slots, order = FairSlots(1), list[str]()

        async def read(client: str) -> None:
            await slots.acquire(client)
            order.append(client)
            await asyncio.sleep(0)
            slots.release(client)

        await asyncio.gather(*(read(client) for client in ["a", "a", "a", "b", "c", "b"]))
        return order

    assert asyncio.run(run()) == ["a", "b", "c", "a", "b", "a"]


def test_a_client_has_one_slot_at_a_time_and_a_cancelled_wait_takes_none() -> None:
    async def run() -> None:
        slots = FairSlots(2)
        await slots.acquire("a")
        again = asyncio.ensure_future(slots.acquire("a"))
        await asyncio.sleep(0)
        assert not again.done()
        await asyncio.wait_for(slots.acquire("b"), 1)
        third = asyncio.ensure_future(slots.acquire("c"))
        await asyncio.sleep(0)
        again.cancel()
        third.cancel()
        await asyncio.wait({again, third})
        slots.release("a")
        slots.release("b")
        await asyncio.wait_for(asyncio.gather(slots.acquire("a"), slots.acquire("c")), 1)

    asyncio.run(run())


def test_a_cancellation_stops_work_once_and_refuses_what_begins_later() -> None:
    cancellation, stopped = Cancellation(), threading.Event()
    with cancellation.stopping(stopped.set):
        cancellation.set()
    assert stopped.is_set()
    with pytest.raises(MediaError), cancellation.stopping(stopped.set):
        pass


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ages = {"dead": 100, "alive": 100, "new": 1, "old version": 7200, "no lock yet": 100, "other": 7200}
    for name, age in ages.items():
        folder = tmp_path / (name if name == "other" else f"llvid-serve-{name}")
        folder.mkdir()
        (folder / "media").write_text("x")
        if name in ("dead", "alive", "new"):
            (folder / "lock").touch()
        os.utime(folder, (time.time() - age, time.time() - age))
    (tmp_path / "llvid-serve-link").symlink_to(tmp_path / "other")
    with (tmp_path / "llvid-serve-alive" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers()
    left = {path.name.removeprefix("llvid-serve-") for path in tmp_path.iterdir()}
    assert left == {"alive", "new", "no lock yet", "other", "link"} and (tmp_path / "other" / "media").exists()


def test_a_folder_in_use_is_locked(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        MediaSources().open(data_url(clip), Cancellation()) as content,
        content.open() as path,
    ):
        os.utime(Path(path).parent, (0, 0))
        remove_leftovers()
        assert Path(path).read_bytes() == clip.read_bytes()
    assert list(tmp_path.iterdir()) == []
