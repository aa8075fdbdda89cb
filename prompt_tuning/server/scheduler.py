"""Decides which rows form the next batch: pure, without JAX and threads; time is an argument."""

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

MOST_PADDING = 0.25  # of a batch, up to which rows of shorter texts ride along
_MEMORY = 0.9  # weight of what was measured before, at each batch
_SHORT_MEMORY = 0.7  # the same for times that change when a program has been compiled
_BACK = 0.9  # share of a batch's callers who have asked again when it counts as returned
_MARGIN = 1.25  # how much longer than usual callers are waited for


class Full(Exception):
    """The queue takes no more rows now.

    Attributes:
      retry_after: Seconds after which there will be room for them.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full for {retry_after:.1f} s")
        self.retry_after = retry_after


@dataclasses.dataclass(eq=False)
class Row:
    """A text with one prompt, which waits for its place in a batch.

    Attributes:
      kind: What the rows of a batch have in common: the operation and the shapes of its arrays.
      task: Whose row it is; no task takes more than half of a batch while others wait.
      tokens: Number of its tokens.
      places: Number of places that its prompt needs.
      more: Number of decoder positions.
      payload: What the device needs, and whom the answer is for.
    """

    kind: Hashable
    task: Hashable
    tokens: int
    places: int = 0
    more: int = 0
    payload: Any = None

    @property
    def cost(self) -> int:
        """Number of positions that the model computes."""
        return self.tokens + self.places + self.more


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are computed together.

    Attributes:
      kind: That of its rows.
      rows: At most as many as a batch takes, the oldest first.
      shape: Rows, tokens and places after padding.
    """

    kind: Hashable
    rows: Sequence[Row]
    shape: tuple[int, int, int]


class Scheduler:
    """A queue of rows, from which batches are taken.

    1. The device never idles while rows wait, unless waiting saves more time than it takes: the
       callers of the last batches ask again within the time in which they usually do, and one batch
       of all takes so much less than two. Waiting for a size or a time would only add latency,
       since the queue fills while a batch runs.
    2. The oldest row decides kind and length of the next batch. Rows of its kind whose texts fall
       into the same shape fill it, the oldest first; shorter ones ride along while the padding
       stays small.
    3. No task takes more than half of a batch while others wait.
    4. The queue is bounded by the time that its rows will take.
    """

    def __init__(
        self,
        *,
        row_shapes: Sequence[int],
        token_shapes: Sequence[int],
        most_seconds: float = 10.0,
        most_rows: int = 10_000,
    ) -> None:
        """An empty queue.

        Args:
          row_shapes, token_shapes: Rows and tokens that a batch may have after padding, ascending.
          most_seconds: Time that a row may have to wait, as estimated when it comes; rows that
            would wait longer are refused.
          most_rows: Most rows that wait.
        """
        self._row_shapes, self._token_shapes = tuple(row_shapes), tuple(token_shapes)
        self._most_seconds, self._most_rows = most_seconds, most_rows
        # By kind and by number of tokens after padding; dictionaries, so that any row can leave.
        self._waiting: dict[Hashable, dict[int, dict[Row, int]]] = {}
        self._numbers = itertools.count()
        self._count = self._cost = self._running = 0
        self._cost_done = self._seconds_done = 0.0
        self._returns = _Returns()
        # Seconds of a batch by its kind, its tokens and its rows after padding.
        self._times: dict[tuple[Hashable, int], dict[int, float]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Sequence[Row], now: float) -> None:
        """Queues rows that come now, all or none; an empty queue takes any number.

        Raises:
          Full: if they would wait for too long.
        """
        cost = sum(row.cost for row in rows)
        self.check(len(rows), cost)
        for row in rows:
            width = _at_least(self._token_shapes, row.tokens)
            widths = self._waiting.setdefault(row.kind, {})
            widths.setdefault(width, {})[row] = next(self._numbers)
        self._count += len(rows)
        self._cost += cost
        self._returns.came(len(rows), now)

    def check(self, count: int = 1, cost: float | None = None) -> None:
        """Checks that rows could be added.

        Args:
          count: Number of rows.
          cost: Their cost together; None, before their texts are read, for that of rows that wait.

        Raises:
          Full: if they could not.
        """
        if self._count:
            if cost is None:
                cost = count * self._cost / self._count
            excess = self.seconds(cost) - self._most_seconds
            if self._count + count > self._most_rows or excess > 0:
                raise Full(max(excess, self.seconds() / 2))

    def remove(self, rows: Iterable[Row]) -> list[Row]:
        """Takes rows out of the queue whose callers have left.

        Returns:
          Those that were waiting; the others are running or done.
        """
        waiting = []
        for row in rows:
            width = _at_least(self._token_shapes, row.tokens)
            if row in self._waiting.get(row.kind, {}).get(width, ()):
                self._take(row, width)
                waiting.append(row)
        return waiting

    def seconds(self, more: float = 0.0) -> float:
        """The time that running and waiting rows, and others of a cost, are estimated to take.

        It is by the speed of batches that are at least half full, and 0 before the first one: small
        batches are slower than the queue will be.
        """
        if not self._cost_done:
            return 0.0
        cost = self._running + self._cost + more
        return cost * self._seconds_done / self._cost_done

    def next(self, now: float) -> tuple[Batch | None, float | None]:
        """Takes the next batch out of the queue.

        Returns:
          The batch, or None and the seconds after which to ask again; None for when rows come.
        """
        if not self._count:
            return None, None
        kind, width = min(
            ((kind, width) for kind, widths in self._waiting.items() for width in widths),
            key=lambda place: next(iter(self._waiting[place[0]][place[1]].values())),
        )
        rows = self._chosen(kind, width)
        expected, pause = self._returns.expected(now)
        if 0 < pause < self._gain(self._times.get((kind, width), {}), len(rows), expected):
            return None, pause
        for row in rows:
            self._take(row, _at_least(self._token_shapes, row.tokens))
        self._running = sum(row.cost for row in rows)
        shape = (len(rows), width, max(row.places for row in rows))
        return Batch(kind, rows, (_at_least(self._row_shapes, shape[0]), *shape[1:])), None

    def finished(self, batch: Batch, seconds: float, now: float) -> None:
        """Notes that a batch is done, and how long it took."""
        self._running = 0
        if 2 * len(batch.rows) >= self._row_shapes[-1]:  # as those of a long queue are
            self._cost_done *= _MEMORY
            self._cost_done += sum(row.cost for row in batch.rows)
            self._seconds_done = _MEMORY * self._seconds_done + seconds
        rows, tokens, _ = batch.shape
        times = self._times.setdefault((batch.kind, tokens), {})
        times[rows] = _mean(times.get(rows), seconds)
        self._returns.finished(len(batch.rows), now)

    def _chosen(self, kind: Hashable, width: int) -> list[Row]:
        """The rows of the next batch, which is of a kind and `width` tokens long."""
        most, widths = self._row_shapes[-1], self._waiting[kind]
        rows = _shared(widths[width], most)
        places = max(row.places for row in rows)
        real = sum(row.tokens + row.places for row in rows)
        shorter: list[tuple[int, Row]] = []
        if len(rows) < most:
            short = (widths[each].items() for each in widths if each < width)
            shorter = sorted((number, row) for row, number in itertools.chain.from_iterable(short))

        def padding(count: int, real: int) -> float:
            return 1 - real / (_at_least(self._row_shapes, count) * (width + places))

        for row in _shared([row for _, row in shorter], most - len(rows)):
            with_row = real + row.tokens + row.places
            bound = max(MOST_PADDING, padding(len(rows), real))
            if row.places <= places and padding(len(rows) + 1, with_row) <= bound:
                rows.append(row)
                real = with_row
        return rows

    def _gain(self, times: dict[int, float], count: int, expected: int) -> float:
        """Seconds that a batch of `count` rows and those expected saves, against two batches."""
        joined = min(expected, self._row_shapes[-1] - count)
        if not times or not joined:
            return 0.0
        known = sorted(times.items())

        def seconds(rows: int) -> float:
            if not rows:
                return 0.0
            after = bisect.bisect_left(known, (rows, 0.0))
            (low, fast), (high, slow) = known[max(0, after - 1)], known[min(after, len(known) - 1)]
            share = (rows - low) / (high - low) if high > low else 0.0
            return fast + min(1.0, max(0.0, share)) * (slow - fast)

        apart = seconds(count) + seconds(expected)
        return apart - seconds(count + joined) - seconds(expected - joined)

    def _take(self, row: Row, width: int) -> None:
        widths = self._waiting[row.kind]
        del widths[width][row]
        if not widths[width]:
            del widths[width]
        if not widths:
            del self._waiting[row.kind]
        self._count -= 1
        self._cost -= row.cost


class _Returns:
    """Callers of the last two batches who have not asked again, and how soon they usually do.

    Who asks is not known, so rows that come count for the callers who were answered first.
    """

    def __init__(self) -> None:
        # When a batch ended, its rows, and those of its callers who have not asked again.
        self._answered: collections.deque[tuple[float, int, int]] = collections.deque()
        self._usual: float | None = None

    def finished(self, count: int, now: float) -> None:
        """Notes that `count` rows were answered."""
        self._answered.append((now, count, count))
        if len(self._answered) > 2:  # they have left, or take their time
            self._note(now - self._answered.popleft()[0])

    def came(self, count: int, now: float) -> None:
        """Notes that `count` rows came."""
        while self._answered and count:
            end, rows, left = self._answered.popleft()
            taken = min(left, count)
            count -= taken
            if left - taken > (1 - _BACK) * rows:
                self._answered.appendleft((end, rows, left - taken))
            else:
                self._note(now - end)

    def expected(self, now: float) -> tuple[int, float]:
        """The number of rows that are likely to come, and the seconds until they should have."""
        if self._usual is None:
            return 0, 0.0
        late = [(end + _MARGIN * self._usual - now, left) for end, _, left in self._answered]
        late = [(seconds, left) for seconds, left in late if seconds > 0]
        return sum(left for _, left in late), max((seconds for seconds, _ in late), default=0.0)

    def _note(self, seconds: float) -> None:
        self._usual = _mean(self._usual, seconds)


def _mean(before: float | None, value: float) -> float:
    """A running mean."""
    return value if before is None else _SHORT_MEMORY * before + (1 - _SHORT_MEMORY) * value


def _shared(rows: Iterable[Row], room: int) -> list[Row]:
    """The oldest rows, at most `room`; half of them of one task, unless no other one waits."""
    share, counts = max(1, room // 2), collections.Counter[Hashable]()
    taken: list[Row] = []
    left: list[Row] = []
    for row in rows:
        if len(taken) == room:
            break
        fits = counts[row.task] < share
        (taken if fits else left).append(row)
        counts[row.task] += fits
    return [*taken, *left[: room - len(taken)]]


def _at_least(shapes: Sequence[int], count: int) -> int:
    """The smallest of ascending shapes that is at least `count`, or the last one."""
    return shapes[min(bisect.bisect_left(shapes, count), len(shapes) - 1)]
