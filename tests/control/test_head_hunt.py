"""``head_hunt`` chooses the best heads, goes on where it was interrupted, and leaves the pipeline alone."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import dattn
from dattn.control.head_hunt import head_hunt
from dattn.control.perturb import Perturb
from tests.families import FAMILIES

FAMILY = FAMILIES["wan"]
ALL = [[layer, head] for layer in range(3) for head in range(2)]
PROMPTS, SEEDS = ["a cat", "two dogs"], [3, 4]


class TinyPipeline:
    """A tiny Wan that makes one latent of a prompt, without guidance."""

    def __init__(self):
        self.transformer, self.scheduler = FAMILY.model(), FlowMatchEulerDiscreteScheduler()

    @torch.no_grad()
    def __call__(self, prompt, generator, num_inference_steps=1):
        latents = torch.randn(FAMILY.inputs()["hidden_states"].shape, generator=generator)
        text = FAMILY.inputs(seed=len(prompt))["encoder_hidden_states"]
        self.scheduler.set_timesteps(num_inference_steps)
        for time in self.scheduler.timesteps:
            guess = self.transformer(latents, time[None], text, return_dict=False)[0]
            latents = self.scheduler.step(guess, time, latents, return_dict=False)[0]
        return (list(latents),)


def loudness(latents, prompts):
    """A score for each."""
    return [latent.abs().mean().item() + len(prompt) / 100 for latent, prompt in zip(latents, prompts, strict=True)]


def directly(pipe, pairs, perturb=None, steps=1):
    """The mean score with some heads perturbed, without a hunt."""
    perturb = perturb or Perturb()
    control = () if not pairs else perturb.of(pairs)
    with dattn.apply(pipe, control=control):
        scores = [
            loudness(pipe(prompt, torch.Generator().manual_seed(seed), steps)[0], [prompt])[0]
            for prompt in PROMPTS
            for seed in SEEDS
        ]
    return sum(scores) / len(scores)


def hunt(pipe, objective=loudness, **options):
    options = {"prompts": PROMPTS, "seeds": SEEDS, "keep": 2, "progress": False} | options
    return head_hunt(pipe, objective, **options)


def test_each_round_takes_the_best_beside_those_before():
    pipe, perturb = TinyPipeline(), Perturb("uniform", 0.5, 2.0)
    result = hunt(pipe, rounds=2, perturb=perturb, num_inference_steps=2)
    assert result["pool"] == ALL
    assert result["base"] == pytest.approx(directly(pipe, [], steps=2), abs=1e-6)
    before = []
    for one in result["rounds"]:
        left = [head for head in ALL if head not in before]
        wanted = [directly(pipe, [*before, head], perturb, 2) for head in left]
        assert [scored[:2] for scored in one["scores"]] == left
        assert [scored[2] for scored in one["scores"]] == pytest.approx(wanted, abs=1e-6)
        assert len(set(wanted)) == len(wanted)
        order = sorted(range(len(left)), key=lambda i: -wanted[i])
        assert one["chosen"] == [left[i] for i in order[:2]]
        before += one["chosen"]
    assert result["chosen"] == before
    assert json.loads(json.dumps(result)) == result
    assert Perturb(heads=result["chosen"])


def test_the_same_hunt_finds_the_same():
    assert hunt(TinyPipeline()) == hunt(TinyPipeline())


@pytest.mark.parametrize("count", [0, 1, 6, 7, 9])
def test_an_interrupted_hunt_goes_on(tmp_path, count):
    options = {"prompts": "a cat", "seeds": 3, "rounds": 2}
    path, calls = tmp_path / "hunt.json", []

    def interrupted(latents, prompts):
        if len(calls) == count and not path.with_suffix(".stop").exists():
            path.with_suffix(".stop").touch()
            raise KeyboardInterrupt
        calls.append(1)
        return loudness(latents, prompts)

    with pytest.raises(KeyboardInterrupt):
        hunt(TinyPipeline(), interrupted, path=path, **options)
    part = json.loads(path.read_text())
    assert sum(len(one["scores"]) for one in part["rounds"]) == max(0, count - 1)
    result = hunt(TinyPipeline(), interrupted, path=path, **options)
    assert len(calls) == 1 + 6 + 4  # nothing twice
    assert json.loads(path.read_text()) == result
    whole = hunt(TinyPipeline(), **options)
    assert {**whole, "settings": {}} == {**result, "settings": {}}
    assert hunt(TinyPipeline(), interrupted, path=path, **options) == result
    assert len(calls) == 11
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hunt.json", "hunt.stop"]


def test_heads_to_choose_from_and_one_score_for_all():
    result = hunt(TinyPipeline(), lambda latents, prompts: 1.0, heads=[(2, 1), (0, 0), (1, 1)])
    assert result["pool"] == [[2, 1], [0, 0], [1, 1]]
    assert result["chosen"] == [[2, 1], [0, 0]]  # of equal ones the first
    assert result["rounds"][0]["scores"] == [[2, 1, 1.0], [0, 0, 1.0], [1, 1, 1.0]]


def test_the_pipeline_stays_as_it_was():
    pipe = TinyPipeline()
    stock = pipe("a cat", torch.Generator().manual_seed(0))[0][0]
    hunt(pipe)
    assert torch.equal(pipe("a cat", torch.Generator().manual_seed(0))[0][0], stock)
    with dattn.apply(pipe, dattn.Neighborhood((1, 3, 3))) as handle:
        sparse = pipe("a cat", torch.Generator().manual_seed(0))[0][0]
        assert hunt(pipe)["base"] != hunt(TinyPipeline())["base"]
        assert handle.controls == ()
        assert torch.equal(pipe("a cat", torch.Generator().manual_seed(0))[0][0], sparse)


def test_progress_is_shown_on_request(capsys):
    hunt(TinyPipeline(), heads=[(0, 0), (1, 0)])
    assert capsys.readouterr().err == ""
    hunt(TinyPipeline(), heads=[(0, 0), (1, 0)], progress=True)
    assert "head hunt: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"seeds": [3]}, {"perturb": Perturb(strength=0.5)}, {"num_inference_steps": 2}, {"rounds": 2}]
)
def test_other_settings_are_refused(tmp_path, change):
    path = tmp_path / "hunt.json"
    hunt(TinyPipeline(), path=path)
    before = path.read_text()
    with pytest.raises(ValueError, match=r"other settings \((seeds|perturb|call|rounds)="):
        hunt(TinyPipeline(), path=path, **change)
    assert path.read_text() == before


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "7"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "hunt.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no record of a head hunt"):
        hunt(TinyPipeline(), path=path)
    assert path.read_text() == text


@pytest.mark.parametrize("scores", [float("nan"), [1.0], [1.0, 2.0, 3.0, float("inf")], []])
def test_scores_that_are_none(scores):
    with pytest.raises(ValueError, match="give a finite number, or one for each of 4"):
        hunt(TinyPipeline(), lambda latents, prompts: scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "at least one of each"),
        ({"seeds": []}, "at least one of each"),
        ({"rounds": 0}, "numbers of 1 or more"),
        ({"keep": 2.5}, "numbers of 1 or more"),
        ({"perturb": Perturb(heads=[0])}, "as heads= of head_hunt"),
        ({"perturb": Perturb(layers=[0])}, "as heads= of head_hunt"),
        ({"heads": [(0, 0), (3, 0)]}, r"6 heads, from \[\[0, 0\]\] to \[\[2, 1\]\]"),
        ({"heads": [(0, 0), (0, 0)]}, "each once"),
        ({"heads": [(0, 0)]}, "rounds x keep = 2"),
        ({"rounds": 4}, "rounds x keep = 8"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        hunt(TinyPipeline(), **options)
