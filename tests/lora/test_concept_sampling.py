"""Which concepts a step is about, and where its error counts."""

from collections import Counter
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dattn.apps.lora.concept_masks import SIDE
from dattn.apps.lora.concept_sampling import chances, drawn, scores_of, subsets, told
from dattn.apps.lora.concepts import Concept
from dattn.apps.lora.loop import Batch, _laid_over
from dattn.apps.lora.personal import CLEAR, Personal, Weights
from dattn.apps.lora.tokens import NewTokens

from .test_personal import random, stock

CONCEPTS = [Concept("<new1>", "circle"), Concept("<new2>", "square"), Concept("<new3>", "triangle")]
CAPTION = "a <new1> circle above a <new2> square"


@pytest.fixture(scope="module")
def tokens():
    return NewTokens(stock(), ["<new1>", "<new2>", "<new3>"], ["red", "blue", "green"])


def personal(tokens, sampling, **more):
    return Personal(SimpleNamespace(), tokens, CONCEPTS, Weights(), 1e-3, sampling, **more)


def test_sets_are_all_that_are_not_empty():
    bits = [tuple(i for i, yes in zip((0, 2, 3), flags, strict=True) if yes) for flags in product((0, 1), repeat=3)]
    assert sorted(subsets([0, 2, 3])) == sorted(b for b in bits if b)


def test_chances_are_those_of_the_formula():
    sets, scores = subsets([0, 2]), torch.tensor([0.5, 9.0, 0.1])
    assert chances(sets, "uniform", scores).tolist() == pytest.approx([1 / 3] * 3)
    weights = {(0,): 1 / 0.5, (2,): 1 / 0.1, (0, 2): (1 / 0.5 + 1 / 0.1) / 2}
    expected = [weights[members] / sum(weights.values()) for members in sets]
    assert chances(sets, "reweighted", scores).tolist() == pytest.approx(expected)
    assert chances(sets, "reweighted", torch.full((3,), 0.2)).tolist() == pytest.approx([1 / 3] * 3)


def test_draws_follow_the_chances():
    sets, generator = subsets([0, 1]), torch.Generator().manual_seed(0)
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    counts = Counter(drawn(sets, weights, generator) for _ in range(3000))
    assert [counts[members] / 3000 for members in sets] == pytest.approx(weights.tolist(), abs=0.03)


def test_scores_are_means_in_masks():
    words, masks = random(3, 6, 6), (random(3, 6, 6, seed=1) > 0.5).double()
    masks[2] = 0
    inside = [[float(words[i, y, x]) for y in range(6) for x in range(6) if masks[i, y, x]] for i in range(2)]
    assert scores_of(words, masks).tolist() == pytest.approx([sum(part) / len(part) for part in inside] + [0])


def test_a_caption_of_some_alone():
    assert told(CONCEPTS, (1,)) == "a <new2> square"
    assert told(CONCEPTS, (0, 2)) == "a <new1> circle and a <new3> triangle"


def test_a_step_is_about_what_its_caption_names(tokens):
    masks = torch.zeros(3, SIDE, SIDE)
    masks[0, :8], masks[1, 20:] = 1, 1
    ours = personal(tokens, "uniform", masks={7: masks}, scores={7: torch.ones(3)})
    generator, seen = torch.Generator().manual_seed(0), {}
    for _ in range(40):
        caption, area = ours.about(7, CAPTION, generator)
        seen[caption] = area
    assert seen.keys() == {CAPTION, "a <new1> circle", "a <new2> square"}  # not the third, which it does not name
    assert torch.equal(seen["a <new1> circle"], masks[0]) and torch.equal(seen["a <new2> square"], masks[1])
    assert torch.equal(seen[CAPTION], masks[:2].amax(0))


@pytest.mark.parametrize(
    ("sampling", "caption"), [("all", CAPTION), ("uniform", "a red circle"), ("uniform", ""), ("uniform", CAPTION)]
)
def test_a_step_is_about_the_whole_picture(tokens, sampling, caption):
    """Where nothing is chosen, nothing is named, or, as here, a concept has no mask."""
    masks = torch.zeros(3, SIDE, SIDE)
    masks[0, :8] = 1
    ours = personal(tokens, sampling, masks={0: masks}, scores={0: torch.ones(3)})
    assert ours.about(0, caption, torch.Generator()) == (caption, None)


def test_the_error_counts_in_the_area_alone():
    batch, area = object.__new__(Batch), (random(SIDE, SIDE) > 0.5).double()
    batch._guidance = None
    prediction, target = random(2, 4, 16, 16, seed=1).float(), random(2, 4, 16, 16, seed=2).float()
    batch._area, batch.weights = _laid_over([area, None], target), torch.ones(2)
    inside = F.interpolate(area[None, None], (16, 16), mode="bilinear", align_corners=False)[0]
    first = ((prediction[0] - target[0]).double() * inside).square().sum()
    expected = (first + (prediction[1] - target[1]).double().square().sum()) / prediction.numel()
    assert batch.loss(prediction, target).item() == pytest.approx(expected.item(), rel=1e-5)
    batch._area = _laid_over([None, None], target)
    assert batch.loss(prediction, target).item() == pytest.approx(F.mse_loss(prediction, target).item(), rel=1e-6)
    batch.weights = torch.tensor([2.0, 0.0])  # of noise levels
    expected = 2 * F.mse_loss(prediction[0], target[0]) / 2
    assert batch.loss(prediction, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_masks_are_looked_for_when_it_is_time(tokens, monkeypatch):
    """Those that are not like the ones before are dropped; the scores are those of now."""
    first, other, looks = torch.zeros(3, SIDE, SIDE), torch.zeros(3, SIDE, SIDE), []
    first[:, 2:14, 2:14], other[:, 16:, 16:] = 1, 1
    found = iter([first, other, first.clone()])

    def of(self, example, forward):
        looks.append((example, forward(example, CLEAR)))
        return next(found), torch.full((3, SIDE, SIDE), 0.1 * len(looks))

    monkeypatch.setattr(Personal, "_found", of)
    ours = personal(tokens, "uniform", every=2)
    for step in range(5):
        ours.look(step, 1, lambda example, level: level)
        assert torch.equal(ours.masks[0], first)
    assert looks == [(0, CLEAR)] * 3
    torch.testing.assert_close(ours.scores[0], torch.full((3,), 0.3))
    again = personal(tokens, "uniform")
    again.restore(ours.state())
    assert torch.equal(again.masks[0], first) and torch.equal(again.scores[0], ours.scores[0])
    never = personal(tokens, "all")
    never.look(0, 1, lambda example, level: pytest.fail("nobody asked for masks"))
    once = personal(tokens, "uniform", every=0, masks={0: first})
    once.look(4, 1, lambda example, level: pytest.fail("they are kept"))
