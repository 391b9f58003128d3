"""Programs that use the library: they may end whatever a model does, and go on when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Forks, forks

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: a fork that may use torch")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("programs")) as running:
        yield running


def test_one_may_end_while_a_model_answers(programs: Forks, layouts: dict[str, Path]) -> None:
    program = (
        "import sys, threading\n"
        "from llava_video_cli import Loading, Request, Turn, open_model\n"
        "model, begun = open_model(sys.argv[1], Loading(device='cpu')), threading.Event()\n"
        "def answer():\n"
        "    while True:\n"
        "        for _ in model.stream(Request((Turn('user', 'Why?'),))):\n"
        "            begun.set()\n"
        "threading.Thread(target=answer, daemon=True).start()\n"
        "begun.wait()\n"
    )
    # a thread that comes back from torch while the interpreter ends aborts it
    ended = programs.run(program, layouts["vicuna"])
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_may_end_with_a_stream_that_it_has_not_read_to_its_end(programs: Forks, layouts: dict[str, Path]) -> None:
    program = (
        "import sys\n"
        "from llava_video_cli import Loading, Request, Turn, open_model\n"
        "model = open_model(sys.argv[1], Loading(device='cpu'))\n"
        "import __main__  # what it holds is let go of when most modules have lost their names\n"
        "__main__.stream = model.stream(Request((Turn('user', 'Why?'),)))\n"
        "next(__main__.stream)\n"
    )
    ended = programs.run(program, layouts["vicuna"])
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_ends_when_the_weights_of_a_model_that_is_gone_are_free(programs: Forks, layouts: dict[str, Path]) -> None:
    program = (
        "import gc, os, sys, time\n"
        "from llava_video_cli import Generation, Loading, Request, Turn, open_model\n"
        "class Weights:\n"
        "    def __del__(self):\n"
        "        time.sleep(0.5)\n"
        "        os.write(1, b'free')\n"
        "model = open_model(sys.argv[1], Loading(device='cpu'))\n"
        "list(model.stream(Request((Turn('user', 'Why?'),), Generation(max_new_tokens=8))))\n"
        "model._engine._decoder.weights = Weights()\n"
        "del model\n"
        "gc.collect()\n"
    )
    ended = programs.run(program, layouts["vicuna"])
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "free", "")


def test_one_that_runs_out_of_memory_while_it_answers_gets_one_line_and_the_next_answer(programs: Forks) -> None:
    program = """
import resource
from llava_video_cli import Generation, Request, Turn, join, open_model
from llava_video_cli.errors import OutOfMemoryError
from scenes import moving_square
model = open_model("random:tiny")
def asked(frames):
    return Request((Turn("user", "What?", (moving_square(frames),)),), Generation(max_new_tokens=8))
few, many = asked(1), asked(60)
first = join(model.stream(few)).text
before = resource.getrlimit(resource.RLIMIT_AS)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, before[1]))
try:
    join(model.stream(many))
    message = "it fits"
except OutOfMemoryError as error:
    message = f"{error} | {error.hint}"
resource.setrlimit(resource.RLIMIT_AS, before)
print(message)
print(first == join(model.stream(few)).text)
"""
    ended = programs.run(program)
    assert ended.returncode == 0, ended.stderr
    line, after = ended.stdout.splitlines()
    message, _, hint = line.partition(" | ")
    assert message == "out of memory on cpu" and "--quantize 4bit; or close other programs that use memory" in hint
    assert after == "True"
