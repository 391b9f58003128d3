"""The log of what workers have begun: which videos are counted, processed alone, or may not begin."""

from __future__ import annotations

from llava_video_cli.cluster.failures import AttemptLog, Unit

ONE, TWO, THREE = (("a", 0), ("b", 0), ("c", 0))


def test_a_finished_unit_is_not_counted() -> None:
    log = AttemptLog()
    for _ in range(3):  # as when a node with what was done is lost
        assert log.begin("read", "w", [ONE, TWO]) == {}
        log.end("read", "w", [ONE, TWO], 2.0)
    progress = log.progress()
    assert progress.units["read"] == 6 and progress.seconds["read"] == 6.0 and progress.retried == 0


def test_only_the_video_at_fault_is_counted_twice() -> None:
    log = AttemptLog()
    assert log.begin("answer", "w1", [ONE, TWO, THREE]) == {}
    alone = log.begin("answer", "w2", [ONE, TWO, THREE])  # w1 died
    assert alone == {"a": 1, "b": 1, "c": 1}, "nobody knows which one it was"
    assert log.begin_alone("answer", "w2", ONE)
    log.end("answer", "w2", [ONE], 0.1)
    assert log.begin_alone("answer", "w2", TWO)  # w2 dies of it
    assert log.begin("answer", "w3", [ONE, TWO, THREE]) == {"a": 1, "b": 2, "c": 1}
    assert log.progress().retried == 3


def test_windows_of_one_video_may_be_answered_at_the_same_time() -> None:
    log = AttemptLog()
    units: list[Unit] = [("a", number) for number in range(4)]
    assert log.begin("answer", "w1", units[:2]) == {} == log.begin("answer", "w2", units[2:])
    assert log.begin("read", "w1", [("a", 0)]) == {}, "another stage is another attempt"


def test_nothing_begins_after_a_stop() -> None:
    log = AttemptLog()
    log.begin("read", "w", [ONE])
    log.stop()
    assert log.begin("read", "w", [TWO]) is None and not log.begin_alone("read", "w", TWO)


def test_parts_and_loads_count_once() -> None:
    log = AttemptLog()
    log.count_input(0, 5, 1)
    log.count_input(0, 5, 1)
    log.count_input(1, 2, 0)
    assert (log.progress().to_do, log.progress().done_before) == (7, 1)
    assert [log.begin_loading("a"), log.begin_loading("b"), log.begin_loading("a")] == [0, 0, 1]
    log.end_loading("a")
    assert log.begin_loading("a") == 0
