"""Gates that a pipeline teaches: what they learn, and that the pipeline is what it was."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

import dattn
from dattn import Dense, Neighborhood, PerHead
from dattn.apps.gates.blocks import LayerGate, TeachBlocks, divergence
from dattn.apps.gates.heads import HeadGates, Mixed
from dattn.apps.gates.progress import Progress
from dattn.backends import run, weights_of_blocks
from dattn.backends.problem import Problem
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
            gate.learn(sides, TrueWeights().of(sides), 1e-2)
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
        teach = TeachBlocks(SIZE, "largest", 1e-3, Progress(4))
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


def taught(monkeypatch, grid, target="largest", backend="auto", dtype=torch.float64, key_mask=None):
    """Queries and keys, and what a gate is taught of them."""
    generator, told = torch.Generator().manual_seed(5), []
    q, k, v = (torch.randn(2, 2, grid.tokens, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    monkeypatch.setattr(LayerGate, "learn", lambda self, sides, truth, rate: told.append(truth))
    state = {"masks": MaskCache(), "layer": 0}
    teach = TeachBlocks(SIZE, target, 1e-3, Progress(1))
    output, _ = teach.attend(q, k, v, grid, state, scale=0.7, key_mask=key_mask, backend=backend)
    return (q, k, v), told[0], output


def pooled_map(q, k, grid, target, kept):
    """The map of dense attention, pooled over pairs of visual blocks and over the sum of its rows; pair by pair."""
    weights = (q @ k.mT * 0.7).masked_fill(~kept[:, None, None], -torch.inf).softmax(-1)
    edges = range(grid.text_before, grid.text_before + grid.visual, SIZE)
    blocks = [slice(i, min(i + SIZE, grid.text_before + grid.visual)) for i in edges]
    of = {"largest": lambda pair: pair.amax((2, 3)), "total": lambda pair: pair.sum((2, 3))}[target]
    pooled = torch.stack([torch.stack([of(weights[:, :, i, j]) for j in blocks], -1) for i in blocks], 2)
    return pooled / pooled.sum(-1, keepdim=True)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("target", ["largest", "total"])
@pytest.mark.parametrize("grid", [TokenGrid(3, 5, 7), TokenGrid(3, 5, 7, text=(5, 20))])
def test_gates_are_taught_the_pooled_map_of_dense_attention(monkeypatch, grid, target, backend):
    monkeypatch.setattr("dattn.backends.torch_weights.HELD", 3 * SIZE * SIZE)  # several portions both ways
    kept = torch.ones(2, grid.tokens, dtype=torch.bool)
    kept[1, grid.tokens - grid.text_after + 3 :] = False
    (q, k, v), truth, output = taught(monkeypatch, grid, target, backend, key_mask=kept)
    torch.testing.assert_close(truth, pooled_map(q, k, grid, target, kept))
    dense = (q @ k.mT * 0.7).masked_fill(~kept[:, None, None], -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(output, dense)


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **kwargs or {})
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return given


def test_no_map_is_built_to_teach_gates(monkeypatch):
    """Every tensor of a step of training is far below tokens x tokens, the gate's own step too."""
    monkeypatch.setattr("dattn.backends.torch_weights.HELD", 1 << 14)
    monkeypatch.setattr("dattn.backends.torch_blocks.GATHERED", 1 << 14)
    grid = TokenGrid(8, 16, 16)
    q, k, v = (torch.randn(1, 1, grid.tokens, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    teach = TeachBlocks(64, "largest", 1e-3, Progress(1))
    with Largest() as largest, torch.no_grad():
        teach.attend(q, k, v, grid, {"masks": MaskCache(), "layer": 0}, scale=0.3, key_mask=None, backend="torch")
    assert len(teach.gates[0].losses) == 1
    assert grid.tokens * 8 <= largest.numbers <= grid.tokens**2 / 32


def test_weights_of_blocks_in_part_are_refused():
    q = torch.zeros(1, 1, GRID.tokens, 8)
    mask = Neighborhood((3, 3, 3), tile=(2, 2, 2)).mask(GRID)
    assert mask.partial.index.shape[-1]
    with pytest.raises(ValueError, match="visits some in part or pooled; give one of whole blocks"):
        weights_of_blocks("torch", Problem(q, q, q, mask, 1.0), q[..., 0])


def test_weights_of_blocks_that_are_not_visited_are_zero():
    """Lists of every batch row and head group their own; by every backend the sums are those of the output's rows."""
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(2, 4, GRID.tokens, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    partition = Raster().partition(q, k, GRID, SIZE, MaskCache())
    seen = torch.rand(2, 2, 4, 4, generator=generator) > 0.4
    problem = Problem(q, k, k, partition.mask(seen), 0.5)
    _, lse = run("torch", problem)
    wide = seen.repeat_interleave(2, 1)
    allowed = wide.repeat_interleave(SIZE, 2).repeat_interleave(SIZE, 3)
    weights = (q @ k.mT * 0.5).masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0)
    pairs = weights.unflatten(3, (4, SIZE)).unflatten(2, (4, SIZE))
    for backend in ("torch", "reference"):
        largest, total = weights_of_blocks(backend, problem, lse)
        torch.testing.assert_close(largest, pairs.amax((3, 5)))
        torch.testing.assert_close(total, pairs.sum((3, 5)))
        assert (largest == 0).eq(~wide).all()


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
