"""`--fit` as a user types it: what is shaded, what is told, what the model answers; with every way of asking."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Served, message, serving
from terminal import asked, scene

from llava_video_cli import Model, contact_sheet, open_model
from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip
from llava_video_cli.video import read_frames
from llava_video_cli.video.sampling import Sampling

CUT = "the model sees the middle 56 % of each frame; --fit pad shows it all\n"
QUESTIONS = ("What shape is it?", "What color is it?", "Which way does it move?")
TRUTH = ("circle", "yellow", "down")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A yellow circle at x = 60 of 640 that moves down: the middle of the picture is empty."""
    path = tmp_path_factory.mktemp("wide") / "wide.mp4"
    yellow: dict[str, Any] = {"color_start": "yellow", "color_end": "yellow", "direction": "down"}
    yellow |= {"shade_start": (235, 210, 45), "shade_end": (235, 210, 45), "x": (60 - 140) / 360, "y": 0.2}
    write_clip(path, scene(width=640, height=360, radius=0.12, travel=0.55, **yellow))
    return path


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    pytest.importorskip("uvicorn")
    with serving(model) as running:
        yield running


def yellow_of(picture: Image.Image) -> int:
    """Return how bright the circle is on a sheet, 0 to 255."""
    red, green, blue = np.asarray(picture).reshape(-1, 3).astype(int).T
    return int(red[(red > 1.5 * blue) & (green > 1.4 * blue)].max())


def record_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_sheet_shades_what_is_cut_off(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shaded, padded, stretched = (tmp_path / f"{name}.png" for name in ("shaded", "padded", "stretched"))
    assert run(["frames", str(wide), "-m", "demo", "-o", str(shaded)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{shaded}\n" and err == f"the model gets frames of 640 x 360 as 48 x 48\n{CUT}"
    assert 60 < yellow_of(Image.open(shaded)) < 130
    for path, fit in ((padded, "pad"), (stretched, "stretch")):
        assert run(["frames", str(wide), "-m", "demo", "--fit", fit, "-o", str(path)]) == 0
        assert capsys.readouterr().err == "the model gets frames of 640 x 360 as 48 x 48\n"
        assert yellow_of(Image.open(path)) > 215
    borders = np.asarray(Image.open(padded)).reshape(-1, 3)
    assert (borders == (123, 117, 104)).all(axis=1).mean() > 0.3


def test_frames_are_those_of_ask(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--fit", "pad"], ["--fit", "stretch", "-n", "3"], ["--fit", "crop"]):
        folder = f"{tmp_path}/{'-'.join(flags)}/"
        assert run(["frames", str(wide), "-m", "demo", "--json", "-o", folder, *flags]) == 0
        shown = record_of(capsys)
        assert run(["ask", str(wide), QUESTIONS[0], "-m", "demo", "--json", *flags]) == 0
        answered = record_of(capsys)
        assert shown["frames"] == answered["frames"]
        fit = flags[1] if flags else "crop"
        assert shown["frames"]["fit"] == fit
        assert shown["frames"]["visible_share"] == (0.562 if fit == "crop" else 1.0)
        assert answered["settings"]["sampling"].get("fit") == (flags[1] if flags else None)
        size = {"pad": (640, 640), "stretch": (48, 48), "crop": (640, 360)}[fit]
        assert Image.open(shown["files"][0]).size == size


def test_without_the_checkpoint(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = ["-n", "2", "-o", f"{tmp_path}/a.png", "--overwrite"]
    assert run(["frames", str(wide), *sheet]) == 0
    assert capsys.readouterr().err == f"the model gets frames of 640 x 360 as 336 x 336\n{CUT}"
    assert run(["frames", str(wide), "-m", "some/body", "--json", *sheet]) == 0
    out, err = capsys.readouterr()
    assert err == "some/body is not on this machine, so llvid can't tell what it sees of a frame: nothing is shaded\n"
    frames = json.loads(out)["frames"]
    assert frames["fit"] == "auto" and frames["visible_share"] is None
    assert yellow_of(Image.open(tmp_path / "a.png")) > 215
    assert run(["frames", str(wide), "-m", "./nowhere", *sheet]) == 1
    assert "the model folder ./nowhere doesn't exist" in capsys.readouterr().err
    assert run(["frames", str(wide), "--fit", "squeeze", *sheet]) == 2


def test_the_answers_hang_on_it_and_the_note_comes_once(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, str(wide), *QUESTIONS)
    assert code == 0 and err == CUT and not any(word in out for word in TRUTH)
    code, out, err = asked(capsys, str(wide), *QUESTIONS, "--fit", "stretch")
    assert (code, err) == (0, "")
    assert all(word in line for word, line in zip(TRUTH, out.splitlines(), strict=True))
    _, _, err = asked(capsys, str(wide), QUESTIONS[0], "--with", str(wide))
    assert err.count("the model sees the middle") == 1
    _, _, err = asked(capsys, str(wide), QUESTIONS[0], "--windows", "1")
    assert err.count("the model sees the middle") == 1


def test_a_folder_and_its_records(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(wide.read_bytes())
    command = ["caption", str(tmp_path), "-o", f"{tmp_path}/c.jsonl", "-m", "demo"]
    assert run(command) == 0
    assert capsys.readouterr().err == f"{CUT}3 captioned\n"
    assert run([*command, "--fit", "auto"]) == 0
    assert "3 done before" in capsys.readouterr().err
    assert run([*command, "--fit", "stretch"]) == 0
    assert capsys.readouterr().err == "3 captioned\n"
    records = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [(each["frames"]["fit"], each["frames"]["visible_share"]) for each in records] == [
        *[("crop", 0.562)] * 3,
        *[("stretch", 1.0)] * 3,
    ]
    assert all("yellow circle moves down" in each["caption"] for each in records[3:])


def test_lines_of_a_batch_and_presets(wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("about: squeezed\nmodel: demo\nsampling:\n  frames: 4\n  fit: stretch\n")
    requests = tmp_path / "requests.jsonl"
    lines = [{"video": str(wide), "question": QUESTIONS[1]} | more for more in ({}, {"fit": "crop"})]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["batch", str(requests), "-p", str(preset), "-o", f"{tmp_path}/out.jsonl"]) == 0
    records = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    first, second = sorted(records, key=lambda record: int(record["id"]))
    assert first["frames"]["fit"] == "stretch" and "yellow" in first["answer"]
    assert second["frames"]["fit"] == "crop" and "yellow" not in second["answer"]
    assert "the model sees the middle" in capsys.readouterr().err
    requests.write_text(json.dumps(lines[0] | {"fit": "squeeze"}) + "\n")
    assert run(["batch", str(requests), "-m", "demo", "-o", f"{tmp_path}/other.jsonl"]) == 2
    assert "'fit' must be one of auto, crop, pad, stretch" in capsys.readouterr().err


def test_a_chat_and_its_sheet(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags, shares in (([], range(60, 130)), (["--fit", "stretch"], range(215, 256))):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTIONS[1]}\n/frames\n{QUESTIONS[2]}\n"))
        assert run(["chat", str(wide), "-m", "demo", *flags]) == 0
        out, err = capsys.readouterr()
        assert err.count("the model sees the middle 56 %") == (not flags)
        assert ("yellow" in out and "down" in out) == bool(flags)
        assert yellow_of(Image.open(tmp_path / "wide-frames.png")) in shares
        (tmp_path / "wide-frames.png").unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/set fit stretch\n/set fit\n{QUESTIONS[1]}\n"))
    assert run(["chat", str(wide), "-m", "demo"]) == 0
    out, err = capsys.readouterr()
    assert "yellow" in out and err.count("fit stretch\n") == 2


@pytest.mark.parametrize("fit", ["auto", "pad", "stretch", "crop"])
def test_behind_a_server_the_answers_are_the_same(
    wide: Path, served: Served, fit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for place in (["-m", "demo"], ["--server", served.url], ["--server", served.url, "--send", "file"]):
        assert run(["ask", str(wide), *QUESTIONS, "--fit", fit, "--json", "-q", *place]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        answers.append([record["answer"] for record in records])
        expected = {"auto": "crop"}.get(fit, fit)
        share = 0.562 if expected == "crop" else 1.0
        assert (records[0]["frames"]["fit"], records[0]["frames"]["visible_share"]) == (expected, share)
    assert answers[0] == answers[1] == answers[2]


def test_a_request_to_the_server(wide: Path, served: Served) -> None:
    url = f"data:video/mp4;base64,{base64.b64encode(wide.read_bytes()).decode()}"
    body = {"messages": [message(QUESTIONS[1], url)]}
    for fit in ("crop", "stretch"):
        status, answer = served.post(body | {"sampling": {"fit": fit}})
        assert status == 200 and answer["llvid"]["frames"][0]["fit"] == fit
        assert ("yellow" in answer["choices"][0]["message"]["content"]) == (fit == "stretch")
    status, answer = served.post(body | {"sampling": {"fit": "squeeze"}})
    assert status == 400 and "must be one of auto, crop, pad, stretch" in json.dumps(answer)
    request = json.dumps(body | {"sampling": {"frames": 2}}).encode()
    status, _, content = served.send("POST", "/sheet", request, {"Content-Type": "application/json"})
    sheet = json.loads(content)
    assert status == 200 and sheet["frames"]["visible_share"] == 0.562
    picture = Image.open(io.BytesIO(base64.b64decode(sheet["sheet"].partition(",")[2])))
    assert 60 < yellow_of(picture) < 130


def test_from_python(wide: Path, model: Model) -> None:
    small = read_frames(wide, Sampling(2, fit="pad"), resize=model.shrink)
    assert small.images.shape == (2, 48, 48, 3) and small.visible == (1, 1)
    assert tuple(small.images[0, 0, 0]) == (123, 117, 104)
    assert (123, 117, 104) in set(map(tuple, np.asarray(contact_sheet(small)).reshape(-1, 3).tolist()))
