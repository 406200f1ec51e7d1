"""The table of past predictions over a whole run: kept through a stop, and of what was seen."""

from dataclasses import replace

import torch
from worlds import World, broken_off, gap, job, steps

from stillroom.methods.ps_kd import PSKD

WORLD = World(kind="classes", exact=True)
HALF, SEEN = 2, 4
"""Steps in the first pass when it is broken off, and of its eight samples those seen by then."""


def made():
    return job(PSKD(), WORLD, steps=8, batch=2)


def test_the_table_goes_through_a_stop_in_the_middle_of_a_pass(tmp_path):
    whole, again = broken_off(made, HALF, tmp_path)
    before = again.states[HALF]["networks"]["before"]
    assert int(before["written"].sum()) == SEEN
    assert before["values"][~before["written"]].abs().sum() == 0
    torch.testing.assert_close(before["values"].sum(-1), before["written"].double())
    assert gap(again.final["before"], whole.final["before"]) == 0
    assert again.final["before"]["written"].all()
    assert again.logs == whole.logs


def test_a_run_without_its_table_would_learn_otherwise():
    """So that the test above can fail: what is in the table steers the second pass."""
    plainly = steps(made()).logs
    told = steps(replace(made(), method=Forgetful())).logs
    first = len(plainly) // 2
    assert told[:first] == plainly[:first]
    assert gap(told[first:], plainly[first:]) > 1e-6


class Forgetful(PSKD):
    """Forgets in each step what it said before."""

    def prepare(self, run, batch):
        run.players["before"].written.zero_()
        return super().prepare(run, batch)
