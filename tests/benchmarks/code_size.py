"""How many lines of code answer requests, without blank lines, comments and docstrings, before the engine and now.

    python tests/benchmarks/code_size.py [BEFORE [AFTER]]

It compares two commits of this repository: by default the last one without the engine, and what lies here. What only a
later feature needs is counted by itself. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parents[2]
# What was replaced and what replaced it: a commit has some of these files.
ENGINE = (
    "inference/engine", "inference/row", "inference/decode_step", "inference/kv_cache", "inference/prefix_cache",
    "inference/prompt_batch", "inference/sampler", "inference/cuda_graph", "inference/vision",
    "inference/families/llava_next_video", "inference/video_model", "inference/tokenizer",
)  # fmt: skip
CALLERS = ("model", "runs/batches", "runs/answers", "runs/prefetch", "server/scheduler", "cluster/workers")
# What only a later feature has: definitions, and names whose lines are the feature's wherever they stand.
FEATURES = {
    "choices and prefills": {
        "Engine._score", "Row._chosen", "Decoder.continue_from", "Decoder.takes_masks", "choices", "Choices", "Scores",
        "log_probabilities", "wholes", "whole_ids", "beginnings", "answer_tokens", "read_choices",
    },
    "schemas and regular expressions": {
        "_allowed", "Constraint", "constraint", "Grammars", "_grammars", "is_constrained",
        "answer_opening",
    },
    "logprobs": {
        "_note_logprobs", "Row._hold_logprobs", "Tokenizer.tokens", "Tokenizer.describe", "logprobs",
        "held_logprobs", "top_logprobs", "describe", "TokenLogprob", "token_bytes",
    },
    "top-k, min-p, further penalties": {
        "CountPenalty", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    },
    "other families": {
        "InputSource", "SlotStates", "Prompts", "LlavaPrompts.source", "LlavaPrompts.settings", "ProcessorPrompts",
        "shift", "shifts", "starts", "is_whole", "is_plain", "media_tokens", "opens_thought", "sliding_window",
        "family_of",
    },
    "speech; eval and batch on Ray": {
        "refit", "Count", "_fitted", "_job", "job", "speech_models", "why_failed", "first_error",
    },
    "thoughts, adapters, --verbose, --fit": {
        "VideoModel.reasons", "frame_resize", "Thoughts", "thoughts", "thinking_tokens", "adapter", "FrameResize",
        "input_of",
    },
}  # fmt: skip


def code_lines(source: str) -> set[int]:
    """Return the numbers of a module's lines that are neither blank, nor comment, nor docstring."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines.difference_update(_lines(node.body[0]))
    return lines


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, range]]:
    """Yield the functions, classes and methods of a module, and the lines of each."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name, _lines(node)
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f"{node.name}.")


def names_used(source: str) -> Iterator[tuple[str, range]]:
    """Yield each name of a module, and its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string, range(token.start[0], token.start[0] + 1)


def _lines(node: ast.stmt) -> range:
    first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
    return range(first, (node.end_lineno or first) + 1)


def counted(commit: str | None, names: tuple[str, ...]) -> dict[str, int]:
    """Return the lines of code of modules, and how many of these each feature takes; None is the working tree."""
    counts = dict.fromkeys(("all", *FEATURES, "without these"), 0)
    for path in (f"llava_video_cli/{name}.py" for name in names):
        command = ["git", "show", f"{commit}:{path}"] if commit else ["cat", path]
        shown = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        if shown.returncode:
            continue
        lines = set(code_lines(shown.stdout))
        counts["all"] += len(lines)
        named = [*definitions(ast.parse(shown.stdout).body), *names_used(shown.stdout)]
        for feature, only in FEATURES.items():
            own = {line for name, where in named if name in only for line in where} & lines
            counts[feature] += len(own)
            lines -= own
        counts["without these"] += len(lines)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", default="a9315f1")
    parser.add_argument("after", nargs="?", help="the default is what lies here")
    options = parser.parse_args()
    result = {}
    for label, names in (("the engine", ENGINE), ("its callers", CALLERS), ("both", ENGINE + CALLERS)):
        before, after = counted(options.before, names), counted(options.after, names)
        print(f"{label:<34} {'before':>6} {'after':>6}")
        for name in before:
            print(f"  {name:<32} {before[name]:>6} {after[name]:>6}")
        result[label] = {"before": before, "after": after}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
