"""AttendAndExcite and AStar: their losses equal the definitions, and latents move where those fall."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

import dattn
from dattn.control import AStar, AttendAndExcite
from dattn.control.a_star import overlap, retention, segregation
from dattn.control.attend_and_excite import smooth
from dattn.control.optimize import Optimize
from dattn.control.solvers import goes_on_from_kept, take_as_it_is

from .stages import maps, qkv, stage, through

MODELS = Path(__file__).parents[2] / "assets" / "models"


def test_segregation_and_retention():
    rng = np.random.default_rng(0)
    a, b, c = rng.random((3, 2, 3))
    share = lambda x, y: np.minimum(x, y).sum() / (x + y).sum()
    stacked = torch.tensor(np.stack([a, b, c]))[None, :, None]
    assert np.isclose(segregation(stacked), share(a, b) + share(a, c) + share(b, c))
    kept = (stacked.roll(1, -1) > 0.5).double()
    ones = [1 - share(x, k) for x, k in zip((a, b, c), kept[0, :, 0].numpy(), strict=True)]
    assert np.isclose(retention(stacked, kept), sum(ones))


def test_overlap_is_a_half_at_most():
    one = torch.rand(4, 5)
    assert torch.allclose(overlap(one, one), torch.full((4,), 0.5))
    assert overlap(torch.tensor([1.0, 0]), torch.tensor([0.0, 1])) == 0
    assert overlap(torch.zeros(3), torch.zeros(3)) == 0


def test_smoothing_has_the_published_weights():
    dot = torch.zeros(1, 5, 5)
    dot[0, 2, 2] = 1
    spread = smooth(dot)[0]
    assert torch.allclose(spread[2, 2:4], torch.tensor([0.332, 0.122]), atol=1e-3)
    assert torch.allclose(spread[1, 1], torch.tensor(0.045), atol=1e-3)
    assert torch.allclose(smooth(torch.ones(2, 3, 4)), torch.ones(2, 3, 4))


def naive_excitation(p, words):
    """1 - largest value of the smoothed maps of words, the worst word."""
    shares = (100 * p.mean(0)[:, 1:-1]).softmax(-1)
    best = []
    for word in words:
        grid = np.pad(shares[:, word - 1].view(4, 5).numpy(), 1, mode="reflect")
        kernel = np.exp(-(np.add.outer(np.arange(-1, 2) ** 2, np.arange(-1, 2) ** 2)))
        kernel /= kernel.sum()
        best.append(max((grid[y : y + 3, x : x + 3] * kernel).sum() for y in range(4) for x in range(5)))
    return max(1 - b for b in best)


def test_the_loss_of_attend_and_excite():
    query, key, value = qkv(2, 3, 20, 12)
    control, own = AttendAndExcite(["red", "circle"]), stage("a red circle", "a red circle")
    control._looking = True
    found = []
    keep, control.maps_of = control.maps_of, lambda call: found.append(keep(call)) or found[-1]
    try:
        through([control], own, "cross", query, key, value)
    except Exception as stop:  # enough maps
        assert type(stop).__name__ == "Enough"
    p = maps(query, key)
    wanted = sum(naive_excitation(sample, (2, 3)) for sample in p)
    assert abs(float(control.losses(found[0]).sum()) - wanted) < 1e-5


@pytest.fixture(scope="module", params=["shapes-sd", "shapes-flux", "shapes-wan"])
def demo(request):
    pipe = DiffusionPipeline.from_pretrained(MODELS / request.param)
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent", "return_dict": False}
    call["prompt"] = "a red circle above a blue square" + (", both moving right" if "wan" in request.param else "")
    call |= {"shapes-sd": {"guidance_scale": 3.0}, "shapes-wan": {"num_frames": 5, "guidance_scale": 3.0}}.get(
        request.param, {"max_sequence_length": 16, "true_cfg_scale": 3.0, "negative_prompt": ""}
    )
    return pipe, call


def run(pipe, call):
    return pipe(generator=torch.Generator().manual_seed(0), **call)[0]


class Noted(AStar):
    """Keeps the loss before every move, and that after it."""

    def descend(self, latents, loss):
        moved = super().descend(latents, loss)
        with torch.no_grad():
            after = self.look(moved, self.arguments)
        self.losses.append((float(loss.detach()), float(segregation_of(after))))
        return moved

    def move(self, latents, arguments):
        self.arguments = arguments
        self._before = None
        return super().move(latents, arguments)


def segregation_of(maps_):
    from dattn.control.a_star import _unit

    return segregation(_unit(maps_))


def test_small_moves_lower_the_loss(demo):
    pipe, call = demo
    stock = run(pipe, call)
    control = Noted(["circle", "square"], step_size=0.5)
    control.losses = []
    with control.on(pipe):
        moved = run(pipe, call)
    assert len(control.losses) == 3
    assert all(after < before for before, after in control.losses), control.losses
    assert (moved - stock).abs().max() > 1e-4
    assert torch.equal(run(pipe, call), stock)


def test_a_move_goes_down_segregation_and_retention(demo):
    """Of the places that words had in the step before, the first step having none."""
    pipe, call = demo
    seen = []

    class Listens(AStar):
        def look(self, latents, arguments):
            seen.append([super().look(latents, arguments)])
            return seen[-1][0]

        def descend(self, latents, loss):
            seen[-1].append(float(loss.detach()))
            return super().descend(latents, loss)

    with Listens(["circle", "square"], step_size=0.5).on(pipe):
        run(pipe, call)
    assert len(seen) == 3
    before = None
    for looks, loss in seen:
        own = looks.detach()
        low, high = own.amin((2, 3, 4), keepdim=True), own.amax((2, 3, 4), keepdim=True)
        own = (own - low) / (high - low)
        expected = float(segregation(own)) + (0 if before is None else float(retention(own, before)))
        assert loss == pytest.approx(expected, rel=1e-4)
        before = (own > 0.5).to(own.dtype)


def test_a_move_is_the_gradient_times_a_step_that_falls_to_the_root_of_a_half(demo):
    pipe, call = demo
    lengths = []

    class Ramp(AStar):
        def move(self, latents, arguments):
            latents = latents.requires_grad_()
            moved = self.descend(latents, latents.sum())
            lengths.append((latents.detach() - moved).mean().item())
            return latents.detach()

    with Ramp(["circle"], step_size=0.5).on(pipe), pytest.warns(UserWarning, match="ran nowhere"):
        run(pipe, call)  # it asks no layer
    assert lengths == pytest.approx([0.5, 0.5 * 0.75**0.5, 0.5 * 0.5**0.5], rel=1e-3)


def test_memory_for_gradients_is_bounded_by_the_layers(demo):
    """What a look keeps for its gradient: of the first layer a small part of what the whole model keeps."""
    pipe, call = demo
    model = getattr(pipe, "unet", None) or pipe.transformer
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with dattn.apply(pipe, dattn.Dense()) as handle:
        last = len(handle.layers) - 1

    def kept(layers):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with AStar(["circle", "square"], step_size=1.0, layers=layers).on(pipe), hooks:
            run(pipe, {**call, "num_inference_steps": 1})
        return sum(storages.values())

    assert 0 < kept([0]) < kept([last]) / 3


def test_outside_of_its_window_nothing_moves(demo):
    pipe, call = demo
    stock = run(pipe, call)
    with AttendAndExcite(["circle", "square"], window=(0, 0), bounds={}).on(pipe):
        assert torch.equal(run(pipe, call), stock)
    with AttendAndExcite(["circle", "square"], window=(0.4, 0.4), bounds={0.0: 0.9}).on(pipe):
        assert torch.equal(run(pipe, call), stock)
    with AttendAndExcite(["circle", "square"], step_size=1.0, window=(0, 0.4), bounds={0.0: 0.9}, most=2).on(pipe):
        assert (run(pipe, call) - stock).abs().max() > 1e-5


def test_the_users_own_latents_are_not_written_to(demo):
    pipe, call = demo
    with AStar(["circle", "square"], step_size=1.0).on(pipe):
        latents = pipe(generator=torch.Generator().manual_seed(0), **{**call, "num_inference_steps": 1})[0]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        before = noise.clone()
        once = pipe(**call, latents=noise)[0]
        assert torch.equal(noise, before)
        assert torch.equal(pipe(**call, latents=noise)[0], once)


def test_a_bound_that_is_reached_costs_one_move(demo):
    pipe, call = demo
    moves = []

    class Counts(AttendAndExcite):
        def descend(self, latents, loss):
            moves.append(self.stage.step)
            return super().descend(latents, loss)

    with Counts(["circle", "square"], window=1.0, bounds={0.0: 0.0}).on(pipe):
        run(pipe, call)
    assert moves == [0, 1, 2]


def test_the_model_runs_as_far_as_the_last_layer_that_is_looked_at(demo):
    pipe, call = demo
    model = getattr(pipe, "unet", None) or pipe.transformer
    last = [module for name, module in model.named_modules() if hasattr(module, "processor")][-1]
    passes, ends = [], []
    hooks = [
        model.register_forward_pre_hook(lambda *_: passes.append(1)),
        last.register_forward_hook(lambda *_: ends.append(1)),
    ]
    try:
        with AStar(["circle", "square"], layers=[0], window=1.0).on(pipe):
            run(pipe, call)
    finally:
        [hook.remove() for hook in hooks]
    assert len(passes) - len(ends) == 3  # a look in every step, and no more


def test_an_interrupted_look_leaves_the_model_as_it_was(demo):
    pipe, call = demo
    stock, model = run(pipe, call), getattr(pipe, "unet", None) or pipe.transformer
    learning = [parameter.requires_grad for parameter in model.parameters()]

    class Fails(AStar):
        def maps_of(self, call):
            raise KeyboardInterrupt

    control = Fails(["circle", "square"])
    with pytest.raises(KeyboardInterrupt), control.on(pipe):
        run(pipe, call)
    assert not control._looking and [parameter.requires_grad for parameter in model.parameters()] == learning
    with AStar(["circle", "square"], step_size=1.0).on(pipe):
        assert (run(pipe, call) - stock).abs().max() > 1e-4
    assert torch.equal(run(pipe, call), stock)


def test_of_bounds_that_fall_on_one_step_the_largest_counts(demo):
    pipe, call = demo
    moves = []

    class Counts(AttendAndExcite):
        def descend(self, latents, loss):
            moves.append(self.stage.step)
            return latents.detach()

    with Counts(["circle", "square"], window=1.0, bounds={0.2: 0.0, 0.4: 1.0}, most=2).on(pipe):
        run(pipe, call)  # of 3 steps
    assert moves == [0, 1, 1, 1, 2]


def test_a_bare_model_has_no_latents_to_move(demo):
    pipe, call = demo
    model = getattr(pipe, "unet", None) or pipe.transformer
    with dattn.apply(model, control=AStar([0])), pytest.raises(ValueError, match="not to a bare model"):
        run(pipe, call)


def test_with_a_pattern(demo):
    pipe, call = demo
    with dattn.apply(pipe, dattn.Neighborhood(3)):
        sparse = run(pipe, call)
        with AStar(["circle", "square"], step_size=1.0).on(pipe):
            assert (run(pipe, call) - sparse).abs().max() > 1e-4
        assert torch.equal(run(pipe, call), sparse)


def test_only_the_layers_asked_for_run(demo):
    pipe, call = demo
    seen = []

    class First(AStar):
        def maps_of(self, call):
            seen.append(call.place.index)
            return super().maps_of(call)

    with First(["circle", "square"], layers=[0]).on(pipe):
        run(pipe, call)
    assert seen == [0, 0, 0]


@pytest.mark.parametrize("kind", [AStar, AttendAndExcite])
def test_a_backend_without_gradients_is_refused(demo, kind):
    pipe, call = demo

    class Detached(kind):
        def maps_of(self, call):
            return super().maps_of(call).detach()

    with Detached(["circle", "square"]).on(pipe), pytest.raises(ValueError, match="set_attention_backend"):
        run(pipe, call)


class Pushes(Optimize):
    """Moves the latents by the same everywhere, before one step."""

    def __init__(self, step):
        super().__init__(["circle"])
        self.at, self.kept = step, {}

    def move(self, latents, arguments):
        return latents + 0.3 if self.stage.step == self.at else latents

    def stepped(self, latents):
        self.kept[self.stage.step] = latents.clone()
        return super().stepped(latents)


def test_a_corrector_does_not_undo_moves(demo):
    pipe, call = demo
    before, pushes, stays = pipe.scheduler, Pushes(2), Pushes(None)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if hasattr(pipe, "transformer") else {}
    pipe.scheduler = UniPCMultistepScheduler(**flow)
    try:
        for control in (stays, pushes):
            with control.on(pipe):
                run(pipe, call | {"num_inference_steps": 4})
    finally:
        pipe.scheduler = before
    assert torch.equal(pushes.kept[1], stays.kept[1])
    assert (pushes.kept[2] - stays.kept[2]).mean() > 0.15


@pytest.mark.parametrize("demo", ["shapes-sd", "shapes-wan"], indirect=True)
def test_steps_in_which_a_move_would_be_lost_are_left_out(demo):
    pipe, call = demo
    before, pushes, stays = pipe.scheduler, Pushes(1), Pushes(None)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler() if hasattr(pipe, "transformer") else HeunDiscreteScheduler()
    try:
        for control in (stays, pushes):
            with control.on(pipe), pytest.warns(UserWarning, match="a move would be lost"):
                run(pipe, call)
    finally:
        pipe.scheduler = before
    assert all(torch.equal(pushes.kept[step], stays.kept[step]) for step in stays.kept)


@pytest.mark.parametrize(
    "scheduler",
    [
        HeunDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        KDPM2DiscreteScheduler(),
        PNDMScheduler(),
        PNDMScheduler(skip_prk_steps=True),
        DPMSolverSinglestepScheduler(prediction_type="sample"),
        UniPCMultistepScheduler(prediction_type="sample"),
        SASolverScheduler(prediction_type="sample", predictor_order=1, corrector_order=1),
        DDIMScheduler(),
        DPMSolverMultistepScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_moves_are_lost_where_a_scheduler_goes_on_from_what_it_kept(scheduler):
    """The model's output being the same, a step gives the same wherever the latents were moved to."""
    steps = 8 if isinstance(scheduler, FlowMatchHeunDiscreteScheduler) else 7
    scheduler.set_timesteps(steps)
    latents = torch.ones(1, 2, 4, 4)
    for time in scheduler.timesteps[:-1]:
        lost, moved = goes_on_from_kept(scheduler), copy.deepcopy(scheduler)
        take_as_it_is(moved)
        step = lambda own, start: own.step(torch.ones_like(latents), time, start, return_dict=False)[0]  # noqa: B023
        after = step(moved, latents + 1)
        alike = copy.deepcopy(scheduler)
        take_as_it_is(alike)
        assert torch.allclose(after, step(alike, latents), atol=1e-5) == lost
        latents = step(scheduler, latents)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (AStar, {"words": []}, "give the words"),
        (AStar, {"words": ["red"], "step_size": 0}, "above 0"),
        (AStar, {"words": ["red"], "threshold": 2}, "of maps in"),
        (AttendAndExcite, {"words": ["red"], "bounds": {0: 3}}, "from 0 to 1"),
    ],
)
def test_wrong_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
