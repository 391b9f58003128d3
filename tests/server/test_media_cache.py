"""What is kept of media, how much memory and how many open files they may take, and what changed files are."""

from __future__ import annotations

import asyncio
import base64
import errno
import gc
import io
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from llava_video_cli import MediaError, Sampling
from llava_video_cli.conversation import Media
from llava_video_cli.server import media
from llava_video_cli.server.media import MediaCache, MediaSources, _open_below
from llava_video_cli.server.responses import RequestError
from llava_video_cli.video.files import PictureList
from llava_video_cli.video.fit import FrameInput, FrameResize
from llava_video_cli.video.image import Picture


def unchanged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


def url(number: int) -> str:
    """A picture of 300 bytes, of a color of its own."""
    content = io.BytesIO()
    Image.new("RGB", (10, 10), (number, 0, 0)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


Read = Callable[[int], Coroutine[Any, Any, Media]]


@contextmanager
def reading(max_bytes: int = 2**20) -> Iterator[Read]:
    with closing(MediaCache(MediaSources(), FrameResize(FrameInput(48, 48), unchanged), max_bytes)) as cache:

        async def read(number: int) -> Media:
            (medium,) = await cache.read([url(number)], ["the picture"], [Sampling()], "client")
            assert isinstance(medium, Picture) and medium.pixels[0, 0, 0] == number
            return medium

        yield read


async def kept(read: Read, numbers: Sequence[int], first: dict[int, Media]) -> list[bool]:
    """Whether each of the pictures is the object that it was."""
    return [await read(number) is first[number] for number in numbers]


def test_the_last_used_media_are_kept_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fill() -> None:
        first = {number: await read(number) for number in (1, 2)}
        assert await read(1) is first[1], "now 2 is the oldest"
        first[3] = await read(3)
        assert await kept(read, (1, 3, 2), first) == [True, True, False], "two have so many bytes"
        monkeypatch.setattr(media, "_MAX_CACHED", 1)
        first = {number: await read(number) for number in (4, 5)}
        assert await kept(read, (5, 4), first) == [True, False]

    with reading(max_bytes=700) as read:
        asyncio.run(fill())


def test_the_memory_of_all_media_is_bounded_and_free_again_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of requests that wait for their answer, which the cache has dropped, count too."""
    monkeypatch.setattr(media, "_MAX_LIVE_BYTES", 500)

    async def fill() -> None:
        held = [await read(1), await read(2)]
        with pytest.raises(RequestError, match="fill the memory") as error:
            await read(3)
        assert error.value.status == 429 and len(held) == 2
        del held, error
        gc.collect()
        assert await read(3)

    with reading(max_bytes=0) as read:
        asyncio.run(fill())


def test_the_sheet_of_a_video_is_not_what_the_model_gets(clip: Path) -> None:
    def black(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image[:1, :1] * 0

    sources = MediaSources([clip.parent])
    with closing(MediaCache(sources, FrameResize(FrameInput(48, 48), black))) as cache:

        async def both() -> list[Media]:
            asked = ([clip.as_uri()], ["the video"], [Sampling(2)], "client")
            return [*await cache.read(*asked), *await cache.read(*asked, whole=True)]

        small, sheet = asyncio.run(both())
    assert small.bytes == 6 and sheet.bytes > 6


def test_a_file_is_closed_whatever_comes_of_it_and_a_changed_one_is_another(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "a.mp4"
    path.write_text("old")
    sources, never = MediaSources([tmp_path]), threading.Event()
    before, digests = len(os.listdir("/proc/self/fd")), set[str]()  # noqa: PTH208
    for nanoseconds in (1, 2):
        os.utime(path, ns=(1, nanoseconds))
        with sources.open(path.as_uri(), never) as content, content.open() as opened:
            digests.add(content.digest)
            assert Path(opened).read_text() == "old"
    for wrong in ("inner", "inner/gone.mp4", "gone/a.mp4", "inner/a.mp4/b.mp4"):
        with pytest.raises(MediaError), sources.open((tmp_path / wrong).as_uri(), never):
            pass
    assert len(digests) == 2 and len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_no_link_and_no_path_leads_out_of_the_allowed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret.mp4"
    (allowed / "sub").mkdir(parents=True)
    secret.write_text("secret")
    (allowed / "in.mp4").write_text("in")
    (allowed / "link.mp4").symlink_to(secret)
    (allowed / "out").symlink_to(tmp_path)
    (allowed / "near.mp4").symlink_to("in.mp4")
    looked_at = list[str]()
    resolve = Path.resolve

    def noted(path: Path, strict: bool = False) -> Path:
        looked_at.append(str(path))
        return resolve(path, strict)

    monkeypatch.setattr(Path, "resolve", noted)
    sources, never = MediaSources([allowed]), threading.Event()
    for inside in ("near.mp4", "sub/../in.mp4"):
        with sources.open(f"file://{allowed}/{inside}", never) as content, content.open() as path:
            assert Path(path).read_text() == "in"
    for outside in ("link.mp4", "out/secret.mp4", "../secret.mp4", "sub/../../secret.mp4"):
        with pytest.raises(RequestError) as error, sources.open(f"file://{allowed}/{outside}", never):
            pass
        assert error.value.status == 403
    with pytest.raises(RequestError), sources.open(secret.as_uri(), never):
        pass
    assert str(secret) not in looked_at, "nothing tells whether it exists"
    with pytest.raises(MediaError):  # a link that is put there after the check
        _open_below(allowed, Path("link.mp4"), "link.mp4")


def test_files_of_one_size_and_time_are_two(tmp_path: Path) -> None:
    digests = set[str]()
    for name in "ab":
        path = tmp_path / f"{name}.mp4"
        path.write_text(name)
        os.utime(path, ns=(1, 1))
        with MediaSources([tmp_path]).open(path.as_uri(), threading.Event()) as content:
            digests.add(content.digest)
    assert len(digests) == 2


def test_an_allowed_folder_that_is_gone_is_no_bug(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with (
        pytest.raises(MediaError, match=r"a\.mp4: No such file"),
        MediaSources([gone]).open((gone / "a.mp4").as_uri(), threading.Event()),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_request_whose_body_arrives_after_the_cache_is_closed_is_refused() -> None:
    with reading() as read:
        pass
    with pytest.raises(RequestError, match="shutting down") as error:
        asyncio.run(read(1))
    assert error.value.status == 503


def test_the_pictures_of_a_list_have_the_bounds_of_one_download_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def fetch(_: str, target: Path, hosts: object, max_bytes: int, seconds: float, cancelled: object) -> str:
        del hosts, cancelled
        asked.append((max_bytes, seconds))
        target.write_bytes(b"picture")
        return f"digest {len(asked)}"

    monkeypatch.setattr(media, "fetch", fetch)
    urls = PictureList([f"https://host/{number}.png" for number in range(3)])
    with (
        MediaSources(hosts=["host"], max_bytes=20).open(urls, threading.Event()) as content,
        content.open() as pictures,
    ):
        assert isinstance(pictures, PictureList)
        assert [Path(picture).read_bytes() for picture in pictures.paths] == [b"picture"] * 3
    assert [most for most, _ in asked] == [20, 13, 6]
    assert asked[0][1] > asked[1][1] > asked[2][1] and asked[0][1] <= 60


def test_a_full_disk_is_no_fault_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(media, "fetch", fetch)
    opened = MediaSources(hosts=["host"]).open("https://host/1", threading.Event())
    with pytest.raises(RequestError, match="No space left") as caught, opened:
        pass
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("AAAA\nAAAA", r"character 5 of the content is '\n'"),
        ("AA-_", "character 3 of the content is '-'"),
        ("AAA\xfc", r"character 4 of the content is '\xfc'"),
        ("AAA", "Incorrect padding"),
    ],
)
def test_an_error_of_base64_shows_the_character_and_how_to_make_it(content: str, problem: str) -> None:
    url = f"data:image/png;base64,{content}"
    with pytest.raises(RequestError) as raised, MediaSources().open(url, threading.Event()):
        pass
    assert str(raised.value) == f"the data: URL is not base64: {problem}"
    assert raised.value.status == 400 and "without line breaks, as `base64 -w0 FILE`" in (raised.value.hint or "")
