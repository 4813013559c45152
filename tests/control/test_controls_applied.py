"""Controls on the demo pipelines: what a user calls, what changes, and that nothing is left behind."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import dattn
from dattn.control import Control, HeatMaps, LocalBlend, Perturb, Refine, Replace, Reweight
from tests.pipelines.tiny import sd3_pipeline

MODELS = Path(__file__).parents[2] / "assets" / "models"
CALLS = {
    "shapes-sd": {"prompt": "a red circle", "guidance_scale": 3.0},
    "shapes-flux": {"prompt": "a red circle", "max_sequence_length": 16, "true_cfg_scale": 3.0, "negative_prompt": ""},
    "shapes-wan": {"prompt": "a red circle moving right", "num_frames": 5, "guidance_scale": 3.0},
}


@pytest.fixture(scope="module", params=CALLS)
def demo(request):
    pipe = DiffusionPipeline.from_pretrained(MODELS / request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe, CALLS[request.param]


def run(pipe, call, *prompts, steps=2, seed=0):
    """Latents of a call for its own prompt, or for several."""
    call = dict(call)
    if prompts:
        call["prompt"] = list(prompts)
        call |= {"negative_prompt": [""] * len(prompts)} if "negative_prompt" in call else {}
    generators = [torch.Generator().manual_seed(seed) for _ in prompts or [0]]
    options = {"height": 64, "width": 64, "num_inference_steps": steps, "output_type": "latent", "return_dict": False}
    return pipe(generator=generators, **options, **call)[0]


def model_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def traces(pipe):
    """Everything that a handle touches: attributes of pipeline, scheduler and model, processors, hooks."""
    model = model_of(pipe)
    modules = {name: dict(vars(module)) for name, module in model.named_modules() if hasattr(module, "processor")}
    processors = {name: id(attributes.get("processor")) for name, attributes in modules.items()}
    hooks = len(model._forward_hooks), len(model._forward_pre_hooks)
    return set(vars(pipe)), set(vars(pipe.scheduler)), set(vars(model)), processors, hooks


def test_a_control_that_says_nothing_changes_no_bit(demo):
    pipe, call = demo
    stock = run(pipe, call)
    with Reweight({"red": 1.0}).on(pipe):
        assert torch.equal(run(pipe, call), stock)
    maps = HeatMaps(["circle"])
    with maps.on(pipe):
        assert torch.equal(run(pipe, call), stock)
    assert maps["circle"].shape[0] == 1 and maps["circle"].max() > 0


def test_removed_controls_leave_no_trace(demo):
    pipe, call = demo
    stock, before = run(pipe, call), traces(pipe)
    handle = dattn.apply(pipe, control=[Reweight({"red": 0.0}), HeatMaps(["circle"])])
    assert (run(pipe, call) - stock).abs().max() > 1e-3
    handle.remove()
    assert traces(pipe) == before and torch.equal(run(pipe, call), stock)


class Fails(Control):
    """Raises in the middle of a call."""

    def acts(self, place):
        return place.step == 1 and place.index == 1

    def edit(self, call):
        raise KeyboardInterrupt


def test_an_interrupted_call_leaves_no_trace(demo):
    pipe, call = demo
    stock, before = run(pipe, call), traces(pipe)
    handle = dattn.apply(pipe, control=Reweight({"red": 0.0}))
    edited, fails = run(pipe, call), Fails()
    with pytest.raises(KeyboardInterrupt), fails.on(pipe):
        run(pipe, call)
    assert torch.equal(run(pipe, call), edited)
    handle.remove()
    assert traces(pipe) == before and torch.equal(run(pipe, call), stock)


def test_on_keeps_pattern_and_controls_that_are_there(demo):
    pipe, call = demo
    handle = dattn.apply(pipe, dattn.Neighborhood(3), control=Reweight({"red": 0.0}))
    both = run(pipe, call)
    with Reweight({"circle": 0.0}).on(pipe) as same:
        assert same is handle and len(handle.controls) == 2
        assert "controls: Reweight, Reweight" in str(handle.report())
        assert (run(pipe, call) - both).abs().max() > 1e-3
    assert len(handle.controls) == 1 and torch.equal(run(pipe, call), both)
    handle.remove()


def test_edits_keep_the_source_and_its_noise(demo):
    pipe, call = demo
    source, edit = call["prompt"], call["prompt"].replace("red", "blue")
    alone = run(pipe, call, source)
    for control in (Replace(), Refine(), [Replace(), LocalBlend(["red", "blue"])]):
        with dattn.apply(pipe, control=control):
            both = run(pipe, call, source, edit)
        torch.testing.assert_close(both[:1], alone, atol=2e-4, rtol=1e-3)
        assert (both[1] - both[0]).abs().max() > 1e-2
        assert (both[1:] - run(pipe, call, edit)).abs().max() > 1e-3


def test_another_call_has_other_prompts(demo):
    pipe, call = demo
    with Reweight({"blue": 0.0}).on(pipe):
        with pytest.raises(ValueError, match="'blue' is not in the prompt"):
            run(pipe, call)
        once = run(pipe, call, call["prompt"].replace("red", "blue"))
        assert torch.equal(run(pipe, call, call["prompt"].replace("red", "blue")), once)


def test_another_pipeline_with_the_same_models_has_no_known_prompt(demo):
    pipe, call = demo
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    with Reweight({"red": 0.0}).on(pipe):
        run(pipe, call)
        with pytest.raises(ValueError, match="the prompt is not known"):
            run(other, call)


def test_skip_layer_guidance_follows_the_prompt():
    pipe, seen = sd3_pipeline(), []
    pipe.set_progress_bar_config(disable=True)

    class Sees(Control):
        def acts(self, place):
            return place.index == 0 and not self.stage.again

        def edit(self, call):
            seen.append((len(call.query), call.rows))
            return call.attend()

    options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent", "max_sequence_length": 16}
    with dattn.apply(pipe, control=[Sees(), Perturb(layers=[1])]):  # the layer that is left out
        pipe(
            "a red circle", skip_guidance_layers=[1], skip_layer_guidance_start=0, skip_layer_guidance_stop=1, **options
        )
    both, weaker = (2, slice(1, 2)), (1, slice(0, 1))
    assert seen == [both, both, weaker, both, weaker]


def test_in_half_precision_edits_are_as_in_single(demo):
    pipe, call = demo
    half = DiffusionPipeline.from_pretrained(pipe.name_or_path).to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    stock, found = run(pipe, call, steps=1), []
    for control in (Reweight({"red circle": 8.0}, renormalize=True), Perturb(scale=10.0, layers=[0])):
        for each in (pipe, half):
            with control.on(each):
                found.append(run(each, call, steps=1).float())
        assert (found[-1] - found[-2]).norm() < 0.4 * (found[-2] - stock).norm()


def test_a_control_serves_one_handle(demo):
    pipe, _ = demo
    control = Reweight({"red": 0.0})
    with pytest.raises(ValueError, match="given twice"):
        dattn.apply(pipe, control=[control, control])
    with dattn.apply(pipe, control=control) as first:
        with pytest.raises(ValueError, match="applied already"):
            first.add(control)
        dattn.apply(pipe, control=control).remove()  # replaces the first
    with pytest.raises(RuntimeError, match="is not applied"):
        _ = control.stage


@pytest.mark.parametrize("control", ["red", 3, [Reweight({"red": 1}), "red"]])
def test_what_is_no_control_is_refused(demo, control):
    with pytest.raises(ValueError, match="give a control"):
        dattn.apply(demo[0], control=control)
