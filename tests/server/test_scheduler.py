"""The scheduler: who comes next, who shares a batch, and who has to wait."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.server.scheduler import Full, Row, Scheduler

ROWS, TOKENS = (1, 2, 4, 8), (16, 32, 64)


def scheduler(**options) -> Scheduler:
    return Scheduler(row_shapes=ROWS, token_shapes=TOKENS, **options)


def row(task: str = "a", tokens: int = 10, kind: str = "classify", **more) -> Row:
    return Row(kind, task, tokens, **more)


def batches(queue: Scheduler) -> list:
    """All batches of a queue, each of which takes no time."""
    found = []
    while len(queue):
        batch, _ = queue.next(0.0)
        queue.finished(batch, 0.0, 0.0)
        found.append(batch)
    return found


def test_an_empty_queue_has_no_batch():
    assert scheduler().next(0.0) == (None, None)


def test_rows_of_all_tasks_share_a_batch_of_their_kind():
    queue = scheduler()
    rows = [row("a"), row("b"), row("a", kind="embed"), row("c", 12, places=20)]
    queue.add(rows, 0.0)
    first, second = batches(queue)
    assert first.rows == [rows[0], rows[1], rows[3]] and first.shape == (4, 16, 20)
    assert second.rows == [rows[2]] and second.shape == (1, 16, 0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (
            [16, 32],
            [[16], [32]],
        ),  # the older row is the shorter one: it does not wait for the other
        ([32, 14], [[32], [14]]),  # a short row would be half padding
        ([32, 31, 17, 14], [[32, 31, 17, 14]]),  # a seat that is padding otherwise
        ([32] * 7 + [3], [[32] * 7 + [3]]),
        ([64, 60, 60, 60, 20], [[64, 60, 60, 60], [20]]),
    ],
)
def test_shorter_rows_ride_along_while_there_is_little_padding(lengths, expected):
    queue = scheduler()
    queue.add([row(task, n) for task, n in zip("abcdefgh", lengths, strict=False)], 0.0)
    assert [[row.tokens for row in batch.rows] for batch in batches(queue)] == expected


def test_no_task_takes_more_than_half_while_others_wait():
    queue = scheduler()
    queue.add([row("flood") for _ in range(20)], 0.0)
    queue.add([row("one"), row("two")], 0.0)
    first, second, *_ = batches(queue)
    assert Counter(each.task for each in first.rows) == {"flood": 6, "one": 1, "two": 1}
    assert Counter(each.task for each in second.rows) == {"flood": 8}


def run(queue: Scheduler, start: float, seconds: float) -> int:
    """Runs the next batch; the number of its rows."""
    batch, pause = queue.next(start)
    assert pause is None
    queue.finished(batch, seconds, now=start + seconds)
    return len(batch.rows)


def callers(queue: Scheduler, count: int, now: float) -> None:
    queue.add([row(str(i)) for i in range(count)], now)


def test_callers_who_soon_ask_again_are_waited_for_if_one_batch_takes_less_than_two():
    queue = scheduler()
    for start in (0.0, 0.7, 1.4):  # a batch of any size takes 0.5 s, and callers return after 0.2
        callers(queue, 4, start)
        assert run(queue, start, 0.5) == 4
    callers(queue, 3, 2.0)
    assert queue.next(2.0) == (None, pytest.approx(1.25 * 0.2 - 0.1))
    callers(queue, 1, 2.05)
    assert run(queue, 2.05, 0.5) == 4  # all have asked
    callers(queue, 2, 2.65)
    _, pause = queue.next(2.65)
    assert 0 < pause < 0.2
    assert run(queue, 2.65 + pause, 0.5) == 2  # not for ever


def test_nobody_is_waited_for_where_a_batch_takes_as_long_as_its_rows():
    queue = scheduler()
    for count, start in ((1, 0.0), (2, 1.0), (4, 2.0), (8, 3.0), (4, 4.5), (4, 5.1)):
        callers(queue, count, start)
        assert run(queue, start, 0.1 * count) == count
    callers(queue, 2, 5.6)
    assert run(queue, 5.6, 0.2) == 2


def test_nobody_is_waited_for_who_takes_longer_than_a_batch_saves():
    queue = scheduler()
    for start in range(0, 40, 10):
        callers(queue, 4, float(start))
        assert run(queue, float(start), 0.5) == 4
    callers(queue, 2, 40.0)
    assert run(queue, 40.0, 0.5) == 2


def test_a_single_caller_never_waits():
    queue = scheduler()
    for time in (0.0, 1.0, 2.0):
        queue.add([row()], 0.0)
        batch, _ = queue.next(time)
        assert len(batch.rows) == 1
        queue.finished(batch, 0.9, now=time + 0.9)


def test_a_queue_that_takes_too_long_refuses_rows_and_says_when_to_return():
    queue = scheduler(most_seconds=2.0)
    queue.add([row(tokens=10)], 0.0)
    [small] = batches(queue)
    queue.finished(small, 1.0, 1.0)  # says nothing of the batches of a long queue
    queue.add([row(tokens=10) for _ in range(4)], 0.0)
    assert queue.seconds() == 0.0
    batch, _ = queue.next(0.0)
    queue.finished(batch, 4.0, 4.0)  # ten positions a second
    queue.add([row(tokens=10), row(tokens=10)], 0.0)
    with pytest.raises(Full):
        queue.check()  # of a text that is not read yet, which may be as long as the others
    with pytest.raises(Full) as error:
        queue.add([row(tokens=15)], 0.0)
    assert error.value.retry_after == pytest.approx(1.5) and len(queue) == 2
    queue.next(2.0)
    assert queue.seconds() == pytest.approx(2.0)  # of the rows that run


def test_an_empty_queue_takes_any_request():
    queue = scheduler(most_rows=3)
    queue.add([row() for _ in range(5)], 0.0)
    with pytest.raises(Full):
        queue.add([row()], 0.0)


def test_rows_whose_callers_left_are_not_run():
    queue = scheduler()
    rows = [row(str(i)) for i in range(3)]
    queue.add(rows, 0.0)
    assert queue.remove(rows[:2]) == rows[:2] and queue.remove(rows[:2]) == []
    batch, _ = queue.next(0.0)
    assert batch.rows == rows[2:] and queue.remove(rows) == [] and len(queue) == 0


WAITING = st.tuples(
    st.sampled_from("abc"), st.integers(1, 64), st.sampled_from("xy"), st.sampled_from([0, 8, 20])
)


@given(st.lists(WAITING, max_size=40), st.sets(st.integers(0, 39)))
@settings(max_examples=200, deadline=None)
def test_every_row_is_run_once_in_a_batch_that_holds_it(rows, left):
    queue, numbers = scheduler(), itertools.count()
    waiting = [Row(k, task, n, places, payload=next(numbers)) for task, n, k, places in rows]
    queue.add(waiting, 0.0)
    gone = queue.remove([each for each in waiting if each.payload in left])
    order = [each for each in waiting if each not in gone]
    done: list[Row] = []
    for batch in batches(queue):
        count, tokens, places = batch.shape
        assert count in ROWS and tokens in TOKENS and len(batch.rows) <= count
        assert {each.kind for each in batch.rows} == {batch.kind}
        assert all(each.tokens <= tokens and each.places <= places for each in batch.rows)
        oldest = next(each for each in order if each not in done)
        assert oldest in batch.rows and tokens == min(n for n in TOKENS if n >= oldest.tokens)
        done += batch.rows
    assert sorted(each.payload for each in done) == [each.payload for each in order]
    assert queue.seconds() == 0.0
