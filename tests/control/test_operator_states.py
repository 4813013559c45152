"""What an operator keeps from step to step, under controls that make several calls of attention of one."""

import pytest
import torch

import dattn
from dattn.control import Control, HeatMaps
from tests.families import FAMILIES

OPERATOR = dattn.Reshaped(dattn.Neighborhood(3), refresh=8)
STEPS = 5


class Doubles(Control):
    """Attention of other values in place of the model's own, while it is on."""

    on = False

    def acts(self, place):
        return self.on

    def edit(self, call):
        return call.with_values(2 * call.value).attend()


def steps_of(model, *seeds, switch=lambda step, branch: None, **options):
    """Outputs of a model that is called for every step and seed, as guidance branches are that have no names."""
    family, outputs = FAMILIES["flux"], []
    with dattn.apply(model, OPERATOR, **options) as handle:
        for step in range(STEPS):
            handle.step(step, STEPS)
            for branch, seed in enumerate(seeds):
                switch(step, branch)
                outputs.append(family.run(model, seed=10 * step + seed))
    return outputs


@pytest.fixture(scope="module")
def plain():
    model = FAMILIES["flux"].model()
    return model, steps_of(model, 1, 2)


@pytest.mark.parametrize("windows", [(0.4,), ((0.4, 0.8),), (0.4, 0.8)])
def test_maps_change_nothing_in_or_after_their_steps(plain, windows):
    model, stock = plain
    outputs = steps_of(model, 1, 2, control=[HeatMaps([(0, 1)], window=window) for window in windows])
    assert all(map(torch.equal, outputs, stock))


def test_an_edited_branch_leaves_the_state_of_the_other(plain):
    model, stock = plain
    control = Doubles()
    first = lambda step, branch: vars(control).update(on=step < 2 and branch == 0)
    outputs = steps_of(model, 1, 2, control=control, switch=first)
    assert all(map(torch.equal, outputs[1::2], stock[1::2]))
    assert not torch.equal(outputs[0], stock[0])
