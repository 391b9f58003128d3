"""A file that is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_video_cli.system.files import whole_file


@pytest.mark.parametrize("target", ["there/real.txt", "there/new.txt"])
def test_a_symbolic_link_stays_a_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    with whole_file(link) as beside:
        beside.write_text("new")
    assert link.is_symlink() and (tmp_path / target).read_text() == "new"
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "real.txt", "link.txt", Path(target).name}
