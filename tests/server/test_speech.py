"""`sampling.speech`: what is said goes into the prompts of a server that was started for it, and of no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import QUESTION, data_url, message, serving
from sounds import make_film
from whisper import LoudestSeconds

from llava_video_cli import Model, load_preset, open_model
from llava_video_cli.speech import SpeechOptions
from llava_video_cli.speech.transcripts import Transcripts, share


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


def test_speech_is_for_servers_that_were_started_for_it(tmp_path: Path, clip: Path, model: Model) -> None:
    fake, demo = LoudestSeconds(), load_preset("demo")
    share("loudest", Transcripts(SpeechOptions(), fake, cache=tmp_path / "cache"))
    url = data_url(make_film(tmp_path / "film.mp4", (1.0, 2.5), 3.0))
    speech = replace(demo, sampling=replace(demo.sampling, frames=4, speech=True, speech_model="loudest"))
    with serving(model, speech) as served:

        def asked(url: str, **sampling: Any) -> Any:
            return served.post({"messages": [message(QUESTION, url)], "sampling": sampling})

        status, with_speech = asked(url)
        assert status == 200 and fake.calls == 1
        status, without = asked(url, speech=False)
        assert status == 200 and fake.calls == 1
        tokens = [answer["usage"]["prompt_tokens"] for answer in (with_speech, without)]
        assert tokens[0] > tokens[1] + 20
        status, silent = asked(data_url(clip))
        assert status == 200 and "it has no sound" in silent["llvid"]["notes"]
        status, other = asked(url, speech_model="large-v3")
        assert status == 400 and "the speech model of this server is loudest" in other["error"]["message"]
        assert (other["error"]["param"], other["error"]["hint"]) == ("sampling", "leave out speech_model")
    with serving(model, demo) as served:
        status, refused = served.post({"messages": [message(QUESTION, url)], "sampling": {"speech": True}})
        assert status == 400 and "does not transcribe speech" in refused["error"]["message"]
