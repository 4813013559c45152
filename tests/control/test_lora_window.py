"""LoRAWindow: adapters act in the steps of the window, and are on before and after."""

import pytest
import torch

import dattn
from dattn.control import LoRAWindow, RegionalLoRA
from tests.control.test_regional_lora import FAMILIES, MASKS, inputs_of, run, tuned


def steps_of(pipe, model, inputs, steps=4):
    """The model's output in every step of a denoising call."""
    pipe.scheduler.set_timesteps(steps)
    found = []
    for time in pipe.scheduler.timesteps:
        found.append([run(model, inputs) for _ in range(2)])  # with guidance there are two passes
        pipe.scheduler.step(torch.zeros(2, 3), time, torch.zeros(2, 3))
    assert all(torch.equal(*pair) for pair in found)
    return [one for one, _ in found]


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_act_in_the_window_alone(name):
    inputs = inputs_of(FAMILIES[name])
    model, pipe = tuned(FAMILIES[name])
    acting = run(model, inputs)
    model.disable_adapters()
    stock = run(model, inputs)
    model.enable_adapters()
    assert (acting - stock).abs().max() > 1e-2 * stock.abs().max()
    with LoRAWindow((0.25, 0.75)).on(pipe):
        for _ in range(2):  # calls
            first, *middle, last = steps_of(pipe, model, inputs)
            assert torch.equal(first, stock) and torch.equal(last, stock)
            assert all(torch.equal(one, acting) for one in middle)
    assert torch.equal(run(model, inputs), acting)


def test_a_call_that_ends_in_the_middle_leaves_them_on():
    inputs = inputs_of(FAMILIES["wan"])
    model, pipe = tuned(FAMILIES["wan"])
    acting = run(model, inputs)
    with pytest.raises(KeyboardInterrupt), LoRAWindow((0.5, 1)).on(pipe):
        pipe.scheduler.set_timesteps(4)
        run(model, inputs)
        raise KeyboardInterrupt
    assert torch.equal(run(model, inputs), acting)
    with LoRAWindow((0.0, 0.5)).on(pipe):
        steps_of(pipe, model, inputs)
        pipe.scheduler.set_timesteps(4)
        for time in pipe.scheduler.timesteps[:3]:
            run(model, inputs)
            pipe.scheduler.step(torch.zeros(2, 3), time, torch.zeros(2, 3))
        run(model, inputs)  # outside of the window, where they are off
        assert torch.equal(steps_of(pipe, model, inputs)[0], acting)


def test_what_the_user_has_switched_off_stays_off():
    inputs = inputs_of(FAMILIES["wan"])
    model, pipe = tuned(FAMILIES["wan"])
    model.disable_adapters()
    stock = run(model, inputs)
    with LoRAWindow((0.5, 1)).on(pipe):
        assert all(torch.equal(one, stock) for one in steps_of(pipe, model, inputs))
    assert torch.equal(run(model, inputs), stock)


@pytest.mark.parametrize("kinds", [(LoRAWindow, RegionalLoRA), (RegionalLoRA, LoRAWindow)])
def test_masks_of_adapters_wait_while_these_are_off(kinds):
    inputs = inputs_of(FAMILIES["wan"])
    model, pipe = tuned(FAMILIES["wan"])
    acting, given = run(model, inputs), {LoRAWindow: ((0.5, 1),), RegionalLoRA: ({"left": MASKS["left"]},)}
    with RegionalLoRA(*given[RegionalLoRA]).on(pipe):
        masked = run(model, inputs)
    model.disable_adapters()
    stock = run(model, inputs)
    model.enable_adapters()
    assert (masked - acting).abs().max() > 1e-3
    with dattn.apply(pipe, control=[kind(*given[kind]) for kind in kinds]):
        for _ in range(2):  # calls
            found = steps_of(pipe, model, inputs)
            assert all(torch.equal(*pair) for pair in zip(found, [stock, stock, masked, masked], strict=True))


def test_where_there_is_nothing_to_switch():
    family = FAMILIES["wan"]
    model, pipe = tuned(family)
    with pytest.raises(ValueError, match="bare model"), LoRAWindow((0.5, 1)).on(model):
        run(model, inputs_of(family))
    model.delete_adapters([*MASKS])
    with pytest.raises(ValueError, match="no LoRA is loaded"), LoRAWindow((0.5, 1)).on(pipe):
        run(model, inputs_of(family))
    with pytest.raises(ValueError, match=r"window=\(2, 1\)"):
        LoRAWindow((2, 1))
