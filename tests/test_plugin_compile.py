"""Compiled models: one graph, the same numbers, gradients, other grids, and a pattern that is exchanged."""

import shutil
import threading

import pytest
import torch
from torch.utils._pytree import tree_map

import dattn
from dattn import Agent, Alike, Clustered, Dense, Neighborhood, PerHead, Radial, Reshaped, TokenMerge
from dattn.processors.compiled import _layers as compiled_layers
from tests.families import CORE as FAMILIES

PATTERNS = {
    "dense": Dense(),
    "radial": Radial(block_size=16),
    "radial-tail": Radial(block_size=16, tail=True),
    "neighborhood": Neighborhood(3),
    "reshaped": Reshaped(Neighborhood(3)),
    "agent": Agent(0.7),
    "alike": Alike(0.4, reuse=2, block_size=16),
    "clustered": Clustered(3, 4, top_p=0.5, first_steps=4, block_size=16),
    "mixed-heads": PerHead((Neighborhood(3), TokenMerge(0.5))),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model, backend="aot_eager"):
    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", ["wan", "cogvideox", "unet"])
def test_one_graph_equals_eager(family, pattern):
    backend = "eager" if family == "unet" else "aot_eager"  # a stock UNet of odd sizes fails under aot_eager
    family = FAMILIES[family]
    model = family.model()
    stock = family.run(model)
    with dattn.apply(model, PATTERNS[pattern]) as handle:
        expected = family.run(model)
        torch.testing.assert_close(family.run(compiled(model, backend)), expected)
        assert all(row["backend"] == "torch" for row in handle.report().to_dict()["layers"])
    assert torch.equal(family.run(model), stock)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_compiled_before_the_first_call_and_on_another_grid(family):
    family = FAMILIES[family]
    model = family.model()
    with dattn.apply(model, PATTERNS["radial"]):
        run = compiled(model)
        first, second = family.run(run), family.run(run, latent=family.other)
        torch.testing.assert_close(first, family.run(model))
        torch.testing.assert_close(second, family.run(model, latent=family.other))


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_applied_to_and_removed_from_a_compiled_model(family):
    family = FAMILIES[family]
    model = family.model()
    run = compiled(model)
    stock = family.run(run)
    with dattn.apply(run, PATTERNS["radial"]):
        sparse = family.run(run)
        torch.testing.assert_close(sparse, family.run(model))  # called as it is in between
        torch.testing.assert_close(family.run(run, latent=family.other), family.run(model, latent=family.other))
    assert not torch.allclose(sparse, stock, atol=1e-3)
    torch.testing.assert_close(family.run(run), stock)


@pytest.mark.parametrize("family", ["wan", "flux"])
def test_repeated_blocks_in_a_thread_that_has_attended_to_nothing_yet(family):
    family, found = FAMILIES[family], []
    model = family.model()
    with dattn.apply(model, PATTERNS["neighborhood"]):
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        thread = threading.Thread(target=lambda: found.append(family.run(model)))
        thread.start()
        thread.join()
    with dattn.apply(family.model(), PATTERNS["neighborhood"]) as handle:
        torch.testing.assert_close(found[0], family.run(handle._patches[0].model))


def test_a_call_that_falls_out_of_a_graph_finds_its_grid():
    family = FAMILIES["flux"]
    model = family.model()
    with dattn.apply(model, PATTERNS["neighborhood"]):
        expected = family.run(model)
        attention = model.transformer_blocks[1].attn
        attention.forward = torch._dynamo.disable(attention.forward)
        torch.testing.assert_close(family.run(torch.compile(model, backend="eager")), expected)


def test_a_handle_that_is_removed_before_the_backward_pass_is_missed():
    family = FAMILIES["wan"]
    model = family.model()
    with dattn.apply(model, PATTERNS["neighborhood"]) as handle:
        output = compiled(model)(**family.inputs(), return_dict=False)[0]
    with pytest.raises(RuntimeError, match="removed before the backward pass"):
        output.sum().backward()
    assert handle.layers[0].pattern is None


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_gradients(family):
    family = FAMILIES[family]
    model = family.model()
    with dattn.apply(model, PATTERNS["radial-tail"]):
        grads = []
        for run in (model, compiled(model)):
            model.zero_grad()
            run(**family.inputs(), return_dict=False)[0].square().sum().backward()
            grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-5)


def test_operators_say_that_they_have_no_gradient_in_a_graph():
    family = FAMILIES["wan"]
    model = family.model()
    with dattn.apply(model, PATTERNS["agent"]):
        output = compiled(model)(**family.inputs(), return_dict=False)[0]
        with pytest.raises(NotImplementedError, match="Agent has no gradient in a compiled model"):
            output.sum().backward()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("family", ["wan", "cogvideox", "flux"])
def test_one_graph_of_inductor(family):
    family = FAMILIES[family]
    model = family.model()
    for pattern in ("radial-tail" if family.name != "flux" else "neighborhood", "alike"):
        with dattn.apply(model, PATTERNS[pattern]):
            expected = family.run(model)
            torch.testing.assert_close(family.run(compiled(model, "inductor")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_one_graph_on_a_gpu(family):
    family = FAMILIES[family]
    model = family.model().cuda().bfloat16()
    move = lambda t: t.cuda().bfloat16() if t.is_floating_point() else t.cuda()
    inputs = tree_map(lambda value: move(value) if isinstance(value, torch.Tensor) else value, family.inputs())
    with torch.no_grad(), dattn.apply(model, PATTERNS["radial-tail"]) as handle:
        expected = model(**inputs, return_dict=False)[0]
        compiled_output = compiled(model, "inductor")(**inputs, return_dict=False)[0]
        assert (compiled_output - expected).norm() <= 0.02 * expected.norm()
        assert all(row["backend"] == "triton" for row in handle.report().to_dict()["layers"])


@pytest.mark.parametrize("width", [8, 12], ids=["", "values of another width"])
def test_the_operator_keeps_pytorchs_rules(width):
    """Its fake results, its gradients, and that it changes no input, as PyTorch itself tries them."""
    family = FAMILIES["wan"]
    model = family.model()
    with dattn.apply(model, PATTERNS["radial"]):
        family.run(model)
        layer = next(layer for layer in compiled_layers.values() if layer.active)
        query, key, value = (torch.randn(1, layer.grid.tokens, 2, w).transpose(1, 2) for w in (8, 8, width))
        tensors = [t.requires_grad_() for t in (query, key, value)]
        arguments = *tensors, layer.number, list(layer.grid.sizes), 0.3, None, None
        torch.library.opcheck(torch.ops.dattn.attend.default, arguments)
