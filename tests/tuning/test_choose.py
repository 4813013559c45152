"""Choices are the best there are: compared with all of them, and monotone in the bound."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dattn.tuning.choose import NEVER, Choice, Place, choices, efficient, least_loss, least_time, uniform


def places_of(seed, count=2, candidates=3, heads=2, fixed=0.1):
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        each = np.sort(random.random(candidates))[::-1]
        error = np.sort(random.random((candidates, heads)), axis=0)
        error[0] = 0  # dense attention
        made.append(Place(error, random.random(), fixed * random.random(candidates), each, int(random.integers(1, 9))))
    return made


def every_choice(places):
    """(loss, seconds) of all assignments of at most two candidates to a place."""
    options = []
    for place in places:
        candidates, heads = place.error.shape
        some = [h for h in product(range(candidates), repeat=heads) if len(set(h)) <= 2]
        options.append([(place.loss_of(h), place.seconds_of(h)) for h in some])
    return [tuple(map(sum, zip(*one, strict=True))) for one in product(*options)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_no_choice_is_beaten(seed):
    """Nothing is both faster and nearer than what was found."""
    places = places_of(seed)
    every = every_choice(places)
    for one in choices(places):
        assert not any(loss <= one.loss + 1e-12 and seconds < one.seconds - 1e-9 for loss, seconds in every), (
            "a choice with no more loss is faster"
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 2), st.floats(0, 2))
def test_a_looser_bound_is_never_slower(seed, loss, more):
    found = choices(places_of(seed, 4, 5, 3))
    tight, loose = least_time(found, loss), least_time(found, loss + more)
    assert loose.seconds <= tight.seconds
    assert tight.loss <= loss  # dense attention always is
    slow, fast = least_loss(found, 5 + more), least_loss(found, 5)
    assert slow.loss <= fast.loss


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_same_figures_the_same_choice(seed):
    assert choices(places_of(seed)) == choices(places_of(seed))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_efficient_choices_are_those_that_none_beats(figures):
    found = [Choice((), float(loss), float(seconds)) for loss, seconds in figures]
    kept = {(one.loss, one.seconds) for one in efficient(found)}
    for one in found:
        beaten = any(
            (o.loss <= one.loss and o.seconds < one.seconds) or (o.loss < one.loss and o.seconds <= one.seconds)
            for o in found
        )
        assert ((one.loss, one.seconds) in kept) != beaten


def test_no_loss_is_dense_and_any_loss_is_the_fastest():
    places = places_of(3, 3, 4, 4)
    found = choices(places)
    assert set(sum(found[0].heads, ())) == {0} and found[0].loss == 0
    fastest = sum(min(p.seconds_of([c] * 4) for c in range(4)) for p in places)
    assert found[-1].seconds == pytest.approx(fastest)


def test_a_bound_that_cannot_be_met_gives_the_nearest():
    found = choices(places_of(3))
    assert least_loss(found, 0.0) == found[-1]


def test_launches_count():
    """Two candidates in one place are worth it where a launch costs little, and not where it costs much."""
    error = np.array([[0.0, 0.0], [0.0, 9.0]])
    cheap = Place(error, 1.0, np.array([0.0, 0.01]), np.array([1.0, 0.1]), 1)
    dear = Place(error, 1.0, np.array([0.0, 2.0]), np.array([1.0, 0.1]), 1)
    assert cheap.best(1.0) == (1, 0) and dear.best(1.0) == (0, 0)


@pytest.mark.parametrize("ranges", [(0, 0, 1, 1), (0, 1, 2, 3)])
def test_one_for_all_from_a_range_on(ranges):
    """Every candidate but dense attention, from every range on: by hand."""
    places = places_of(5, 4)
    found = {one.heads: (one.loss, one.seconds) for one in uniform(places, ranges)}
    assert len(found) == 2 * len(set(ranges))
    for begin, one in product(set(ranges), (1, 2)):
        heads = tuple((one if number >= begin else 0,) * 2 for number in ranges)
        pairs = list(zip(places, heads, strict=True))
        by_hand = sum(p.loss_of(h) for p, h in pairs), sum(p.seconds_of(h) for p, h in pairs)
        assert found[heads] == pytest.approx(by_hand)


def test_where_it_was_not_looked_at_attention_stays_dense():
    seen, unseen = places_of(1)
    unseen.error[1] = NEVER
    assert [one.heads for one in uniform([seen, unseen], [0, 0])] == [((1, 1), (0, 0)), ((2, 2), (2, 2))]


def test_nothing_to_choose():
    place = Place(np.zeros((1, 2)), 1.0, np.zeros(1), np.ones(1), 3)
    assert choices([place])[0].heads == ((0, 0),)
    assert uniform([place], [0]) == []


@pytest.mark.parametrize("harm", [0.0, 1.0])
def test_what_was_not_looked_at_is_never_chosen(harm):
    """However fast it is, and whether or not errors do harm here; the others are chosen among as without it."""
    error = np.array([[0.0, 0.0], [NEVER, NEVER], [0.1, 0.3]])
    place = Place(error, harm, np.zeros(3), np.array([3.0, 0.1, 1.0]), 1)
    found = choices([place])
    assert all(1 not in heads for one in found for heads in one.heads)
    assert found[-1].heads == ((2, 2),)
