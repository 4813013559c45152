"""Operators against naive definitions in float64, what they keep between steps, and what they refuse."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dattn import (
    Agent,
    Bias,
    Clustered,
    Dense,
    FirstOrder,
    Grouped,
    InLine,
    Neighborhood,
    PerHead,
    PerLayer,
    PerStep,
    Radial,
    RadialBias,
    Reshaped,
    Selected,
    SignificanceTail,
    TokenGrid,
    TokenMerge,
    attention,
    pattern_from_dict,
    pattern_from_string,
)
from dattn.block_mask import MaskCache
from dattn.operators import reshaped
from dattn.operators.merging import Merging
from dattn.scores import Pooled
from dattn.selection import TopK
from tests.oracles import (
    agent_oracle,
    attention_oracle,
    in_line_oracle,
    merge_oracle,
    merged_oracle,
    own_tail_oracle,
)

GRID = TokenGrid(3, 5, 6, text=(2, 3))
GRIDS = st.builds(
    TokenGrid, st.integers(1, 3), st.integers(2, 7), st.integers(2, 7), st.tuples(st.integers(0, 3), st.integers(0, 3))
)


def inputs(grid=GRID, batch=2, heads=4, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, grid.tokens, dim, generator=generator, dtype=dtype) for _ in range(3)]


def per_sample(function, *tensors):
    return torch.stack([function(*(t[i] for t in tensors)) for i in range(len(tensors[0]))])


def text(grid):
    return grid.text_before, grid.text_after


@given(GRIDS, st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_what_is_merged(grid, ratio):
    features = inputs(grid, batch=1, heads=2)[0]
    merging = Merging.of(features, grid, ratio, MaskCache())
    groups = merge_oracle(features[0], grid.shape, text(grid), ratio)
    assert merging.count == len(groups) == grid.tokens - min(int(grid.visual * ratio), grid.visual - grid.frames)
    for number, group in enumerate(groups):
        assert merging.target[0, group].eq(number).all()


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_token_merge(ratio):
    q, k, v = inputs()

    def oracle(q, k, v):
        return merged_oracle(q, k, v, merge_oracle(k, GRID.shape, text(GRID), ratio), 8**-0.5)

    torch.testing.assert_close(attention(q, k, v, TokenMerge(ratio), GRID), per_sample(oracle, q, k, v))


@pytest.mark.parametrize("ratio", [0.4, 0.85])
def test_agent(ratio):
    q, k, v = inputs()

    def oracle(q, k, v):
        groups = merge_oracle(q, GRID.shape, text(GRID), ratio)
        return agent_oracle(q, k, v, groups, text(GRID), 0.5, 0.3, 0.075)

    torch.testing.assert_close(attention(q, k, v, Agent(ratio), GRID, scale=0.5), per_sample(oracle, q, k, v))


def test_merging_tokens_that_are_equal_within_a_cell_is_exact():
    """Cells of 2 x 2 of one colour each: merged threefold, every cell is one token, and weighs what it weighed."""
    grid = TokenGrid(2, 4, 6)
    spread = lambda t: t.unflatten(2, (2, 2, 3)).repeat_interleave(2, 3).repeat_interleave(2, 4).flatten(2, 4)
    q, k, v = (spread(t[:, :, :12]) for t in inputs(grid))
    torch.testing.assert_close(attention(q, k, v, TokenMerge(0.75), grid), attention(q, k, v, Dense(), grid))


@pytest.mark.parametrize("feature", ["identity", "relu", "exp"])
def test_in_line(feature):
    q, k, v = inputs()
    mapped = {"identity": lambda x: x, "relu": torch.relu, "exp": torch.exp}[feature]
    expected = in_line_oracle(mapped(q), mapped(k), v, 8**-0.5)
    torch.testing.assert_close(attention(q, k, v, InLine(feature), GRID), expected)


def biased_oracle(q, k, v, bias, scale=8**-0.5):
    logits = q @ k.mT * scale + bias
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


@pytest.mark.parametrize("heads", [None, 4])
@pytest.mark.parametrize("count", ["tokens", "visual"])
def test_bias(heads, count):
    q, k, v = inputs()
    shape = ([heads] if heads else []) + [getattr(GRID, count), 2]
    phi_q, phi_k = (torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
    bias = torch.zeros(*shape[:-2], GRID.tokens, GRID.tokens, dtype=torch.float64)
    place = slice(None) if count == "tokens" else slice(2, 2 + GRID.visual)
    bias[..., place, place] = phi_q @ phi_k.mT
    output, lse = attention(q, k, v, Bias(phi_q, phi_k), GRID, return_lse=True)
    expected = biased_oracle(q, k, v, bias)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(lse, expected[1])


def distances(grid):
    at = grid.coordinates().double()
    return torch.cdist(at, at) ** 2


def test_radial_bias_over_a_pattern():
    q, k, v = inputs()
    bias = torch.zeros(GRID.tokens, GRID.tokens, dtype=torch.float64)
    bias[2 : 2 + GRID.visual, 2 : 2 + GRID.visual] = -0.2 * distances(GRID)
    pattern = Neighborhood(3)
    blocked = bias.masked_fill(~pattern.allowed(GRID), -torch.inf)
    output, lse = attention(q, k, v, RadialBias(0.2, pattern=pattern), GRID, return_lse=True)
    expected = biased_oracle(q, k, v, blocked)
    torch.testing.assert_close(output, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_split_makes_short_channels_exact(dtype):
    """A logit error of 1e-3 at most, where channels in one piece would be off by 0.05 and more."""
    grid = TokenGrid(1, 32, 32)
    q, k, v = (torch.zeros(1, 1, grid.tokens, 16, dtype=dtype) for _ in range(3))
    v[..., :] = torch.randn(grid.tokens, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, lse = attention(q, k, v, RadialBias(0.1), grid, return_lse=True)
    exact = (-0.1 * distances(grid)).logsumexp(-1)
    assert (lse[0, 0] - exact).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operator", [Agent(0.7), TokenMerge(0.5), InLine(), RadialBias(0.05)], ids=lambda o: o.name)
def test_short_precisions(operator, dtype):
    """The error against float64 is at most a few roundings of the largest value; what is merged may not change."""
    q, k, v = (t.to(dtype).double() for t in inputs())
    expected = attention(q, k, v, operator, GRID)
    got = attention(*(t.to(dtype) for t in (q, k, v)), operator, GRID)
    assert got.dtype == dtype
    assert (got.double() - expected).abs().max() < 4 * torch.finfo(dtype).eps * v.abs().max()


EVERY = [
    Agent(0.7),
    TokenMerge(0.5),
    InLine(),
    RadialBias(0.1, pattern=Neighborhood(2)),
    FirstOrder(Grouped(1, reach=0)),
    PerHead((Agent(0.6), Neighborhood(2))),
]


@pytest.mark.parametrize("operator", EVERY, ids=lambda o: o.name)
@pytest.mark.parametrize("width", [3, 24])
def test_values_of_another_width(operator, width):
    """Column by column the values are mapped alike, however many there are."""
    q, k, _ = inputs()
    values = inputs(dim=width, seed=1)[2]
    output = attention(q, k, values, operator, GRID)
    assert output.shape == values.shape
    few = attention(q, k, values[..., -2:], operator, GRID)
    torch.testing.assert_close(output[..., -2:], few)


@pytest.mark.parametrize("operator", EVERY, ids=lambda o: o.name)
def test_masked_keys_say_nothing(operator):
    """What padded text holds changes nothing; a sample of which nothing is kept gives 0."""
    kept = torch.ones(2, GRID.tokens, dtype=torch.bool)
    kept[0, -2:] = False
    q, k, v = inputs()
    first = attention(q, k, v, operator, GRID, key_mask=kept)
    for t in (q, k, v):
        t[0, :, -2:] = 7.0
    changed = attention(q, k, v, operator, GRID, key_mask=kept)
    torch.testing.assert_close(first[:, :, :-2], changed[:, :, :-2])
    nothing = attention(q, k, v, operator, GRID, key_mask=torch.zeros_like(kept))
    assert nothing.eq(0).all()


def masses(q, k, v, pattern, grid):
    """O_full, O_S, ρ and R of one call, from dense matrices."""
    everything = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool)
    full, lse_full = attention_oracle(q, k, v, everything, q.shape[-1] ** -0.5)
    sparse, lse = attention_oracle(q, k, v, pattern.allowed(grid), q.shape[-1] ** -0.5)
    share = (lse - lse_full).exp()
    return full, sparse, share, full - share[..., None] * sparse


def call(operator, tensors, state, grid=GRID):
    with torch.no_grad():
        return operator.attend(*tensors, grid, state, scale=8**-0.5, key_mask=None, backend="auto")


@pytest.mark.parametrize("density_window", [3, (1, 1, 2)])
def test_reshaped_follows_its_formula(density_window):
    """The second is 2 of 90 tokens, the density of a few per cent that the paper has."""
    pattern = Neighborhood(density_window)
    operator, state = Reshaped(pattern, refresh=4, growth=0.04), {}
    before = inputs(seed=0)
    full, _, share, rest = masses(*before, pattern, GRID)
    out, lse = call(operator, before, state)
    torch.testing.assert_close(out, full)
    for age in (1, 2, 3):
        now = inputs(seed=age)
        _, sparse, _, _ = masses(*now, pattern, GRID)
        out, lse = call(operator, now, state)
        torch.testing.assert_close(out, (share + 0.04 * age)[..., None] * sparse + rest)
        assert lse is not None and lse.isfinite().all()
    torch.testing.assert_close(call(operator, before, state)[0], full)  # the fifth call is a refresh


@pytest.mark.parametrize("residual", ["full", "cached"])
@pytest.mark.parametrize("pattern", [Neighborhood(3), Radial(block_size=16), PerHead((Neighborhood(3), Grouped(2)))])
def test_reshaped_stays_exact_on_unchanged_inputs(residual, pattern):
    operator, state, tensors = Reshaped(pattern, refresh=9, growth=0.0, residual=residual), {}, inputs()
    full = call(operator, tensors, state)[0]
    for _ in range(4):
        out, lse = call(operator, tensors, state)
        torch.testing.assert_close(out, full)
        if residual == "full":
            everything = torch.ones(GRID.tokens, GRID.tokens, dtype=torch.bool)
            torch.testing.assert_close(lse, attention_oracle(*tensors, everything, 8**-0.5)[1])


def test_residuals_by_block_and_none():
    pattern, tensors = Neighborhood(3), inputs()
    _, sparse, share, rest = masses(*tensors, pattern, GRID)
    states = {}
    for residual in ("pooled", "none"):
        operator, states[residual] = Reshaped(pattern, growth=0.0, residual=residual), {}
        call(operator, tensors, states[residual])
        out = call(operator, tensors, states[residual])[0]
        expected = share[..., None] * sparse
        if residual == "pooled":
            layout, size = pattern.mask(GRID).query, pattern.mask(GRID).block_size
            for slots in layout.slots(0, 0, size):
                members = slots[slots >= 0]
                expected[:, :, members] += rest[:, :, members].mean(2, keepdim=True)
        torch.testing.assert_close(out, expected)


def test_a_residual_serves_one_shape_only():
    operator, state = Reshaped(Neighborhood(3)), {}
    call(operator, inputs(), state)
    other = TokenGrid(3, 4, 4)
    tensors = inputs(other)
    torch.testing.assert_close(call(operator, tensors, state, other)[0], attention(*tensors, Dense(), other))
    single = inputs(other, batch=1)
    torch.testing.assert_close(call(operator, single, state, other)[0], attention(*single, Dense(), other))


def test_memory_is_counted_before_it_is_taken(monkeypatch):
    operator, state = Reshaped(Neighborhood(3, tile=(1, 4, 4))), {"sharing": (4, 10)}
    tensors = inputs(dtype=torch.float32)
    assert operator.memory(GRID, 2, 4, 8, torch.float32) == 2 * 4 * GRID.tokens * (8 + 1) * 4
    pooled = Reshaped(operator.pattern, residual="pooled").memory(GRID, 2, 4, 8, torch.float32)
    assert pooled == 2 * 4 * GRID.tokens * 4 + 2 * 4 * GRID.tokens * 8 * 4 // 16
    monkeypatch.setattr(reshaped, "free_memory", lambda device: 5 * 2 * 4 * GRID.tokens * 9 * 4)
    with pytest.raises(ValueError, match=r"in each of 10 layers .* residual='pooled'"):
        call(operator, tensors, state)
    assert not any(isinstance(value, reshaped._Kept) for value in state.values())
    monkeypatch.setattr(reshaped, "free_memory", lambda device: 7 * 2 * 4 * GRID.tokens * 9 * 4)
    with pytest.warns(UserWarning, match=r"keeps 0.00 GB in each of 2 layers"):
        call(operator, tensors, {"sharing": (0, 2)})
    monkeypatch.undo()
    assert reshaped.free_memory(torch.device("cpu")) > 0
    call(operator, tensors, state)
    assert operator.held(state) == operator.memory(GRID, 2, 4, 8, torch.float32)


def test_only_what_keeps_is_counted(monkeypatch):
    """Dense at every step keeps nothing; of a layer's heads the parts are counted together; other layers are not."""
    tensors, of_layer = inputs(), Reshaped(Neighborhood(3)).memory(GRID, 2, 4, 8, torch.float64)
    monkeypatch.setattr(reshaped, "free_memory", lambda device: 1.9 * of_layer)
    call(Reshaped(Neighborhood(3), refresh=1), tensors, {"sharing": (0, 4)})
    halves = PerHead((Reshaped(Neighborhood(1)), Reshaped(Neighborhood(2))))
    one = PerHead((Reshaped(Neighborhood(1)), Reshaped(Neighborhood(1))))
    assert halves.keeping(0, 2) == one.keeping(0, 2) == 2
    for operator in (halves, one):
        with pytest.raises(ValueError, match="left: use residual"):
            call(operator, tensors, {"sharing": (0, 4)})  # two layers
        with pytest.warns(UserWarning, match="dattn: Reshaped"):
            call(operator, tensors, {"sharing": (2, 4)})  # the second of them
    here = PerLayer({0: Reshaped(Neighborhood(1))}, Neighborhood(1))
    assert [here.keeping(layer, 3) for layer in range(3)] == [1, 0, 0]
    assert PerStep({0: Dense(), 0.5: halves}).keeping(0, 2) == 2


def test_a_second_refresh_needs_no_more_memory(monkeypatch):
    operator, state, tensors = Reshaped(Neighborhood(3), refresh=2), {"sharing": (0, 10)}, inputs()
    each = operator.memory(GRID, 2, 4, 8, torch.float64)
    left = iter([10 * each])
    monkeypatch.setattr(reshaped, "free_memory", lambda device: next(left))  # asked once
    with pytest.warns(UserWarning, match="in each of 10 layers"):
        for _ in range(6):
            call(operator, tensors, state)


def test_a_residual_serves_the_next_step_of_the_same_terms_only():
    tensors, pattern = inputs(), Neighborhood(3)
    dense = attention(*tensors, Dense(), GRID)
    state = {"step": 0}
    call(Reshaped(pattern, residual="none"), tensors, state)
    state["step"] = 1
    assert not torch.allclose(call(Reshaped(pattern, residual="none"), tensors, state)[0], dense)
    state["step"] = 3  # one was missed
    torch.testing.assert_close(call(Reshaped(pattern, residual="none"), tensors, state)[0], dense)
    state["step"] = 4
    torch.testing.assert_close(call(Reshaped(pattern, residual="cached"), tensors, state)[0], dense)


def test_masked_keys_say_nothing_between_refreshes():
    operator, kept = Reshaped(Neighborhood(3), growth=0.0), torch.ones(2, GRID.tokens, dtype=torch.bool)
    kept[0, -2:], kept[1] = False, False
    tensors, state, outputs = inputs(), {}, []
    options = {"scale": 8**-0.5, "key_mask": kept, "backend": "auto"}
    with torch.no_grad():
        operator.attend(*tensors, GRID, state, **options)
        for filling in (0.0, 9.0):
            for t in tensors[1:]:
                t[0, :, -2:] = filling
            outputs.append(operator.attend(*tensors, GRID, state, **options))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert outputs[0][0][1].eq(0).all() and outputs[0][1][1].eq(-torch.inf).all()


def test_reshaped_has_no_gradient():
    tensors = [t.requires_grad_() for t in inputs()]
    with pytest.raises(RuntimeError, match="has no gradient"):
        attention(*tensors, Reshaped(Neighborhood(3)), GRID)


TAILS = {"first-order": FirstOrder, "significance": SignificanceTail}


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(
    ("pattern", "run"), [(Radial(0.3, False, 32), 16), (Grouped((1, 3, 3), reach=0), True), (Neighborhood(3), 16)]
)
@pytest.mark.parametrize("kind", TAILS)
def test_tails_of_their_own(kind, pattern, run, padded):
    grid = TokenGrid(9, 3, 5, text=(2, 3))
    tensors, kept = inputs(grid), None
    if padded:
        kept = torch.rand(2, grid.tokens, generator=torch.Generator().manual_seed(3)) > 0.3
        kept[:, 0] = True
    mask = pattern.mask(grid)
    assert mask.density < 1
    size = mask.block_size if run is True else run
    ours = attention(*tensors, TAILS[kind](pattern, run), grid, scale=0.4, key_mask=kept, return_lse=True)
    visual = slice(2, 2 + grid.visual) if kind == "significance" else None
    expected = own_tail_oracle(*tensors, mask, pattern.allowed(grid), size, 0.4, kept, visual)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize(
    "pattern", [Selected(Pooled(), TopK(0.3), block_size=16), Clustered(5, 8, top_p=0.4, block_size=16)]
)
def test_tails_of_dynamic_patterns(kind, pattern):
    """Every sample and head has lists of its own, and is what it would be alone."""
    tensors = inputs(heads=2)
    together = attention(*tensors, TAILS[kind](pattern), GRID, return_lse=True)
    for b, h in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = [t[b : b + 1, h : h + 1] for t in tensors]
        mask = pattern.mask_for(*alone[:2], GRID)
        visual = slice(2, 92) if kind == "significance" else None
        expected = own_tail_oracle(*alone, mask, mask.to_dense(), 16, 8**-0.5, None, visual)
        for a, e in zip(together, expected, strict=True):
            torch.testing.assert_close(a[b, h], e[0, 0])


def test_a_run_by_significance_never_counts_more_than_its_keys():
    """Jensen: the log-sum with the tail is at most the true one, and it is more than that of plain means here."""
    grid, pattern = TokenGrid(8, 4, 4), Radial(0.3, False, 16)
    q, k, v = inputs(grid)
    q = q + 2 * q.mean(2, keepdim=True) + 3
    full, plain, significant = (
        attention(q, k, v, p, grid, return_lse=True)[1]
        for p in (Dense(), Radial(0.3, False, 16, tail=True), SignificanceTail(pattern))
    )
    assert (significant <= full + 1e-9).all() and (plain <= full + 1e-9).all()
    assert (full - significant).mean() < (full - plain).mean()


@pytest.mark.parametrize("kind", TAILS)
def test_tails_of_equal_tokens_are_exact(kind):
    """Identical tokens in a block: its mean stands for each of them, and there is no slope."""
    grid, pattern = TokenGrid(8, 4, 4), Radial(0.3, False, 16)
    q, k, v = inputs(grid)
    k, v = (t[:, :, ::16].repeat_interleave(16, 2) for t in (k, v))
    assert pattern.mask(grid).density < 1
    torch.testing.assert_close(attention(q, k, v, TAILS[kind](pattern), grid), attention(q, k, v, Dense(), grid))


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize("size", [1, 40])
def test_gradients_of_a_tail_are_finite_on_ragged_blocks(kind, size):
    """Also where weights are so sharp that some of them vanish."""
    grid = TokenGrid(3, 5, 7, text=(3, 4))
    tensors = [(size * t).requires_grad_() for t in inputs(grid)]
    kept = torch.rand(2, grid.tokens, generator=torch.Generator().manual_seed(3)) > 0.3
    for key_mask in (None, kept):
        output = attention(*tensors, TAILS[kind](Radial(0.3, False, 32)), grid, key_mask=key_mask)
        for grad in torch.autograd.grad(output.square().sum(), tensors):
            assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("kind", TAILS)
def test_gradients_of_a_tail_where_a_sample_sees_nothing(kind):
    grid, pattern = TokenGrid(8, 4, 4), Radial(0.3, False, 16)
    tensors = [t.requires_grad_() for t in inputs(grid)]
    kept = torch.ones(2, grid.tokens, dtype=torch.bool)
    kept[1] = False
    output = attention(*tensors, TAILS[kind](pattern), grid, key_mask=kept)
    assert output[1].eq(0).all()
    for grad in torch.autograd.grad(output.square().sum(), tensors):
        assert grad.isfinite().all() and grad[1].eq(0).all() and grad[0].any()


def test_first_order_with_head_groups():
    grid, q_k_v = TokenGrid(9, 3, 5), inputs(TokenGrid(9, 3, 5))
    both = PerHead((Radial(0.3, False, 16), Grouped((1, 3, 3), reach=0)))
    together = attention(*q_k_v, FirstOrder(both), grid)
    for heads, pattern in ((slice(0, 2), both.patterns[0]), (slice(2, 4), both.patterns[1])):
        alone = attention(*(t[:, heads] for t in q_k_v), FirstOrder(pattern), grid)
        torch.testing.assert_close(together[:, heads], alone)


def test_operators_and_masks_share_the_heads():
    q, k, v = inputs()
    mixed = attention(q, k, v, PerHead((Neighborhood(3), Agent(0.7))), GRID)
    torch.testing.assert_close(
        mixed[:, :2], attention(q[:, :2], k[:, :2], v[:, :2], Neighborhood(3), GRID), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(mixed[:, 2:], attention(q[:, 2:], k[:, 2:], v[:, 2:], Agent(0.7), GRID))


def test_a_placed_pattern_beside_an_operator():
    q, k, v = inputs()
    mixed = attention(q, k, v, PerHead((PerLayer({0: Radial()}), Agent(0.5))), GRID)
    torch.testing.assert_close(mixed[:, :2], attention(q, k, v, Radial(), GRID)[:, :2])
    assert pattern_from_string("PerHead((radial, Agent(0.5)))") == PerHead((Radial(), Agent(0.5)))


def test_layers():
    pattern = PerLayer({0: Radial(), (2, 3): Neighborhood(3)}, Grouped(2))
    found = [pattern.at(layer, 5, 0, 10) for layer in range(5)]
    assert found == [Radial(), Grouped(2), Neighborhood(3), Neighborhood(3), Grouped(2)]
    q, k, v = inputs()
    torch.testing.assert_close(attention(q, k, v, pattern, GRID), attention(q, k, v, Radial(), GRID))
    only = PerLayer({0: Agent(0.7)})
    torch.testing.assert_close(attention(q, k, v, only, GRID), attention(q, k, v, Agent(0.7), GRID))


def test_steps():
    pattern = PerStep({0: Neighborhood(5), 0.5: Neighborhood(3), 9: Grouped(2)})
    found = [pattern.at(0, 5, step, 10) for step in range(10)]
    assert found == [Neighborhood(5)] * 5 + [Neighborhood(3)] * 4 + [Grouped(2)]
    assert pattern.at(0, 5, 0, 1) == Neighborhood(5)
    assert PerStep({0: Dense(), 0.3: Grouped(2)}).at(0, 5, 1, 4) == Dense()
    few = PerStep({0: PerLayer({1: Radial()}, Dense())})
    assert [few.at(layer, 2, 3, 4) for layer in range(2)] == [Dense(), Radial()]
    q, k, v = inputs()
    at_once = PerStep({0: Dense(), 0.1: Neighborhood(5), 0.2: Neighborhood(3)})
    assert [at_once.at(0, 1, step, 4) for step in range(2)] == [Dense(), Neighborhood(3)]
    pattern = PerStep({0.5: Dense(), 0: Neighborhood(3)})
    torch.testing.assert_close(attention(q, k, v, pattern, GRID), attention(q, k, v, Neighborhood(3), GRID))


@pytest.mark.parametrize(
    "operator",
    [
        Reshaped(Radial(decay=0.5), refresh=3, residual="pooled"),
        FirstOrder(Radial(), 32),
        Agent(0.8, shortcut=0.0),
        TokenMerge(0.5),
        RadialBias(0.1, pattern=Neighborhood(3)),
        InLine("relu"),
        PerHead((Agent(0.5), Reshaped(Radial()))),
        PerLayer({0: Radial(), (2, 3): Agent(0.5)}, Dense()),
        PerStep({0: Dense(), 0.25: Radial()}),
    ],
    ids=lambda o: o.name,
)
def test_round_trips(operator):
    assert pattern_from_dict(json.loads(json.dumps(operator.to_dict()))) == operator
    assert pattern_from_string(repr(operator)) == operator
    assert hash(operator) == hash(pattern_from_string(repr(operator)))


def test_a_bias_round_trips_as_numbers():
    bias = Bias([[1.0], [2.0]], [[3.0], [4.0]])
    again = pattern_from_dict(json.loads(json.dumps(bias.to_dict())))
    assert torch.equal(again.phi_q, bias.phi_q) and torch.equal(again.phi_k, bias.phi_k)
    assert bias == bias and bias != again and hash(bias) != hash(again)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reshaped(Neighborhood(3), refresh=0), "refresh=0"),
        (lambda: Reshaped(Neighborhood(3), growth=-1), "growth=-1"),
        (lambda: Reshaped(Neighborhood(3), residual="half"), "residual='half'"),
        (lambda: Reshaped(Agent(0.5)), "Reshaped works on a static pattern"),
        (lambda: Reshaped("radial"), "pattern='radial'"),
        (lambda: FirstOrder(Radial(tail=True)), "none to the pattern"),
        (lambda: FirstOrder(Radial(), 24), "tail=24"),
        (lambda: FirstOrder(InLine()), "FirstOrder works on a pattern"),
        (lambda: Agent(0), "ratio=0"),
        (lambda: Agent(1.0), "ratio=1.0"),
        (lambda: Agent(0.5, shortcut=-1), "shortcut=-1"),
        (lambda: TokenMerge(True), "ratio=True"),
        (lambda: InLine("tanh"), "feature='tanh'"),
        (lambda: RadialBias(0), "alpha=0"),
        (lambda: RadialBias(0.1, pattern=Agent(0.5)), "RadialBias works on a static pattern"),
        (lambda: Bias([[1.0]], [[1.0, 2.0]]), "phi_q and phi_k of"),
        (
            lambda: Bias([[1.0]], [[1.0]]).channels(GRID, torch.device("cpu"), MaskCache()),
            "for 1 tokens on a grid of 95",
        ),
        (lambda: PerLayer({}), "layers={}"),
        (lambda: PerLayer({-1: Radial()}), "counted from 0"),
        (lambda: PerLayer({0: Radial(), (0, 1): Dense()}), "each layer once"),
        (lambda: PerLayer({0: "radial"}), "'radial' in PerLayer"),
        (lambda: PerStep({}), "one of them from 0 on"),
        (lambda: PerStep(5), "steps=5"),
        (lambda: PerLayer(Radial()), "give a dict"),
        (lambda: InLine([]), r"feature=\[\]"),
        (lambda: Agent(0.5, float("nan")), "scale_power=nan"),
        (lambda: attention(*inputs(), Bias(torch.ones(3, 95, 1), torch.ones(3, 95, 1)), GRID), "3 heads on 4"),
        (lambda: attention(*inputs(), FirstOrder(PerHead((Radial(tail=True),))), GRID), "a tail of its own"),
        (lambda: PerStep({0.5: Dense()}), "one of them from 0 on"),
        (lambda: PerStep({0: Dense(), 1.5: Dense()}), "begin=1.5"),
        (lambda: PerStep({0: "dense"}), "'dense' in PerStep"),
        (lambda: PerLayer({7: Radial()}).at(0, 6, 0, 1), "the model has 6 self-attention layers"),
        (lambda: PerHead((Agent(0.5), Dense())).mask(GRID), "an operator has no mask"),
        (lambda: attention(*inputs(), Agent(0.5), GRID, return_lse=True), "Agent has no sum of exponentials"),
        (lambda: attention(*inputs(), Agent(0.5), GRID, backend="triton"), "made of PyTorch's own operations"),
        (lambda: pattern_from_string("Reshaped(open('x'))"), "unknown pattern 'open'"),
        (lambda: pattern_from_string("Reshaped(Radial(decay=[1 + 2 * 3]))"), "is no pattern"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
