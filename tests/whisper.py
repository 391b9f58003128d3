"""A tiny Whisper with random weights, converted as faster-whisper wants it, and a transcriber that marks beeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sounds import BEEP_SECONDS, heard_beeps

from llava_video_cli.speech import SpeechOptions, SpokenSegment
from llava_video_cli.speech.whisper import LANGUAGES
from llava_video_cli.video.sound import SoundChunk


def make_whisper(folder: Path) -> Path:
    """Write the folder of a multilingual model; its text is meaningless, and the same for the same sound and seed."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    source, languages = folder / "transformers", [f"<|{language}|>" for language in LANGUAGES]
    vocabulary = ["", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{number}" for number in range(1000))]
    tokenizer = Tokenizer(models.BPE(vocab={each: number for number, each in enumerate(vocabulary)}, merges=[]))
    # by its empty token CTranslate2 knows a multilingual model
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    special = ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in names)]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(f"<|{number * 0.02:.2f}|>") for number in range(1501)])
    number_of: Any = tokenizer.token_to_id
    end = number_of("<|endoftext|>")
    torch.manual_seed(0)
    layers = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    widths = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=16, **layers, **heads, **widths, suppress_tokens=[],
        bos_token_id=end, eos_token_id=end, pad_token_id=end, begin_suppress_tokens=[],
        decoder_start_token_id=number_of("<|startoftranscript|>"),
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight *= 120  # sure of what it says
        model.model.decoder.embed_positions.weight *= 400  # and says something else each time
    model.save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>").save_pretrained(source)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(source)
    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(source), copy_files=copied).convert(str(folder / "whisper"))
    written = folder / "whisper" / "config.json"
    values = json.loads(written.read_text()) | {"lang_ids": [number_of(language) for language in languages]}
    written.write_text(json.dumps(values))
    return folder / "whisper"


class LoudestSeconds:
    """A transcriber that says `beep` where the sound is loud."""

    name = "loudest seconds"
    notes = ()
    device = "cpu"

    def __init__(self, needed_bytes: int = 0) -> None:
        self.calls, self.needed_bytes = 0, needed_bytes
        self.threads = list[str]()  # that asked for each transcript

    def transcribe(self, sound: Iterable[SoundChunk], options: SpeechOptions) -> Iterator[SpokenSegment]:
        self.calls += 1
        self.threads.append(threading.current_thread().name)
        for number, time in enumerate(heard_beeps(sound), start=1):
            yield SpokenSegment(time, time + BEEP_SECONDS, f"beep {number}", options.language or "en")


class Silent(LoudestSeconds):
    """A transcriber that must not be asked."""

    def transcribe(self, sound: Iterable[SoundChunk], options: SpeechOptions) -> Iterator[SpokenSegment]:  # noqa: ARG002
        raise AssertionError("nothing is to be transcribed")


def loud(seconds: float) -> SoundChunk:
    """Return noise at full scale."""
    return SoundChunk(np.random.default_rng(1).uniform(-1, 1, round(seconds * 16_000)).astype(np.float32), 0.0)
