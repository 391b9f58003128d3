"""The server gives OpenAI's client the answers that `llvid ask` gives about the same frames."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import sample
from PIL import Image
from serving import QUESTION, Served, data_url, events, message, serving
from terminal import scene

from llava_video_cli import Model, Sampling, open_model, read_frames
from llava_video_cli.conversation import Request, Turn, join
from llava_video_cli.demo.world import frames, write_picture
from llava_video_cli.server.media import MediaSources
from llava_video_cli.video.image import read_image


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


@pytest.fixture(scope="module")
def served(model: Model, clip: Path) -> Iterator[Served]:
    with serving(model, sources=MediaSources([clip.parent])) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        yield client


def asked(model: Model, path: Path, question: str, frames: int = 8) -> str:
    """The answer that `llvid ask` gives."""
    medium = read_image(path) if path.suffix == ".png" else read_frames(path, Sampling(frames))
    return join(model.stream(Request((Turn("user", question, (medium,)),)))).text


def test_openais_client_gets_the_answers_of_ask(client: Any, model: Model, clip: Path, tmp_path: Path) -> None:
    picture = tmp_path / "square.png"
    write_picture(picture, scene(shape="square", x=0.5))
    describe = "Describe the video."
    cases = [
        (clip, "video/mp4", (QUESTION, describe)), (picture, "image/png", (QUESTION,)),
        (sample("bikes.mp4"), "video/mp4", (describe,)),
    ]  # fmt: skip
    for path, kind, questions in cases:
        for question in questions:
            messages = [message(question, data_url(path, kind))]
            whole = client.chat.completions.create(model="demo", messages=messages)
            stream = client.chat.completions.create(
                model="demo", messages=messages, stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            expected = asked(model, path, question)
            assert whole.choices[0].message.content == text == expected
            assert whole.choices[0].finish_reason == "stop" and chunks[-2].choices[0].finish_reason == "stop"
            assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens > 9
            assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens > 3
            assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 9
            assert chunks[-1].llvid["usage"]["total_seconds"] > 0
    assert [each.id for each in client.models.list()] == ["demo"] and client.models.retrieve("demo").id == "demo"


def test_the_answer_has_the_frames_and_settings(served: Served, clip: Path) -> None:
    status, answer = served.post(
        {
            "messages": [message(QUESTION, clip.as_uri())],
            "sampling": {"frames": 4, "start_seconds": 1, "mode": "uniform"},
        }
    )
    extra = answer["llvid"]
    assert status == 200 and extra["frames"][0]["times_seconds"] == [1.0, 1.2, 1.5, 1.7]
    assert extra["settings"]["model"] == "demo" and extra["finish_reason"] == "stop"
    _, answer = served.post(
        {"messages": [message(QUESTION, clip.as_uri())], "media_io_kwargs": {"video": {"num_frames": 2}}}
    )
    assert answer["llvid"]["frames"][0]["count"] == 2


def part(path: Path, inside: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    """The part of a message with a video, and what clients of other servers write into it."""
    url = {"url": path.as_uri()} | (inside or {})
    video = {"type": "video_url", "video_url": url} | beside
    return {"role": "user", "content": [video, {"type": "text", "text": "?"}]}


@pytest.mark.parametrize(
    ("inside", "beside", "more", "times"),
    [
        ({"fps": 1}, {}, {}, [0, 1]),
        ({}, {"fps": 1.0}, {}, [0, 1]),
        ({}, {"nframes": 2}, {}, [0, 1]),
        ({}, {"num_frames": 2.0}, {}, [0, 1]),
        ({}, {"max_frames": 2}, {}, [0, 1]),
        ({}, {"max_frames": 768}, {"sampling": {"frames": 2}}, [0, 1]),
        ({}, {"fps": 1}, {"sampling": {"frames": 5}}, [0, 1]),
        ({}, {"nframes": 2}, {"media_io_kwargs": {"video": {"fps": 5}}}, [0, 1]),
        ({}, {"video_start": 1, "nframes": 2}, {}, [1, 1.5]),
        ({"detail": "high"}, {"uuid": "1", "fps": 1, "nframes": None}, {}, [0, 1]),
        ({}, {}, {"media_io_kwargs": {"video": {"num_frames": -1, "fps": 1}}}, [0, 1]),
    ],
)
def test_the_frames_that_a_part_asks_for_are_used(
    served: Served,
    clip: Path,
    inside: dict[str, Any],
    beside: dict[str, Any],
    more: dict[str, Any],
    times: list[float],
) -> None:
    status, answer = served.post({"messages": [part(clip, inside, **beside)]} | more)
    assert status == 200, answer
    assert answer["llvid"]["frames"][0]["times_seconds"] == times


def test_each_video_has_its_own_frames(served: Served, clip: Path) -> None:
    messages = [part(clip, fps=1), {"role": "assistant", "content": "x"}, part(clip, nframes=3)]
    _, answer = served.post({"messages": messages})
    assert [frames["count"] for frames in answer["llvid"]["frames"]] == [2, 3]


@pytest.mark.parametrize(
    ("beside", "more", "words"),
    [
        ({"fps": 1, "nframes": 2}, {}, "give one of them"),
        ({"fps": 1, "max_frames": 2}, {}, "max_frames"),
        ({"max_frames": 2}, {"sampling": {"fps": 1}}, "max_frames"),
        ({"fps": 0}, {}, "above 0"),
        ({"fps": "1"}, {}, "number"),
        ({"nframes": 2.5}, {}, "whole number"),
        ({"max_frames": 0}, {}, "from 1"),
        ({"max_pixels": 1000}, {}, "max_pixels"),
        ({"nframe": 2}, {}, "nframe"),
        ({}, {"media_io_kwargs": {"video": {"num_frames": 2, "fps": 1}}}, "give one of them"),
        ({}, {"media_io_kwargs": {"video": {"num_frames": -1}}}, "from 1"),
        ({}, {"sampling": {"frames": 2, "fps": 1}}, "give one of them"),
        ({}, {"mm_processor_kwargs": {"fps": 1}}, "mm_processor_kwargs"),
    ],
)
def test_what_a_part_can_not_have_is_refused(
    served: Served, clip: Path, beside: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    status, answer = served.post({"messages": [part(clip, **beside)]} | more)
    assert status == 400 and words in answer["error"]["message"] and answer["error"]["param"]
    assert not beside or answer["error"]["param"].startswith("messages[0].content[0]")


def test_a_picture_has_no_frames(served: Served) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}, "fps": 1}
    status, answer = served.post({"messages": [{"role": "user", "content": [picture]}]})
    assert status == 400 and "fps" in answer["error"]["message"]


def test_a_conversation_with_a_system_text_and_two_media(served: Served, model: Model, clip: Path) -> None:
    frames = read_frames(clip, Sampling(8))
    turns = (
        Turn("system", "Be brief."),
        Turn("user", QUESTION, (frames,)),
        Turn("assistant", "It is a circle."),
        Turn("user", "Which way does it move?"),
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        message(QUESTION, clip.as_uri()),
        {"role": "assistant", "content": "It is a circle."},
        {"role": "user", "content": "Which way does it move?"},
    ]
    status, answer = served.post({"messages": messages})
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == join(model.stream(Request(turns))).text


def test_stop_strings_and_the_length_limit_end_an_answer(served: Served, clip: Path) -> None:
    whole = served.answer(clip.as_uri(), "Describe the video.")
    assert served.answer(clip.as_uri(), "Describe the video.", stop=["circle moves", "xyz"]) == "A red "
    status, answer = served.post({"messages": [message("Describe the video.", clip.as_uri())], "max_tokens": 2})
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2 and whole.startswith(answer["choices"][0]["message"]["content"])
    body = {"messages": [message("Describe the video.", clip.as_uri())], "stop": " moves", "stream": True}
    _, headers, content = served.send(
        "POST", "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    assert headers["content-type"].startswith("text/event-stream")
    texts = [event["choices"][0]["delta"].get("content", "") for event in events(content)]
    assert "".join(texts) == "A red circle" and events(content)[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_seed_repeats_a_sampled_answer(served: Served, clip: Path) -> None:
    sampled = {"messages": [message("Describe the video.", clip.as_uri())], "temperature": 3}
    _, first = served.post(sampled)
    seed = first["llvid"]["generation"]["seed"]
    _, again = served.post(sampled | {"seed": seed})
    assert again["choices"] == first["choices"]


def test_a_raw_stream_of_jpeg_pictures_is_a_video(served: Served, model: Model, clip: Path) -> None:
    """The server reads it where it has no name: from a data: URL, and by the handle of a file that was checked."""
    stream, question = clip.parent / "stream.mjpeg", "Describe the video."
    with stream.open("wb") as file:
        for image in read_frames(clip, Sampling(8)).images:
            Image.fromarray(image).save(file, "JPEG", quality=95)
    for url in (stream.as_uri(), data_url(stream, "video/x-motion-jpeg")):
        assert served.answer(url, question) == asked(model, stream, question) != asked(model, stream, question, 1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The frames of a circle that moves right, ten a second."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, image in enumerate(frames(scene()), start=1):
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(image).save(paths[-1], quality=95)
    return paths


def test_pictures_are_one_video(model: Model, pictures: list[Path], clip: Path) -> None:
    question = "Which way does it move?"
    contents = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    urls = [path.as_uri() for path in pictures]
    raw = base64.b64encode(clip.read_bytes()).decode()
    vllm = {"url": "data:video/jpeg;base64," + ",".join(contents)}
    parts: list[dict[str, Any]] = [
        {"type": "video_url", "video_url": vllm, "source_fps": 10},
        {"type": "video_url", "video_url": {**vllm, "source_fps": 10}},
        {"type": "video", "video": urls, "sample_fps": 10},
        {"type": "video", "video": [f"data:image/jpeg;base64,{content}" for content in contents], "source_fps": 10},
        {"type": "video", "video": data_url(clip, "video/mp4")},
        {"type": "input_video", "input_video": {"data": raw}},
        {"type": "input_video", "input_video": {"url": clip.as_uri()}},
        {"type": "input_video", "input_video": raw},
    ]
    with serving(model, sources=MediaSources([clip.parent, pictures[0].parent])) as served:
        for number, part in enumerate(parts):
            messages = [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
            status, answer = served.post({"messages": messages})
            assert status == 200 and "right" in answer["choices"][0]["message"]["content"], answer
            (found,) = answer["llvid"]["frames"]
            assert found["duration_seconds"] == 2, part
            taken = any("taken as a video of 20 pictures, 10 per second" in line for line in answer["llvid"]["notes"])
            assert taken == (number < 4)
        broken = [urls[0], "data:image/jpeg;base64,AAAA", *urls[2:]]
        content = [{"type": "video", "video": broken}, {"type": "text", "text": question}]
        status, answer = served.post({"messages": [{"role": "user", "content": content}], "sampling": {"frames": 20}})
        assert status == 200
        assert "1 picture skipped, the nearest ones were used: picture 2: not a picture" in answer["llvid"]["notes"]
        several = [{"type": "image_url", "image_url": {"url": url}} for url in urls[:2]]
        messages = [{"role": "user", "content": [*several, {"type": "text", "text": "What shape is it?"}]}]
        status, answer = served.post({"messages": messages, "sampling": {"source_fps": 2}})
        assert status == 200 and answer["llvid"]["frames"] == [None, None]
        assert ["(source_fps) is not used" in line for line in answer["llvid"]["notes"]] == [True, True]


def test_pictures_that_do_not_fit_can_be_sent_as_a_video(served: Served, tmp_path: Path) -> None:
    picture = tmp_path / "square.png"
    write_picture(picture, scene(shape="square"))
    messages = [message("x" * 9000, *[data_url(picture, "image/png")] * 2)]
    status, answer = served.post({"messages": messages, "max_tokens": 64})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded", answer
    assert answer["error"]["hint"].endswith('send the pictures as one video: {"type": "video", "video": [URL, ...]}')
    assert "--" not in answer["error"]["hint"] and "folder" not in answer["error"]["hint"]


def test_broken_pictures_of_a_video_are_refused(model: Model, pictures: list[Path], tmp_path: Path) -> None:
    picture = base64.b64encode(pictures[0].read_bytes()).decode()
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(pictures[0].read_bytes())
    cases: list[tuple[Any, int, str]] = [
        ([], 400, "got {'type': 'video', 'video': []}"), ([""], 400, "part of a message"), ([1], 400, "must be"),
        ("data:video/jpeg;base64,AAAA,BBBB", 400, "picture 1: not a picture"),
        ("data:video/jpeg;base64,?", 400, "not base64"), ("data:video/jpeg;base64," + "," * 4096, 400, "at most 4096"),
        ([f"data:image/jpeg;base64,{picture}", outside.as_uri()], 403, "not in a folder"),
        ([f"data:image/jpeg;base64,{picture}", "https://example.com/a.jpg"], 403, "start it with --allow-media-host"),
        (["data:image/jpeg;base64,AAAA"] * 4097, 400, "at most 4096 pictures"),
        (pictures[0].parent.as_uri(), 400, "a folder, not a video"),
    ]  # fmt: skip
    with serving(model, sources=MediaSources([pictures[0].parent])) as served:
        for video, status, words in cases:
            content = [{"type": "video", "video": video}, {"type": "text", "text": QUESTION}]
            got, answer = served.post({"messages": [{"role": "user", "content": content}]})
            assert got == status and words in answer["error"]["message"], answer
            assert "llvid-serve" not in answer["error"]["message"]
        late = {"type": "video", "video": [f"data:image/jpeg;base64,{picture}"] * 2, "video_start": 99}
        _, answer = served.post({"messages": [{"role": "user", "content": [late]}]})
        assert answer["error"]["message"].startswith("messages[0].content[0]: the list of pictures: "), answer
        for part in ({"type": "input_video"}, {"type": "input_video", "input_video": {}}, {"type": "video"}):
            assert served.post({"messages": [{"role": "user", "content": [part]}]})[0] == 400
