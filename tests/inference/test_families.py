"""Other families through the generic path: the same greedy tokens as the way that transformers documents, and times."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import time
import weakref
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import TINY, make_family
from scenes import OTHER, STILL, VIDEO, moving_square
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from llava_video_cli import Answer, Frames, Generation, Loading, Model, Picture, Request, Turn, join, open_model
from llava_video_cli.checkpoint.families import FAMILIES, Family, family_of
from llava_video_cli.inference import device_memory as memory
from llava_video_cli.inference.families.generic import _Recent
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.video_model import VideoModel

NEW_TOKENS = 10
GREEDY = Generation(max_new_tokens=NEW_TOKENS)
SEVEN, ONE = moving_square(7), moving_square(1)
CONVERSATIONS: dict[str, tuple[Turn, ...]] = {
    "video": (Turn("user", "What happens?", (VIDEO,)),),
    "picture": (Turn("user", "What is it?", (STILL,)),),
    "video after a picture": (Turn("user", "Is it the same?", (STILL, VIDEO)),),
    "two turns": (
        Turn("user", "What happens?", (VIDEO,)),
        Turn("assistant", "A square moves."),
        Turn("user", "Which way does it move?"),
    ),
    "picture in a later turn": (
        Turn("user", "What happens?", (VIDEO,)),
        Turn("assistant", "A square moves."),
        Turn("user", "And here?", (STILL,)),
    ),
    "one frame": (Turn("user", "What is there?", (ONE,)),),
    "seven frames": (Turn("user", "How does it move?", (SEVEN,)),),
    "two videos": (Turn("user", "Which is longer?", (OTHER, VIDEO)),),
    "text": (Turn("user", "Who are you?"),),
}
# The documented call fails: pictures and videos have the same places in the prompt, or the same name for their pixels.
BOTH = ("video after a picture", "picture in a later turn")
UNDOCUMENTED = {(name, case) for name in ("smolvlm", "glm4v") for case in BOTH} | {("glm4v", "one frame")}


KINDS = ["plain", "sliding", "linear"]


def family(name: str) -> Family:
    return family_of({"model_type": name})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


# All cases of all families take a minute: the default suite has those that differ most.
QUICK_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "smolvlm", "llava_onevision", "internvl", "gemma4")
QUICK_CASES = ("video", "two turns", "picture in a later turn", "one frame")


def marked(names: Iterable[str], quick: Container[str]) -> list[Any]:
    return [pytest.param(name, id=name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=marked(TINY, QUICK_FAMILIES))
def trio(request: pytest.FixtureRequest, folders: Path) -> Iterator[tuple[str, Model, Any, Any]]:
    """A family's name, our model of its tiny checkpoint, and transformers' model and processor of the same."""
    folder = make_family(folders / request.param, request.param)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    yield request.param, open_model(str(folder)), theirs, AutoProcessor.from_pretrained(folder)
    documented.cache_clear()


def inputs(processor: Any, conversations: list[tuple[Turn, ...]], least_frames: int = 1) -> Any:
    """What the processor makes of conversations in the documented way, with times in milliseconds."""
    texts, videos, metadata, images = [], [], [], []
    for turns in conversations:
        messages = [
            {
                "role": turn.role,
                "content": [{"type": "image" if isinstance(medium, Picture) else "video"} for medium in turn.media]
                + [{"type": "text", "text": turn.text}],
            }
            for turn in turns
        ]
        texts.append(
            processor.tokenizer.apply_chat_template(
                messages, chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
            )
        )
        for medium in (medium for turn in turns for medium in turn.media):
            if isinstance(medium, Picture):
                images.append(medium.pixels)
                continue
            times = [round(1000 * time) for time in medium.times_seconds]
            repeats = max(1, least_frames // len(times))
            videos.append(np.repeat(medium.images, repeats, axis=0))
            metadata.append(
                {
                    "fps": 1000,
                    "frames_indices": [time for time in times for _ in range(repeats)],
                    "total_num_frames": round(1000 * medium.info.duration_seconds),
                    "duration": medium.info.duration_seconds,
                }
            )
    media: dict[str, Any] = {"images": images} if images else {}
    if videos:
        media |= {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
    return processor(text=texts, return_tensors="pt", padding=True, padding_side="left", **media)


@cache
def documented(theirs: Any, processor: Any, turns: tuple[Turn, ...], least_frames: int) -> tuple[int, list[int]]:
    """The documented way: processor, `generate`. Returns the prompt's length and new ids."""
    processed = inputs(processor, [turns], least_frames)
    length = processed["input_ids"].shape[1]
    output = theirs.generate(**processed, max_new_tokens=NEW_TOKENS, do_sample=False)
    return length, output[0, length:].tolist()


def check(answer: Answer, trio: tuple[str, Model, Any, Any], turns: tuple[Turn, ...]) -> None:
    name, _, theirs, processor = trio
    length, ids = documented(theirs, processor, turns, family(name).least_frames)
    assert (answer.usage.prompt_tokens, answer.usage.generated_tokens) == (length, len(ids))
    assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("case", marked(CONVERSATIONS, QUICK_CASES))
def test_an_answer_equals_the_documented_way(trio: tuple[str, Model, Any, Any], case: str) -> None:
    if (trio[0], case) in UNDOCUMENTED:
        pytest.skip("the documented call fails")
    check(join(trio[1].stream(Request(CONVERSATIONS[case], GREEDY))), trio, CONVERSATIONS[case])


def test_answers_in_company_equal_the_documented_way(
    trio: tuple[str, Model, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unequal questions and unequal numbers of frames; media are computed one by one."""
    errors: list[BaseException] = []

    def is_out_of_memory(error: BaseException) -> bool:  # asked of each error in the engine
        errors.append(error)
        return False

    monkeypatch.setattr(memory, "is_out_of_memory", is_out_of_memory)
    conversations = [turns for case, turns in CONVERSATIONS.items() if (trio[0], case) not in UNDOCUMENTED]
    answers = trio[1].answer_all([Request(turns, GREEDY) for turns in conversations])
    for answer, turns in zip(answers, conversations, strict=True):
        check(answer, trio, turns)
    assert not errors


def test_answers_depend_on_the_frames(trio: tuple[str, Model, Any, Any]) -> None:
    """Parity would mean little if a checkpoint said the same to everything."""
    answers = (
        join(trio[1].stream(Request((Turn("user", "What is it?", (moving_square(2, seed),)),), GREEDY))).text
        for seed in range(6)
    )
    first = next(answers)
    assert any(answer != first for answer in answers)


def test_a_second_question_reuses_the_prompt_where_that_is_exact(trio: tuple[str, Model, Any, Any]) -> None:
    """Another conversation in between, whose positions are shifted otherwise, changes nothing."""
    name, model, *_ = trio
    video = moving_square(4, seed=9)
    for question, medium in (("What happens?", video), ("Who?", SEVEN), ("Where does it go?", video), ("Why?", video)):
        turns = (Turn("user", question, (medium,)),)
        answer = join(model.stream(Request(turns, GREEDY)))
        check(answer, trio, turns)
    assert (answer.usage.cached_tokens > 0) == family(name).reuse


def test_the_same_frames_read_again_are_recognized_and_others_are_not(folders: Path) -> None:
    model = open_model(str(make_family(folders / "again", "internvl")))
    video = moving_square(5, seed=3)
    other = video.images.copy()
    other[-1, 0, 0] ^= 255
    cached = []
    for medium in (video, replace(video, images=video.images.copy()), replace(video, images=other)):
        answer = join(model.stream(Request((Turn("user", "What happens?", (medium,)),), Generation(2))))
        cached.append(answer.usage.cached_tokens > 0)
    later = replace(video, times_seconds=tuple(time + 1 for time in video.times_seconds))
    assert not join(model.stream(Request((Turn("user", "Why?", (later,)),), Generation(2)))).usage.cached_tokens
    assert cached == [False, True, False]


@pytest.mark.parametrize("name", ["qwen3_5", "gemma4", "qwen3_vl"])
def test_a_video_is_encoded_once_for_several_questions(name: str, folders: Path) -> None:
    folder, calls = make_family(folders / f"{name} again", name), []
    loaded = load(folder, Loading(device="cpu"))
    takes_features = "mm_encoder_outputs" in inspect.signature(loaded.model.forward).parameters
    if not family(name).reuse and not takes_features:
        pytest.skip("this version's model takes no features that were encoded before")
    model = VideoModel(name, loaded)
    parts = {type(part).__name__: part for part in loaded.model.modules()}
    tower = next(part for kind, part in parts.items() if kind.endswith("VisionModel"))
    tower.register_forward_hook(lambda *_: calls.append(1))
    texts = [join(model.stream(Request((Turn("user", text, (VIDEO,)),), GREEDY))).text for text in ("Who?", "Why?")]
    assert len(calls) == 1
    join(model.stream(Request((Turn("user", "Who?", (OTHER,)),), GREEDY)))
    assert len(calls) == 2
    fresh = VideoModel(name, load(folder, Loading(device="cpu")))
    assert join(fresh.stream(Request((Turn("user", "Why?", (VIDEO,)),), GREEDY))).text == texts[1]


def test_videos_that_had_to_go_for_longer_answers_are_computed_one_by_one(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(make_family(folders / "internvl gone", "internvl")), Loading(conversations=8))
    assert isinstance(model, VideoModel)
    room = load(folders / "internvl gone", Loading()).answer_bytes(1024)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3.5 * room - model.cached_bytes)
    videos = [moving_square(2, seed) for seed in range(6)]
    for video in videos:
        join(model.stream(Request((Turn("user", "Who?", (video,)),), Generation(2))))
    failures: list[Exception] = []
    monkeypatch.setattr(memory, "is_out_of_memory", failures.append)  # asked of each error
    # 800 tokens have to have room, four are enough to compare
    longer = [Request((Turn("user", "Why?", (video,)),), Generation(800, regex="[a-z]{4}")) for video in videos[3:]]
    answers = model.answer_all(longer)
    assert not failures
    assert [answer.text for answer in answers] == [join(model.stream(request)).text for request in longer]


def test_choices_are_scored_behind_media(trio: tuple[str, Model, Any, Any]) -> None:
    """As the whole text says it, choice by choice, also where positions are shifted."""
    name, model, theirs, processor = trio
    turns, texts = (Turn("user", "Which way?", (VIDEO,)),), ("left", "to the right", "up")
    generation = Generation(choices=texts, length_normalized=True)
    answer = join(model.stream(Request(turns, generation)))
    assert answer.scores is not None
    processed = inputs(processor, [turns], family(name).least_frames)
    shape = processed["input_ids"].shape
    wanted = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for text in texts:
        total, ids = 0.0, processor.tokenizer(f" {text}")["input_ids"]
        for number, token in enumerate(ids):
            new = {"input_ids": torch.tensor([ids[:number]]), "attention_mask": torch.ones(1, number)}
            more = {
                key: torch.cat([value, new.get(key, torch.zeros(1, number)).to(value.dtype)], 1)
                for key, value in processed.items()
                if getattr(value, "shape", None) == shape
            }
            output = theirs.generate(**{**processed, **more}, **wanted)
            total += float(output.logits[0][0].log_softmax(-1)[token])
        assert answer.scores.logprobs[text] == pytest.approx(total, abs=2e-3)
    assert answer.usage.prompt_tokens == shape[1]


def test_the_table_says_what_the_model_is(trio: tuple[str, Model, Any, Any]) -> None:
    name, _, theirs, _ = trio
    kinds = {type(layer).__name__ for layer in DynamicCache(config=theirs.config).layers}
    is_3d = any(hasattr(module, "get_rope_index") for module in theirs.modules())
    cache = {"DynamicLayer": "plain", "DynamicSlidingWindowLayer": "sliding"}
    if family(name).was_tried:
        assert family(name).positions == ("3D" if is_3d else "1D")
        assert family(name).cache == max((cache.get(kind, "linear") for kind in kinds), key=KINDS.index)
    assert family(name).was_tried == (name in FAMILIES)
    assert bool(trio[1].notes) != family(name).was_tried


@pytest.mark.parametrize("case", ["video after a picture", "picture in a later turn"])
def test_smolvlm_sees_both_pictures_and_videos(folders: Path, case: str) -> None:
    """As `generate` answers if it is given the pixels of all media in the order of the prompt."""
    folder, turns = make_family(folders / "smolvlm", "smolvlm"), CONVERSATIONS[case]
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    processed = inputs(processor, [turns])
    parts = [inputs(processor, [(Turn("user", "", (medium,)),)]) for turn in turns for medium in turn.media]
    for name in ("pixel_values", "pixel_attention_mask"):
        processed[name] = torch.cat([part[name] for part in parts], dim=1)
    wanted = theirs.generate(**processed, max_new_tokens=NEW_TOKENS, do_sample=False)
    answer = join(open_model(str(folder)).stream(Request(turns, GREEDY)))
    ids = wanted[0, processed["input_ids"].shape[1] :]
    assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_model_that_nobody_holds_is_freed_and_its_threads_end(folders: Path) -> None:
    folder = make_family(folders / "freed", "llava_onevision")
    before = set(threading.enumerate())
    model = open_model(str(folder), Loading(device="cpu"))
    join(model.stream(Request(CONVERSATIONS["video"], Generation(max_new_tokens=2))))
    gone = weakref.ref(model)
    del model
    until = time.monotonic() + 20
    while {thread for thread in threading.enumerate() if thread.name.startswith("llvid")} - before:
        assert time.monotonic() < until, "its threads are still there"
        gc.collect()
        time.sleep(0.05)
    assert gone() is None


def test_what_was_made_of_media_is_remembered_in_several_threads_at_a_time() -> None:
    recent, interval = _Recent(), sys.getswitchinterval()

    def ask(video: Frames) -> None:
        for _ in range(5_000):
            assert recent.of((weakref.ref(video),), lambda: len(video.images)) == len(video.images)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, [moving_square(number) for number in range(2, 6)]))
    finally:
        sys.setswitchinterval(interval)
