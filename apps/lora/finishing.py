"""What a run leaves: the LoRA, loaded back and compared, its recipe, and a record from which it can be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dattn
from dattn.norms import NORMS

from ..loading import resolve
from ..record import fingerprint, provenance, write_json
from .adapting import loaded_back, save
from .cache import Example, Prepared
from .loop import Trainer
from .norms import Norms
from .subject import Subject

SAME = 1e-3
"""Outputs with a LoRA before and after saving differ at most by this share of the largest."""


def finish(
    options: Any,
    subject: Subject,
    trainer: Trainer,
    prepared: Prepared,
    told: Sequence[Mapping[str, float]],
    argv: Sequence[str],
    norms: Norms | None,
) -> None:
    """LoRA, recipe and record; the LoRA is loaded back and compared.

    Raises:
        ValueError: it gives something else than in training.
    """
    output, arguments = options.output, trainer.forward_arguments()
    beside = {} if norms is None else norms.weights()
    path = save(subject.pipeline, subject.component, subject.model, output, beside)
    if norms is not None:
        norms.settle()
    dattn.remove(subject.model)
    untrained = None if norms is None else norms.untrained()
    error = loaded_back(subject.pipeline, subject.component, subject.model, output, arguments, untrained)
    if not error <= SAME:
        raise ValueError(
            f"{path}: loaded back, it changes the model's output by {error:.2%}; the last checkpoint in {output} has "
            "what was trained"
        )
    use = f"pipe.load_lora_weights({str(output)!r})"
    if (output / NORMS).is_file():
        use += f" and dattn.load_norms(pipe, {str(output)!r})"
    start, end = options.train_window
    if subject.attention is not None:
        subject.write_recipe(output / "recipe.json", arguments, start)
    recipe = None if subject.attention is None else str(output / "recipe.json")
    if (start, end) != (0, 1):
        use += f" and dattn.apply(pipe, {recipe!r}, control=dattn.control.LoRAWindow(({start:g}, {end:g})))"
    elif recipe is not None:
        use += f" and dattn.apply(pipe, {recipe!r})"
    record = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "examples": len(prepared.examples),
        "model": _model(options),
        "data": _data(prepared.examples),
        "held_out": _data(prepared.held_out),
        "skipped": prepared.skipped,
        "processes": trainer.accelerator.num_processes,
        "loaded_back_error": error,
        "seconds_per_step": float(np.median([one["seconds"] for one in told if "seconds" in one] or [0])),
        "last": told[-1] if told else None,
        **provenance("train-lora", argv),
    }
    write_json(output / "run.json", record)
    print(f"LoRA in {path}; use it with {use}")


def _model(options: Any) -> dict[str, str | None]:
    """What tells the model from others of its name: the weights of a folder, the commit of a hub model."""
    source = resolve(str(options.model))
    if isinstance(source, Path):
        return {"name": source.resolve().name, "weights": fingerprint(source), "commit": None}
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(source, "model_index.json", revision=options.revision)
    return {"name": source, "weights": None, "commit": Path(file).parent.name if isinstance(file, str) else None}


def _data(examples: Sequence[Example]) -> dict[str, Any]:
    """What tells data from other data: the files' contents, captions and sizes, in their order."""
    lines = [f"{one.content} {one.size} {one.caption!r}" for one in examples]
    return {"examples": len(examples), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
