"""The book of what workers have begun: who is struck, who is taken alone, who may begin at all."""

from __future__ import annotations

from llava_video_cli.cluster.failures import Book, Unit

ONE, TWO, THREE = (("a", 0), ("b", 0), ("c", 0))


def test_what_is_ended_is_not_struck() -> None:
    book = Book()
    for _ in range(3):  # as when a node with what was done is lost
        assert book.begin("read", "w", [ONE, TWO]) == {}
        book.end("read", "w", [ONE, TWO], 2.0)
    tally = book.tally()
    assert tally.units["read"] == 6 and tally.seconds["read"] == 6.0 and tally.struck == 0


def test_only_the_culprit_gets_a_second_strike() -> None:
    book = Book()
    assert book.begin("answer", "w1", [ONE, TWO, THREE]) == {}
    alone = book.begin("answer", "w2", [ONE, TWO, THREE])  # w1 died
    assert alone == {"a": 1, "b": 1, "c": 1}, "nobody knows which one it was"
    assert book.begin_alone("answer", "w2", ONE)
    book.end("answer", "w2", [ONE], 0.1)
    assert book.begin_alone("answer", "w2", TWO)  # w2 dies of it
    assert book.begin("answer", "w3", [ONE, TWO, THREE]) == {"a": 1, "b": 2, "c": 1}
    assert book.tally().struck == 3


def test_windows_of_one_video_that_are_answered_at_the_same_time_are_no_strike() -> None:
    book = Book()
    units: list[Unit] = [("a", number) for number in range(4)]
    assert book.begin("answer", "w1", units[:2]) == {} == book.begin("answer", "w2", units[2:])
    assert book.begin("read", "w1", [("a", 0)]) == {}, "nor is another stage"


def test_nothing_begins_behind_a_stop() -> None:
    book = Book()
    book.begin("read", "w", [ONE])
    book.stop()
    assert book.begin("read", "w", [TWO]) is None and not book.begin_alone("read", "w", TWO)


def test_parts_and_loads_count_once() -> None:
    book = Book()
    book.planned(0, 5, 1)
    book.planned(0, 5, 1)
    book.planned(1, 2, 0)
    assert (book.tally().found, book.tally().done_before) == (7, 1)
    assert [book.begin_loading("a"), book.begin_loading("b"), book.begin_loading("a")] == [0, 0, 1]
    book.end_loading("a")
    assert book.begin_loading("a") == 0
