"""Which programs are compiled, and which one runs a batch; none is compiled here."""

import threading
import time

import numpy as np
import pytest
from numpy_prompts import D
from server_parts import tiny_model

from prompt_tuning.server.device import Device, Input, Kind, Program, Shapes
from prompt_tuning.server.engine import Job
from prompt_tuning.server.scheduler import Row, Scheduler

SHAPES = Shapes((1, 2, 4), (16, 32), (4, 8))


class Stub(Device):
    """Programs that note their batches.

    Attributes:
      built, ran: Programs in their order.
    """

    def __init__(self, room: int = 40) -> None:
        super().__init__(tiny_model(length=room), SHAPES)
        self.built: list[Program] = []
        self.ran: list[Program] = []

    def _build(self, program: Program) -> None:
        if program not in self._programs:
            self.built.append(program)

            def run(params, tokens, slots, *arrays):
                assert tokens.shape == (program.rows, program.tokens)
                self.ran.append(program)
                return (np.tile(slots[:, None], (1, D)),)

            self._programs[program] = run

    def embed(self, count: int, length: int, places: int = 3) -> list:
        rows = [
            (Row(Kind("embed", 32), "a", length, places), Input([5] * length, slot))
            for slot in range(count)
        ]
        Job(rows, lambda: None)
        queue = Scheduler(row_shapes=SHAPES.rows, token_shapes=SHAPES.tokens)
        queue.add([row for row, _ in rows], 0.0)
        return self.run(queue.next(0.0)[0])


def test_the_corners_of_the_grid_are_compiled_at_the_start():
    device = Stub()
    device.admit(3, (3, 2))
    assert {(p.rows, p.tokens) for p in device.built} == {(1, 16), (1, 32), (4, 16), (4, 32)}
    assert {p.sizes for p in device.built} == {(), (8,), (4, 2)} and len(device.built) == 12
    count = len(device.built)
    device.admit(5, (5, 1))  # labels of another shape; the places are there
    assert len(device.built) == count + 4
    device.admit(40, None)  # a group of its own
    assert {p.places for p in device.built} == {8, 40} and len(device.built) == 2 * (count + 4)
    assert device.has_labels(8, 2) and not device.has_labels(9, 2)


def test_a_batch_is_run_by_the_smallest_program_until_its_own_is_compiled():
    device, ended = Stub(), threading.Event()
    device.admit(3, None)
    count = len(device.built)
    answers = device.embed(2, 7)
    assert [int(vector[0]) for (vector,) in answers] == [0, 1]
    assert device.ran[-1] == Program("embed", 4, 16, 8) and device.wanted == 1
    thread = threading.Thread(target=device.build_wanted, args=(ended.is_set,))
    thread.start()
    end = time.monotonic() + 20
    while device.wanted and time.monotonic() < end:
        time.sleep(0.01)
    ended.set()
    thread.join(20)
    assert device.built[count:] == [Program("embed", 2, 16, 8)]
    device.embed(2, 9)
    assert device.ran[-1] == Program("embed", 2, 16, 8) and device.missing == 1


@pytest.mark.parametrize("shards", [1, 2])
def test_shapes(shards):
    shapes = Shapes.of(64, 100, 40, shards)
    assert shapes.rows == tuple(n for n in (1, 2, 4, 8, 16, 24, 32, 48, 64) if n % shards == 0)
    assert shapes.tokens == (16, 32, 64, 100) and shapes.lengths == (8, 32, 40)
