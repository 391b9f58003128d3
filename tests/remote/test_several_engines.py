"""A run that has servers of two engines, and servers whose numbers are none."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from openai_server import OpenAIServer, Reply, listed, said

from llava_video_cli import Frames, Generation, ModelError, Request, Sampling, Turn, VideoInfo, join
from llava_video_cli.remote import open_remote
from llava_video_cli.remote.engines import Engine, RequestWriter, ServedModel, served_models
from llava_video_cli.video.fit import FrameInput


def request(**generation: Any) -> Request:
    video = Frames(
        np.zeros((2, 24, 32, 3), np.uint8), (0.0, 1.0), VideoInfo("v.mp4", 2, 32, 24, 1.0, "h264", 0), Sampling()
    )
    return Request((Turn("user", "What happens?", (video,)),), Generation(**generation))


def test_each_engine_gets_a_video_in_its_own_form() -> None:
    asked, writer = request(), RequestWriter("frames", FrameInput(336, 336, "server"))
    engines: tuple[Engine, ...] = ("vLLM", "SGLang", "vLLM")
    kinds = []
    for engine in engines:
        with writer.body(asked, ServedModel(engine, "demo"), is_local=True) as body:
            kinds.append([part["type"] for part in body["messages"][0]["content"][:-1]])
    assert kinds == [["video_url"], ["image_url"] * 2, ["video_url"]]


def test_choices_are_scored_in_the_way_of_the_server_that_is_asked() -> None:
    own = {"logprobs": {"Yes": -0.5, "No": -1.0}, "choice_tokens": {"Yes": 1, "No": 1}}
    with OpenAIServer(listed(), []).running() as vllm:
        with OpenAIServer(listed(owner="llvid"), [said("Yes", llvid=own)]).running() as llvid:
            model = open_remote([vllm.url, llvid.url])
            vllm.replies = [Reply(status=0)]  # it is gone
            answer = join(model.stream(request(choices=("Yes", "No"))))
        (asked,) = llvid.asked
    assert answer.text == "Yes" and asked["choices"] == ["Yes", "No"] and asked["stream"]


@pytest.mark.parametrize("number", [math.nan, -math.inf, 1e308, 10**400, "1", None], ids=lambda value: str(value)[:9])
def test_scores_of_a_server_that_are_no_numbers_are_an_error(number: Any) -> None:
    own = {"logprobs": {"Yes": number, "No": -1.0}, "choice_tokens": {"Yes": 1, "No": 1}}
    counted = {"logprobs": {"Yes": -0.5, "No": -1.0}, "choice_tokens": {"Yes": number, "No": 1}}
    prompt = Reply(body=json.dumps({"prompt_logprobs": [None, {"7": {"logprob": number}}]}).encode())
    for owner, reply, words in (
        ("llvid", said("Yes", llvid=own), "did not score the choices"),
        ("llvid", said("Yes", llvid=counted), "did not score the choices"),
        ("vllm", prompt, "does not tell how likely a prompt is"),
    ):
        with OpenAIServer(listed(owner=owner), [reply]).running() as server, pytest.raises(ModelError, match=words):
            join(open_remote([server.url]).stream(request(choices=("Yes", "No"))))


def test_settings_of_a_server_are_those_that_a_record_can_hold() -> None:
    settings = {"dtype": "float16", "rope_factor": 2.0, "revision": None, "a": math.nan, "b": [[]], "c": {}, "d": 1e999}
    (served,) = served_models([{"id": "m", "owned_by": "llvid", "llvid": {"settings": settings}}], {})
    assert served.settings == {"dtype": "float16", "rope_factor": 2.0, "revision": None}
