"""A model behind a server: what each engine is asked, what becomes of its answer, what is tried again."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from openai_server import OpenAIServer, Reply, error, exchange, listed, said
from PIL import Image

from llava_video_cli import (
    Answer,
    ContextError,
    Frames,
    Generation,
    MediaError,
    ModelError,
    Picture,
    Request,
    Sampling,
    Turn,
    UsageError,
    VideoInfo,
    join,
)
from llava_video_cli.conversation import ANY_OBJECT
from llava_video_cli.errors import ServerError
from llava_video_cli.remote import open_remote
from llava_video_cli.remote.remote_model import RemoteModel
from llava_video_cli.runs.answers import answered
from llava_video_cli.video.fit import Fit, FrameInput

RANDOM = np.random.default_rng(1)


def video(count: int = 3, path: str = "v.mp4", **sampling: Any) -> Frames:
    images = RANDOM.integers(0, 256, (count, 24, 32, 3), np.uint8)
    times = tuple(float(number) for number in range(count))
    return Frames(images, times, VideoInfo(path, count, 32, 24, 1.0, "h264", 0), Sampling(**({"frames": 8} | sampling)))


VIDEO = video()
STILL = Picture(RANDOM.integers(0, 256, (20, 30, 3), np.uint8), "p.png")


def request(text: str = "What happens?", *media: Any, **generation: Any) -> Request:
    return Request((Turn("user", text, media or (VIDEO,)),), Generation(**({"max_new_tokens": 40} | generation)))


@pytest.fixture
def stand_in() -> Iterator[Any]:
    """Starts stand-ins that are stopped at the end."""
    with ExitStack() as running:
        yield lambda server: running.enter_context(server.running())


def opened(*servers: OpenAIServer, **options: Any) -> RemoteModel:
    return open_remote([server.url for server in servers], **options)


def decoded(url: str) -> list[Any]:
    kind, _, content = url.partition(";base64,")
    assert kind == "data:video/mp4"
    with av.open(io.BytesIO(base64.b64decode(content)), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_vllm_gets_the_chosen_frames_and_their_number(stand_in: Any) -> None:
    server = stand_in(exchange("vllm"))
    model = opened(server)
    assert model.name == "llava-hf/LLaVA-NeXT-Video-7B-hf"
    assert model.settings["engine"] == "vLLM" and model.settings["server"] == server.url
    answer = join(model.stream(request(repetition_penalty=1.2)))
    assert answer.text == "A man rides a bike." and answer.finish_reason == "stop"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens) == (1181, 1152, 7)
    assert 0 < usage.first_token_seconds <= usage.total_seconds
    (asked,) = server.asked
    assert asked["media_io_kwargs"] == {"video": {"num_frames": 3}} and asked["repetition_penalty"] == 1.2
    assert asked["model"] == model.name and asked["stream"] and asked["stream_options"] == {"include_usage": True}
    assert (asked["temperature"], asked["max_tokens"], "seed" in asked) == (0, 40, False)
    clip, text = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": "What happens?"}
    assert np.array_equal(decoded(clip["video_url"]["url"]), VIDEO.images)


def test_sglang_gets_the_frames_as_pictures_of_a_video(stand_in: Any) -> None:
    server = stand_in(exchange("sglang"))
    answer = join(opened(server).stream(request(temperature=0.5, seed=7)))
    assert answer.text == "A man rides a bike." and answer.usage.prompt_tokens == 1184
    (asked,) = server.asked
    assert (asked["seed"], asked["temperature"]) == (7, 0.5) and "media_io_kwargs" not in asked
    *frames, text = asked["messages"][0]["content"]
    assert [frame["modalities"] for frame in frames] == ["video"] * 3 and text["type"] == "text"
    for frame, image in zip(frames, VIDEO.images, strict=True):
        png = base64.b64decode(frame["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), image)


def test_transformers_gets_a_file_with_sound_that_is_deleted_afterwards(stand_in: Any) -> None:
    seen: list[Any] = []

    def look(body: dict[str, Any]) -> None:
        path = Path(body["messages"][0]["content"][0]["video_url"]["url"])
        with av.open(path) as container:
            seen.append(
                (path, len(container.streams.audio), [f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
            )

    server = stand_in(exchange("transformers", look=look))
    model = opened(server)
    assert model.settings["engine"] == "transformers" and model.name == "/models/demo"
    answer = join(model.stream(request(repetition_penalty=1.5)))
    assert answer.text == "It is a circle." and answer.usage.prompt_tokens == 84
    ((path, tracks, images),) = seen
    assert tracks == 1 and np.array_equal(images, VIDEO.images) and not path.exists()
    (asked,) = server.asked
    # it refuses fields that it doesn't know
    fields = {"model", "messages", "stream", "max_tokens", "temperature", "top_p", "frequency_penalty"}
    assert asked.keys() == fields | {"chat_template_kwargs"}
    assert asked["chat_template_kwargs"] == {"num_frames": 3} and asked["frequency_penalty"] == 0.5


def test_llvids_own_server_reports_more_and_gets_the_number_of_frames(stand_in: Any) -> None:
    own = {"version": "0.1.0", "settings": {"dtype": "float32", "quantize": "4bit"}, "frame_tokens": 9}
    extra = {"finish_reason": "repetition", "usage": {"peak_memory_bytes": 123}}
    server = stand_in(
        OpenAIServer(listed("demo", "llvid", max_model_len=2048, llvid=own), [said("so so", llvid=extra)])
    )
    model = opened(server)
    assert model.quantize == "4bit" and model.settings["dtype"] == "float32"
    assert model.settings["engine"] == "llvid 0.1.0" and model.settings["model"] == "demo"
    answer = join(model.stream(request("Both?", VIDEO, video(2), STILL)))
    assert (answer.text, answer.finish_reason, answer.usage.peak_memory_bytes) == ("so so", "repetition", 123)
    (asked,) = server.asked
    assert asked["sampling"] == {"frames": 3}
    kinds = [part["type"] for part in asked["messages"][0]["content"]]
    assert kinds == ["video_url", "video_url", "image_url", "text"]
    budget = model.budget(request("Both?", VIDEO, STILL))
    assert budget.context_tokens == 2048 and budget.media_tokens[0] == 27 and not budget.is_exceeded


def test_a_conversation_keeps_its_order_and_media_are_encoded_once(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(), [said("yes")]))
    model = opened(server)
    asked, then = Turn("user", "One?", (VIDEO,)), Turn("user", "Two?", (STILL,))
    turns = (Turn("system", "Be brief."), asked, Turn("assistant", "yes"), then)
    for _ in range(2):
        join(model.stream(Request(turns)))
    first, second = (asked["messages"] for asked in server.asked)
    assert [message["role"] for message in first] == ["system", "user", "assistant", "user"]
    assert first[0]["content"] == "Be brief." and first[2]["content"] == "yes"
    assert first == second


def test_the_file_itself_is_sent_if_wanted(stand_in: Any, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"the file")
    ours = stand_in(OpenAIServer(listed("m", "llvid"), [said("yes")]))
    join(opened(ours, send="file").stream(request("?", video(3, str(path), fps=2.0, start_seconds=1.0))))
    (asked,) = ours.asked
    assert asked["sampling"] == {"fps": 2.0, "start_seconds": 1.0}
    assert asked["messages"][0]["content"][0]["video_url"]["url"] == "data:video/mp4;base64,dGhlIGZpbGU="
    vllm = stand_in(exchange("vllm"))
    model = opened(vllm, send="file")
    join(model.stream(request("?", video(3, str(path)))))
    assert vllm.asked[0]["media_io_kwargs"] == {"video": {"num_frames": 8}}
    with pytest.raises(UsageError, match="chooses the frames of a file itself"):
        join(model.stream(request("?", video(3, str(path), start_seconds=1.0))))
    with pytest.raises(MediaError, match="No such file"):
        join(model.stream(request("?", video(3, str(tmp_path / "gone.mp4")))))


@pytest.mark.parametrize(("engine", "own"), [("vllm", 336), ("llvid", 10)])
def test_frames_are_fitted_before_they_are_sent(engine: str, own: int, stand_in: Any) -> None:
    if engine == "llvid":
        seen = {"width": own, "height": own, "way": "stretch", "edge": None, "mean": [123, 117, 104], "resample": 3}
        server = stand_in(OpenAIServer(listed("m", "llvid", llvid={"frame_input": seen}), [said("yes")]))
    else:
        server = stand_in(exchange(engine))
    model = opened(server)
    padded = np.empty((3, 32, 32, 3), np.uint8)
    padded[:] = (123, 117, 104)
    padded[:, 4:28] = VIDEO.images
    squeezed = [np.asarray(Image.fromarray(each).resize((own, own), Image.Resampling.BICUBIC)) for each in VIDEO.images]
    if engine == "llvid":
        squeezed = list(VIDEO.images)  # the server's processor does it
    expected: dict[Fit, Any] = {
        "auto": VIDEO.images, "crop": VIDEO.images[:, :, 4:28], "pad": padded, "stretch": np.stack(squeezed),
    }  # fmt: skip
    for fit, images in expected.items():
        join(model.stream(request("?", replace(VIDEO, sampling=Sampling(8, fit=fit)))))
        assert np.array_equal(decoded(server.asked[-1]["messages"][0]["content"][0]["video_url"]["url"]), images)
        assert server.asked[-1].get("sampling", {}).get("fit") == ("auto" if engine == "llvid" else None)
        shrunk = [model.shrink(image, fit) for image in VIDEO.images]
        assert np.array_equal(shrunk, images), "a folder run reads them so"


@pytest.mark.parametrize(
    "listed_input",
    [None, [], {"width": 48}, {"width": 48, "height": 48, "way": "x"}, {"width": 10**6, "height": 48},
     {"width": 48, "height": 48, "mean": [1, 2, 300]}, {"width": 48, "height": 0},
     {"width": 48, "height": 48, "edge": -1}, {"width": 48, "height": 48, "mean": [1, 2, "\ud800"]}],
)  # fmt: skip
def test_what_a_server_lists_is_checked(listed_input: Any, stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed("m", "llvid", llvid={"frame_input": listed_input}), [said("yes")]))
    assert opened(server).shrink.input == FrameInput(336, 336, "server")


def test_a_file_is_fitted_by_our_server_only(stand_in: Any, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"the file")
    ours, vllm = stand_in(OpenAIServer(listed("m", "llvid"), [said("yes")])), stand_in(exchange("vllm"))
    join(opened(ours, send="file").stream(request("?", video(3, str(path), fit="pad"))))
    assert ours.asked[0]["sampling"] == {"frames": 8, "fit": "pad"}
    with pytest.raises(UsageError, match="vLLM has no option like --fit pad for a file"):
        join(opened(vllm, send="file").stream(request("?", video(3, str(path), fit="pad"))))
    assert not vllm.asked


def test_white_space_around_an_answer_is_removed_and_lone_surrogates_are_replaced(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(), [said("\n  a\ud800  b \n\nc \n ")]))
    chunks = [chunk.text for chunk in opened(server).stream(request())]
    assert "".join(chunks) == "a\ufffd  b \n\nc" and chunks[0][0] == "a"


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (error(400, "This model's maximum context length is 4096 tokens"), ContextError, "length is 4096"),
        (error(422, "At most 1 video(s)\nmay be provided"), ModelError, "At most 1 video\\(s\\) may be provided"),
        (error(401, "bad key"), ServerError, "refuses the API key: bad key"),
        (error(404, "no such model"), ServerError, "no such model"),
        (error(413, "x"), ModelError, "does not accept requests of this size"),
        (Reply(307, headers={"Location": "http://192.0.2.1/"}), ServerError, "redirects \\(status 307\\)"),
        (Reply(500, b"\xff" * 100_000), ModelError, "\\.\\.\\."),
        (Reply(400, b'{"detail":' + b"[" * 50_000), ModelError, "detail"),
        (Reply(body=b"{}"), ModelError, "did not send an event stream"),
        (Reply(events=(b"data: nonsense\n\n",)), ModelError, "not JSON"),
        (Reply(events=(b"data: [1]\n\n",)), ModelError, "not an event"),
        (Reply(events=(b'data: {"error": {"message": "it broke"}}\n\n',)), ModelError, "it broke"),
        (Reply(events=(b'data: {"error": "out of memory"}\n\n',)), ModelError, "out of memory"),
        (Reply(events=(b"data: " + b"x" * (2**20 + 1),)), ModelError, "limit"),
    ],
)  # fmt: skip
def test_what_a_server_says_is_wrong_becomes_one_line(
    reply: Reply, kind: type[Exception], words: str, stand_in: Any
) -> None:
    server = stand_in(OpenAIServer(listed(), [reply]))
    with pytest.raises(kind, match=words) as caught:
        join(opened(server).stream(request()))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert len(server.asked) == 1  # none of it gets better by asking again


@pytest.mark.parametrize(
    "end",
    [
        {"choices": "no"}, {"choices": [{"delta": {"content": 5}, "finish_reason": "stop"}]}, {"usage": [1]},
        {"choices": [{"delta": None, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": -5}, "llvid": "x"},
        {"choices": [{"finish_reason": "stop"}], "llvid": {"finish_reason": "x", "usage": {"prompt_tokens": "1"}}},
    ],
)  # fmt: skip
def test_events_of_odd_types_do_no_harm(end: dict[str, Any], stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(max_model_len="no"), [said("yes", **end)]))
    answer = join(opened(server).stream(request()))
    assert answer.text == "yes" and answer.finish_reason == "stop" and answer.usage.generated_tokens >= 1


def test_a_busy_server_is_asked_again(stand_in: Any) -> None:
    replies = [error(429, "full", **{"Retry-After": "0.5"}), error(503, "soon"), said("yes")]
    server = stand_in(OpenAIServer(listed(), replies))
    began = time.monotonic()
    assert join(opened(server).stream(request())).text == "yes"
    assert len(server.asked) == 3 and time.monotonic() - began > 0.9


def test_a_connection_that_ends_is_made_again_before_the_answer_and_an_error_in_its_middle(
    stand_in: Any,
) -> None:
    begun = Reply(events=(said("It is")).events[:1], cut=True)
    server = stand_in(OpenAIServer(listed(), [Reply(0), said("yes"), begun, said("so")]))
    model = opened(server)
    assert join(model.stream(request())).text == "yes" and len(server.asked) == 2
    stream = model.stream(request())
    assert next(stream).text == "It"
    with pytest.raises(ModelError, match="in the middle of an answer"):
        list(stream)
    # nobody has seen the pieces of a folder's answers: they begin anew
    server.asked.clear()
    server.replies = [begun, said("so")]
    assert model.answer_all([request()])[0].text == "so" and len(server.asked) == 2
    server.asked.clear()
    server.replies = [Reply(events=said("yes").events[:-2])]
    with pytest.raises(ModelError, match="in the middle of an answer"):
        model.answer_all([request()])


def test_closing_the_stream_closes_the_connection(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(), [Reply(events=said("on " * 1000).events, pause_seconds=0.01)]))
    stream = opened(server).stream(request())
    assert next(stream).text == "on"
    assert isinstance(stream, Generator)
    stream.close()
    assert server.gone.wait(30)


def test_several_are_asked_at_once_and_shared_by_servers(stand_in: Any) -> None:
    servers = [stand_in(OpenAIServer(listed(), [Reply(events=said(name).events, pause_seconds=0.05)])) for name in "ab"]
    model = opened(*servers)
    requests = [request(f"{number}?") for number in range(8)]
    assert {answer.text for answer in model.answer_all(requests)} == {"a", "b"}
    assert [server.most_at_once for server in servers] == [4, 4]
    assert model.at_a_time == 32


def test_if_one_answer_fails_the_others_are_kept(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(), [said("yes"), error(400, "odd"), said("yes")]))
    model = opened(server)
    requests = [request(f"{number}?") for number in range(3)]
    results = answered(model, requests)
    assert len(server.asked) == 3
    assert [result.text for result in results if isinstance(result, Answer)] == ["yes"] * 2
    assert ["odd" in str(result) for result in results if isinstance(result, ModelError)] == [True]


def test_a_dead_servers_work_goes_to_the_others_and_all_dead_is_one_error() -> None:
    living = OpenAIServer(listed(), [said("yes")])
    dying = OpenAIServer(listed(), [said("yes")])
    with living.running():
        with dying.running():
            model = opened(living, dying)
        requests = [request(f"{number}?", prefill="So:") for number in range(6)]  # which comes before what is sent
        assert [answer.text for answer in model.answer_all(requests)] == ["So:yes"] * 6
        assert len(living.asked) == 6 and model.at_a_time == 16
        # one that is down from the start is a note
        later = opened(living, dying)
        assert len(later.notes) == 1 and dying.url in later.notes[0] and "can't be reached" in later.notes[0]
    with pytest.raises(ServerError, match="none of the 2 servers can be used"):
        model.answer_all(requests)


def test_servers_must_have_the_same_model(stand_in: Any) -> None:
    one = stand_in(OpenAIServer(listed("m/one"), [said("1")]))
    two = stand_in(OpenAIServer(listed("m/two"), [said("2")]))
    two.models["data"].append(one.models["data"][0])
    with pytest.raises(ServerError, match=r"different models: m/one at .* and m/two at"):
        opened(one, two)
    assert opened(one, two, model="m/one").name == "m/one"
    with pytest.raises(ServerError, match="does not have the model m/tow") as caught:
        opened(two, model="m/tow")
    assert "m/two" in str(caught.value.hint)


@pytest.mark.parametrize("models", [[], {"data": 5}, {"data": []}, {"data": [{"id": 7}]}, "x" * 10])
def test_a_server_without_models_is_refused(models: Any, stand_in: Any) -> None:
    with pytest.raises(ServerError, match="no model"):
        opened(stand_in(OpenAIServer(models, [said("")])))


@pytest.mark.parametrize(
    "url", ["", "ftp://a", "http://", "http://u:p@host", "http://a/?key=1", "http://[", "a b", "a..b", "n" * 64]
)
def test_an_address_that_is_not_valid(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote([url])
    assert ":p@" not in str(caught.value)


def test_addresses_as_users_write_them_and_the_key(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(), [said("yes")]))
    bare = server.url.removeprefix("http://")
    for url in (bare, f"{server.url}/", f"{server.url}/v1", f"{server.url}/v1/", f"{server.url}/v1/chat/completions"):
        assert open_remote([url], key=" secret\n").settings["server"] == server.url
    assert set(server.keys) == {"Bearer secret"}
    with pytest.raises(UsageError, match="characters that are not allowed in a key") as caught:
        open_remote([server.url], key="sec\nret")
    assert "sec" not in str(caught.value).replace("LLVID_API_KEY", "")


def scored(*tokens: tuple[int, float | None]) -> Reply:
    """Return an answer of vLLM's with the ids of a prompt and how likely each was, the likeliest other beside it."""
    entries: list[Any] = []
    for number, logprob in tokens:
        about = {"logprob": logprob, "rank": 2, "decoded_token": "x"}
        entries.append(None if logprob is None else {str(number): about, "7": {**about, "logprob": -0.01, "rank": 1}})
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
    usage = {"prompt_tokens": len(tokens), "completion_tokens": 1, "total_tokens": len(tokens) + 1}
    body = {"object": "chat.completion", "choices": [choice], "prompt_logprobs": entries, "usage": usage}
    return Reply(body=json.dumps(body).encode())


BASE: list[tuple[int, float | None]] = [(1, None), (2, -3.0), (3, -0.5)]


def test_vllm_scores_choices_as_ends_of_the_prompt(stand_in: Any) -> None:
    server = stand_in(exchange("vllm"))
    server.replies = [scored(*BASE), scored(*BASE, (20, -1.0), (21, -0.25)), scored(*BASE, (30, -2.0))]
    model = opened(server)
    answer = join(model.stream(request(choices=("It moves", "No"), prefill="I think: ")))
    assert answer.text == "It moves" and answer.finish_reason == "stop" and answer.scores is not None
    assert answer.scores.logprobs == {"It moves": -1.25, "No": -2.0} and answer.scores.tokens == {
        "It moves": 2,
        "No": 1,
    }
    assert answer.scores["It moves"] == pytest.approx(1 / (1 + np.exp(-0.75)))
    assert (answer.usage.prompt_tokens, answer.usage.generated_tokens) == (3, 2)
    assert [asked["messages"][-1] for asked in server.asked] == [
        {"role": "assistant", "content": text} for text in ("I think:", "I think: It moves", "I think: No")
    ]
    for asked in server.asked:
        assert (asked["stream"], asked["max_tokens"], asked["prompt_logprobs"]) == (False, 1, 1)
        assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
        assert asked["media_io_kwargs"] == {"video": {"num_frames": 3}} and not asked["stream_options"]


def test_vllm_without_a_prefill_is_asked_for_the_prompt_alone_first(stand_in: Any) -> None:
    server = stand_in(exchange("vllm"))
    server.replies = [scored(*BASE), scored(*BASE, (20, -1.0)), scored(*BASE, (20, -1.0), (21, -1.0))]
    with pytest.raises(ModelError, match="can't tell 'Yes' from a choice that begins with it"):
        join(opened(server).stream(request(choices=("Yes", "Yes, it moves"))))
    first = server.asked[0]
    assert first["messages"][-1]["role"] == "user" and "continue_final_message" not in first
    server.replies = [Reply(body=b'{"choices": []}')]
    with pytest.raises(ModelError, match="does not tell how likely"):
        join(opened(server).stream(request(choices=("Yes", "No"))))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_others_go_on_with_a_prefill_and_the_answer_begins_with_it(engine: str, stand_in: Any) -> None:
    server = stand_in(exchange(engine))
    pieces = [chunk.text for chunk in opened(server).stream(request(prefill="Best option: ("))]
    assert pieces[0] == "Best option: (" and "".join(pieces) in (
        "Best option: ( A man rides a bike.",
        "Best option: (A man rides a bike.",
    )
    (asked,) = server.asked
    assert asked["messages"][-1] == {"role": "assistant", "content": "Best option: ("}
    assert asked["continue_final_message"] and asked.get("add_generation_prompt", False) is False


@pytest.mark.parametrize(
    ("engine", "generation", "words"),
    [
        ("sglang", {"choices": ("a", "b")}, "choices can't be used with SGLang: its API does not tell how likely"),
        ("transformers", {"choices": ("a", "b")}, "choices can't be used with transformers"),
        ("transformers", {"prefill": "It is"}, "a prefill can't be used with transformers"),
        ("transformers", {"schema": "{}"}, "transformers serve has no option like --schema"),
        ("transformers", {"top_k": 5}, "transformers serve has no option like --top-k"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_the_reason(
    engine: str, generation: dict[str, Any], words: str, stand_in: Any
) -> None:
    server = stand_in(exchange(engine))
    model = opened(server)
    with pytest.raises(UsageError, match=words):
        model.check(Generation(**generation))
    with pytest.raises(UsageError, match=words):
        join(model.stream(request(**generation)))
    assert not server.asked


def test_a_server_of_ours_that_scores_nothing_is_an_error(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(owner="llvid"), [said("Yes")]))
    with pytest.raises(ModelError, match="did not score the choices"):
        join(opened(server).stream(request(choices=("Yes", "No"))))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_schema_is_sent_as_openai_writes_it(engine: str, stand_in: Any) -> None:
    server = stand_in(exchange(engine))
    model, schema = opened(server), {"type": "object", "properties": {"b": {}, "a": {}}}
    for generation in ({"schema": json.dumps(schema)}, {"schema": ANY_OBJECT, "min_p": 0.1}, {"regex": "a|b"}):
        with suppress(ModelError):  # the exchange answers with a sentence
            join(model.stream(request(**generation)))
    first, second, third = server.asked
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert first["response_format"] == form and list(first["response_format"]["json_schema"]["schema"]) == list(schema)
    assert (second["response_format"], second["min_p"]) == ({"type": "json_object"}, 0.1)
    assert third["regex" if engine == "sglang" else "structured_outputs"] in ("a|b", {"regex": "a|b"})


def test_a_server_that_ignores_a_schema_is_an_error(stand_in: Any) -> None:
    server = stand_in(OpenAIServer(listed(), [said("It is red."), said('{"a": '), said('{"a": "cut', "length")]))
    model, asked = opened(server), request(schema=ANY_OBJECT)
    for _ in range(2):
        with pytest.raises(ModelError, match="ignored the schema"):
            join(model.stream(asked))
    assert join(model.stream(asked)).finish_reason == "length"
