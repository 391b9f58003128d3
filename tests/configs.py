"""Configs as the published checkpoints have them."""

from __future__ import annotations

from typing import Any

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip

BASE: dict[str, Any] = {
    "model_type": "llava_next_video", "vision_config": VISION, "spatial_pool_stride": 2, "spatial_pool_mode": "average",
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "video_seq_length": 288,
    "tie_word_embeddings": False, "video_token_index": 32000, "image_token_index": 32001,
}  # fmt: skip

VICUNA = BASE | {
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rope_scaling": {"factor": 2.5, "type": "linear"},
        "vocab_size": 32064,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
    },
}

MISTRAL = BASE | {
    "text_config": {
        "model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 1e6, "sliding_window": None,
        "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 32064,
    },
}  # fmt: skip

YI = BASE | {
    "text_config": {
        "model_type": "llama", "max_position_embeddings": 4096, "rope_theta": 5e6, "hidden_size": 7168,
        "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8,
        "vocab_size": 64064, "eos_token_id": 7, "use_cache": False,
    },
    "video_token_index": 64003,
    "image_token_index": 64004,
}  # fmt: skip

PUBLISHED = {"7B": VICUNA, "7B-32K": MISTRAL, "34B": YI}
