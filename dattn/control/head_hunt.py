"""``head_hunt``: which attention heads to perturb, found by trying each of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dattn.control.base import Call, Control, Place
from dattn.control.perturb import Perturb

Objective = Callable[[list[Any], list[str]], Any]
"""Pictures or videos and their prompts -> a score, or one for each; more is better."""
Head = Sequence[int]
"""Layer and head."""


def head_hunt(
    pipe: Any,
    objective: Objective,
    *,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    heads: Sequence[Head] | None = None,
    rounds: int = 1,
    keep: int = 3,
    perturb: Perturb | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> dict[str, Any]:
    """Choose heads to perturb, greedily (HeadHunter: Ahn et al., "Where and How to Perturb", 2025).

    In every round each head that is left is perturbed together with those chosen before, for every prompt with every
    seed; the ``keep`` heads of the best mean score are chosen, of equal ones the first. That takes about rounds x heads
    x prompts x seeds calls of the pipeline, for one picture or video each.

    Args:
        pipe: a pipeline; what is applied to it already stays in force.
        objective: from what the pipeline makes, in a list, and its prompts to a score, or one for each; more is better.
        prompts: what to ask for.
        seeds: of the first noise, drawn on the CPU.
        heads: pairs (layer, head) to choose from; None is every head of self-attention and joint attention.
        rounds: how many there are.
        keep: heads chosen in each.
        perturb: how heads are perturbed, without heads or layers of its own; None is ``Perturb()``.
        path: a JSON file that is written after every score. Where it is there, the hunt in it goes on.
        progress: whether to show a bar.
        **call: of the pipeline, such as ``num_inference_steps=20``.

    Returns:
        What is in the file: the heads ``chosen`` in their order, for ``Perturb(heads=…)``; the ``pool`` to choose from;
        ``base``, the score without guidance; of the ``rounds`` all ``scores`` [layer, head, score] and the heads
        ``chosen``; the ``settings``.

    Raises:
        ValueError: arguments out of bounds, a file of another hunt, or a score that is no number.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    template = Perturb() if perturb is None else perturb
    _check(prompts, seeds, rounds, keep, template)
    how = {name: getattr(template, name) for name in ("kind", "strength", "scale", "window", "spare_text")}
    what = {"prompts": prompts, "seeds": seeds, "heads": heads, "rounds": rounds, "keep": keep, "call": call}
    record = _Record(path, {"pipeline": type(pipe), "objective": objective, **what, "perturb": how})
    score = partial(_score, pipe, objective, list(product(prompts, seeds)), call)
    found = record.content
    if "pool" not in found:
        census = _Census()
        base = score(census)
        record.write(base=base, pool=_pool(heads, census.heads, rounds * keep))
    total = sum(len(found["pool"]) - i * keep for i in range(rounds))
    done = sum(len(one["scores"]) for one in found["rounds"])
    with tqdm(total=total, initial=done, desc="head hunt", disable=not progress) as bar:
        for number in range(rounds):
            _run(number, record, lambda heads: score(template.of(heads)), keep, bar.update)
    return found


def _run(
    number: int,
    record: _Record,
    score: Callable[[list[Head]], float],
    keep: int,
    tick: Callable[[], Any],
) -> None:
    """A round, or what is left of it."""
    found = record.content
    if number == len(found["rounds"]):
        found["rounds"].append({"scores": [], "chosen": []})
    own, before = found["rounds"][number], found["chosen"]
    if own["chosen"]:
        return
    left = [head for head in found["pool"] if head not in before]
    for head in left[len(own["scores"]) :]:
        own["scores"].append([*head, score([*before, head])])
        record.write()
        tick()
    best = sorted(own["scores"], key=lambda scored: -scored[-1])[:keep]
    own["chosen"] = [scored[:-1] for scored in best]
    record.write(chosen=before + own["chosen"])


def _score(
    pipe: Any, objective: Objective, pairs: Sequence[tuple[str, int]], call: Mapping[str, Any], control: Control
) -> float:
    """The mean score of what a pipeline makes under a control."""
    with control.on(pipe):
        made = [pipe(prompt=p, generator=torch.Generator().manual_seed(seed), **call)[0][0] for p, seed in pairs]
    scores = torch.as_tensor(objective(made, [prompt for prompt, _ in pairs]), dtype=torch.float64)
    if scores.shape not in ((), (len(pairs),)) or not isfinite(scores.mean()):
        raise ValueError(
            f"objective gave {scores.tolist()}: give a finite number, or one for each of {len(pairs)} pictures"
        )
    return scores.mean().item()


class _Census(Control):
    """Counts the heads of every layer that can be perturbed, and changes nothing."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def acts(self, place: Place) -> bool:
        return place.kind != "cross" and place.index not in self._counts

    def edit(self, call: Call) -> Tensor:
        self._counts[call.place.index] = call.query.shape[1]
        return call.attend()

    @property
    def heads(self) -> list[list[int]]:
        """All of them, as layer and head."""
        return [[layer, head] for layer, count in sorted(self._counts.items()) for head in range(count)]


class _Record:
    """The course of a hunt, in memory and in a file."""

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        settings = json.loads(json.dumps(settings, default=_name))
        self.content: dict[str, Any] = {"settings": settings, "chosen": [], "rounds": []}
        if self._path is not None and self._path.exists():
            self.content = _read(self._path, settings)
        self.write()

    def write(self, **news: Any) -> None:
        """Keep news, and replace the file as a whole."""
        self.content |= news
        if self._path is not None:
            part = self._path.with_name(self._path.name + ".part")
            part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
            os.replace(part, self._path)


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a hunt with these settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        then = content["settings"]
        differ = [name for name in settings if settings[name] != then[name]]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"path={str(path)!r} is no record of a head hunt: give another path") from None
    if differ:
        told = "; ".join(f"{name}={then[name]!r} then, {settings[name]!r} now" for name in differ)
        raise ValueError(
            f"path={str(path)!r} is of a hunt with other settings ({told}): give another path, or delete it"
        )
    return content


def _name(value: Any) -> str:
    """What stands in a record for something that JSON has no word for."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _check(prompts: Sequence[str], seeds: Sequence[int], rounds: int, keep: int, template: Perturb) -> None:
    if not prompts or not seeds:
        raise ValueError(f"prompts={prompts!r}, seeds={seeds!r}: give at least one of each")
    if not all(isinstance(n, int) and n > 0 for n in (rounds, keep)):
        raise ValueError(f"rounds={rounds!r}, keep={keep!r}: give numbers of 1 or more")
    if template.heads is not None or template.layers is not None:
        raise ValueError("perturb= has heads or layers of its own: pass those to choose from as heads= of head_hunt")


def _pool(heads: Sequence[Head] | None, there: list[list[int]], least: int) -> list[list[int]]:
    """The heads to choose from."""
    pool = there if heads is None else [list(head) for head in heads]
    wrong = [head for head in pool if head not in there or pool.count(head) > 1]
    if wrong or len(pool) < least:
        raise ValueError(
            f"heads={heads!r}: the model has {len(there)} heads, from {there[:1]} to {there[-1:]}; give each once, as "
            f"(layer, head), and at least rounds x keep = {least}"
        )
    return pool
