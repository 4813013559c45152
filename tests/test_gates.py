"""Gates that a pipeline teaches: what they learn, and that the pipeline is what it was."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel

import dattn
from dattn import Dense, Neighborhood, PerHead
from dattn.apps.gates.blocks import LayerGate, TeachBlocks, divergence
from dattn.apps.gates.heads import HeadGates, Mixed
from dattn.apps.gates.progress import Progress
from dattn.block_mask import MaskCache
from dattn.grid import TokenGrid
from dattn.orders import Raster
from dattn.scores import Gate, Pooled, Sides, TrueWeights
from dattn.scores.gate import gate_logits
from tests.oracles import attention_oracle

GRID, SIZE = TokenGrid(4, 4, 4), 16


def random_sides(seed=0, heads=2, width=8):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, heads, GRID.tokens, width, generator=generator) for _ in range(2))
    partition = Raster().partition(q, k, GRID, SIZE, MaskCache())
    return Sides(*partition.visual(q, k), partition, MaskCache())


def test_divergence_is_that_of_the_formula():
    truth, logits = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    guess = logits.softmax(-1)
    rows = [
        sum(t * math.log(t / g) for t, g in zip(*pair, strict=True) if t) for pair in zip(truth, guess, strict=True)
    ]
    assert divergence(truth, logits).item() == pytest.approx(sum(map(float, rows)) / 2)


def test_a_fresh_gate_multiplies_means():
    sides = random_sides()
    gate = LayerGate.fresh(sides.query, 1e-3)
    torch.testing.assert_close(gate_logits(sides, *gate.matrices).softmax(-1), Pooled().of(sides))


def test_a_gate_learns_where_the_largest_weights_are():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(8, 8, generator=generator) * 3  # of queries and keys, means say little
    training = [random_sides(seed) for seed in range(20)]
    turned = [sides.of(sides.query, (sides.key**2) @ hidden) for sides in training]
    held_out = random_sides(99)
    held_out = held_out.of(held_out.query, (held_out.key**2) @ hidden)
    gate = LayerGate.fresh(held_out.query, 1e-2)
    truth, before = (
        TrueWeights().of(held_out),
        divergence(TrueWeights().of(held_out), gate_logits(held_out, *gate.matrices)),
    )
    for _ in range(10):
        for sides in turned:
            gate.learn(sides, TrueWeights(), 1e-2)
    after = divergence(truth, gate_logits(held_out, *gate.matrices))
    assert after < 0.7 * before and gate.losses[-1] < gate.losses[0]


def tiny_wan(layers=2):
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
        ffn_dim=16, freq_dim=16, num_layers=layers,
    )  # fmt: skip


def wan_arguments(seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents, text = torch.randn(1, 4, 4, 4, 4, generator=generator), torch.randn(1, 5, 16, generator=generator)
    return {"hidden_states": latents, "timestep": torch.tensor([500]), "encoder_hidden_states": text}


def test_teaching_blocks_changes_no_output_and_writes_what_a_learned_gate_reads(tmp_path):
    model = tiny_wan().eval()
    with torch.no_grad():
        stock = model(**wan_arguments()).sample
        teach = TeachBlocks(SIZE, TrueWeights(), 1e-3, Progress(4))
        with dattn.apply(model, teach):
            for seed in (0, 0):
                output = model(**wan_arguments(seed)).sample
        torch.testing.assert_close(output, stock, atol=1e-5, rtol=1e-5)
        teach.save(tmp_path / "gate.safetensors")
        sides = random_sides(width=16)
        for layer, gate in teach.gates.items():
            assert len(gate.losses) == 2 and gate.losses[1] < gate.losses[0]
            read = Gate(str(tmp_path / "gate.safetensors")).at(layer).of(sides)
            torch.testing.assert_close(read, gate_logits(sides, *gate.matrices).softmax(-1).detach())
        pattern = dattn.LearnedGate(str(tmp_path / "gate.safetensors"), topk=2, block_size=SIZE)
        with dattn.apply(model, pattern) as handle:
            model(**wan_arguments())
            assert all(0.5 <= layer["density"] < 1 for layer in handle.report().to_dict()["layers"])


def test_mixed_attention_is_the_mixture_by_gates():
    gates = HeadGates(0.1, 0.5)
    gates.values[0] = torch.tensor([0.25, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 2, GRID.tokens, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    local = Neighborhood((3, None, None))
    state = {"masks": MaskCache(), "layer": 0, "layers": 1, "step": 0}
    made, _ = Mixed(local, gates).attend(q, k, v, GRID, state, scale=0.3, key_mask=None, backend="auto")
    full, _ = attention_oracle(q, k, v, torch.ones(GRID.tokens, GRID.tokens, dtype=torch.bool), 0.3)
    near, _ = attention_oracle(q, k, v, local.allowed(GRID), 0.3)
    torch.testing.assert_close(made[:, 0], 0.25 * full[:, 0] + 0.75 * near[:, 0])
    torch.testing.assert_close(made[:, 1], full[:, 1])


def test_heads_that_lose_nothing_by_their_pattern_are_found():
    """In every layer the first head's local pattern is dense attention itself: its gate has no reason to stay open."""
    model, gates = tiny_wan().eval(), HeadGates(0.1, 0.5)
    local = PerHead((Dense(), Neighborhood((1, 1, 1))))
    with torch.no_grad():
        stock = model(**wan_arguments()).sample
    with dattn.apply(model, Mixed(local, gates)), gates.learning(model), torch.no_grad():
        for _ in range(12):
            output = model(**wan_arguments(), return_dict=False)[0]
    torch.testing.assert_close(output, stock, atol=1e-5, rtol=1e-5)
    assert len(gates.errors) == 12
    for row in gates.values.values():
        assert row[0] == 0 and row[1] > 0.05
    recipe = gates.recipe(Neighborhood(3), 0.5)
    assert [p.patterns for _, p in recipe.layers] == [(Neighborhood(3), Dense())] * 2


def test_the_model_is_what_it_was_after_an_exception():
    model, gates = tiny_wan(), HeadGates(0.1, 0.5)
    wanting = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="stop"), gates.learning(model):
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError("stop")
    assert [p.requires_grad for p in model.parameters()] == wanting and "forward" not in vars(model)


@pytest.mark.parametrize(
    ("dense", "kept"), [(0.0, set()), (0.5, {(0, 1), (1, 0)}), (1.0, {(0, 0), (0, 1), (1, 0), (1, 1)})]
)
def test_a_recipe_keeps_the_largest_gates_dense(dense, kept):
    gates = HeadGates(0.1, 0.5, values={0: torch.tensor([0.2, 0.9]), 1: torch.tensor([0.4, 0.4])})
    layers = gates.recipe(Neighborhood(3), dense).layers
    found = {(row[0], head) for row, p in layers for head, one in enumerate(p.patterns) if one == Dense()}
    assert found == kept


def test_a_local_pattern_is_clamped_to_small_grids():
    fitted, note = Mixed(Neighborhood(9), HeadGates(0.1, 0.5)).fit(GRID)
    assert fitted.local == Neighborhood(9).fit(GRID)[0] and note
