"""Models spread over processes: context parallelism of Diffusers, two processes on CPU."""

import socket
import sys
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import ContextParallelConfig
from hypothesis import given
from hypothesis import strategies as st

import dattn
from dattn import (
    Agent,
    BlockCausal,
    Dense,
    FirstOrder,
    Grouped,
    Neighborhood,
    PerHead,
    ProxyHeads,
    Pyramid,
    Radial,
    Selected,
    SlidingTile,
    TokenGrid,
    TokenMerge,
)
from dattn.control import OrderShift
from dattn.head_share import HeadShare
from dattn.processors.heart import attending, dispatched
from dattn.processors.parallel import heads_of, tokens_of
from dattn.scores import Joined, Pooled
from dattn.selection import TopK
from dattn.token_parts import between
from tests.families import CORE

PROCESSES = 2
PATTERNS = {
    "static": Radial(block_size=16),
    "static-per-head": SlidingTile(2, ((1, 1, 3), (3, 1, 1), (1, 3, 1))),
    "dynamic-per-head": Selected(Pooled(), TopK(0.4), block_size=16),
    "pairs": PerHead((Grouped(2, "cross"), Neighborhood(3))),
    "operators": PerHead((Neighborhood(3), FirstOrder(Grouped(2)), Dense())),
}


@given(work=st.lists(st.floats(0, 10), min_size=1, max_size=40), processes=st.integers(1, 8))
def test_every_head_has_one_process_and_the_load_is_balanced(work, processes):
    if len(work) < processes:
        with pytest.raises(ValueError, match="lower ulysses_degree"):
            heads_of(work, processes)
        return
    heads = heads_of(work, processes)
    assert sorted(chain(*heads)) == list(range(len(work)))
    loads = [sum(work[h] for h in mine) for mine in heads]
    assert max(loads) - min(loads) <= max(work) + 1e-9


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    text=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    processes=st.integers(1, 5),
)
def test_every_token_has_one_process(shape, text, processes):
    grid = TokenGrid(*shape, text=text)
    parts = tokens_of(grid, processes)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(grid.tokens))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 2  # one for each stream


def test_what_is_cut_together_is_one_stream():
    parts = tokens_of(TokenGrid(4, 2, 3, text=(6, 0)), 2, one_stream=True)
    assert [part.tolist() for part in parts] == [[*range(15)], [*range(15, 30)]]


def test_a_share_of_the_heads_has_their_masks():
    grid, pattern = TokenGrid(5, 6, 5, text=2), PATTERNS["static-per-head"]
    mask, allowed = pattern.for_heads((1, 4, 5), 6).mask(grid), pattern.allowed(grid)
    assert torch.equal(mask.to_dense(), allowed[[0, 2, 2]])
    assert torch.equal(HeadShare(pattern, (1, 4, 5), 6).allowed(grid), allowed[[0, 2, 2]])
    assert PATTERNS["static"].for_heads((1,), 6).mask(grid).groups == 1


def test_controls_do_not_know_tokens_of_other_processes():
    chain = SimpleNamespace(acting=(OrderShift(),))
    layer = SimpleNamespace(controlled=True, active=True, chain=chain, name="blocks.0.attn1", begin=lambda: None)
    config = SimpleNamespace(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    query = torch.zeros(1, 4, 2, 8)
    with attending(layer), pytest.raises(ValueError, match="OrderShift at blocks.0.attn1 under context parallelism"):
        dispatched(query, query, query, parallel_config=config)


@pytest.mark.parametrize(
    "pattern",
    [ProxyHeads(2), Pyramid(score=Joined()), Agent(0.7), TokenMerge(0.5), PerHead((Dense(), Agent(0.7)))],
)
def test_heads_that_choose_together_cannot_be_spread(pattern):
    with pytest.raises(ValueError, match="looks at all heads together"):
        pattern.for_heads((0, 3), 4)


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def made(name):
    return CORE[name].model(num_attention_heads=5)


def spread(name, way):
    """A model over the processes; Diffusers asks for an accelerator, so it is told of one."""
    model = made(name)
    with (
        mock.patch("torch.accelerator.device_count", return_value=1),
        mock.patch("torch._C._get_accelerator", return_value=torch.device("cpu")),
    ):
        model.enable_parallelism(config=ContextParallelConfig(**{f"{way}_degree": PROCESSES, f"{way}_anything": True}))
    return model


def gather(tensor, dim, group):
    """Diffusers' gathering of parts of any size, which the CPU's processes can only do as objects."""
    parts = [None] * PROCESSES
    torch.distributed.all_gather_object(parts, tensor.detach(), group)
    return torch.cat(parts, dim)


def work(rank, port, name, pattern, way, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    model = spread(name, way)
    gathering = mock.patch("diffusers.hooks.context_parallel._all_gather_anything", gather)
    with gathering, dattn.apply(model, pattern) as handle:
        output = CORE[name].call(model, CORE[name].inputs(2))
        assert {row.backend for row in handle.report().layers} == {"torch"}
        output.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for grad in grads.values():
        torch.distributed.all_reduce(grad)
    if rank == 0:
        torch.save((output.detach(), grads), folder / "result.pt")
    torch.distributed.destroy_process_group()


SLOW = [("wan", "static", "ulysses"), ("wan", "operators", "ulysses"), ("flux", "dynamic-per-head", "ulysses")]
SLOW += [("flux", "pairs", "ring")]
TRIED = [
    ("wan", "static-per-head", "ulysses"),
    ("wan", "dynamic-per-head", "ulysses"),
    ("flux", "static", "ulysses"),
    ("wan", "static-per-head", "ring"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
]


@pytest.mark.parametrize(("name", "pattern", "way"), TRIED)
def test_two_processes_are_one(tmp_path, monkeypatch, name, pattern, way):
    """75 or 63 picture tokens in halves, 6 of text, 5 heads: nothing divides."""
    family, pattern = CORE[name], PATTERNS[pattern]
    model = made(name)
    with dattn.apply(model, pattern):
        expected = family.call(model, family.inputs(2))
        expected.square().mean().backward()
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1])])  # what new processes import from
    mp.spawn(work, (free_port(), name, pattern, way, tmp_path), PROCESSES)
    output, grads = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(output, expected.detach())
    for parameter, grad in grads.items():
        says = lambda text, at=parameter: f"{at}: {text}"
        torch.testing.assert_close(grad, model.get_parameter(parameter).grad, msg=says)


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    text=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    processes=st.integers(1, 4),
    pattern=st.sampled_from([Radial(block_size=16), Neighborhood(1), PATTERNS["pairs"], Dense()]),
)
def test_the_masks_between_parts_are_the_mask(shape, text, processes, pattern):
    grid = TokenGrid(*shape, text=text)
    pattern = pattern.fit(grid)[0]
    whole, parts = pattern.allowed(grid), tokens_of(grid, processes)
    length = max(map(len, parts))
    for rows, columns in product(parts, parts):
        mask = between(pattern.mask(grid), rows, columns, length)
        wanted = whole[..., rows, :][..., columns]
        if mask is None:
            assert not wanted.any()
            continue
        dense = mask.to_dense()
        assert torch.equal(dense[..., : len(rows), : len(columns)], wanted.expand(*dense.shape[:-2], -1, -1))
        assert dense.sum() == wanted.expand(*dense.shape[:-2], -1, -1).sum()


def test_keys_that_nobody_sees_stay_where_they_are():
    grid = TokenGrid(4, 3, 5)
    first, last = tokens_of(grid, 2)
    mask = BlockCausal(1).mask(grid)
    assert between(mask, first, last, 30) is None
    assert between(mask, last, first, 30).density == 1
    with pytest.raises(ValueError, match="leave the tail out"):
        between(Radial(block_size=16, tail=True).mask(grid), first, last, 30)
