"""One run: subject and data are brought together, the loop runs, and what it leaves is checked and told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dattn
from dattn.control.base import check_window

from . import sharding, sharing
from .adapting import add_lora, targets
from .asking import Size
from .cache import Cache, Prepared, load_told
from .checkpoints import checkpoints, read, step_of
from .finishing import finish
from .holdout import hold_out, validated_on
from .items import Item
from .loop import Settings, Trainer, put_back
from .norms import Norms, normalising
from .objective import Noise, Objective, objective_of
from .optimizing import Optimizing, optimizing_of
from .options import parser
from .order import Order
from .personal import personal_of
from .subject import Subject, subject_of
from .validation import Validation

STEPS = 1000
"""Of a run that nothing else is said of."""
PATIENCE = timedelta(hours=24)
"""How long processes wait for the one that prepares data or makes samples."""
NEW_WORDS = (
    *("placeholder_token", "initializer_token", "concept"),
    *("binding_weight", "masking_weight", "token_learning_rate", "concept_sampling", "mask_steps"),
)
"""Options of new words, which stay the same where a run goes on."""
KEPT = (
    *("model", "component", "seed", "train_batch_size", "gradient_accumulation_steps"),
    *("caption_dropout", "weighting_scheme", "distill"),
)
"""Options that stay the same where any run goes on, or it would not be the unbroken one."""
CHOSEN = (
    *("lora_dropout", "logit_mean", "logit_std", "mode_scale", "snr_gamma", "use_8bit_adam", "train_norms"),
    *("train_window", "teach_epochs", "distill_guidance"),
)
"""More of them, which are told only where they are another than the default."""
DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def train(
    options: Any,
    attention: Any,
    buckets: Sequence[Size],
    items: Sequence[Item],
    validated: Sequence[Item],
    argv: Sequence[str],
) -> None:
    """Train, and write LoRA, recipe and record.

    Args:
        validated: what to validate on; with none, a part of the items is held out.

    Raises:
        ValueError: data or model that cannot be trained; a LoRA that does not load as it was trained.
    """
    _check_output(options)
    accelerator = _accelerator(options)
    optimizing = optimizing_of(options, accelerator.num_processes)
    first = accelerator.is_main_process
    options.output.mkdir(parents=True, exist_ok=True)
    subject = subject_of(options, attention, str(accelerator.device), DTYPES[accelerator.mixed_precision])
    names, objective, noise = _checked(options, subject)
    personal = personal_of(options, subject)
    prepared = _prepared(options, subject, buckets, items, validated, accelerator)
    _check_captions(prepared, options)
    options.max_train_steps = _steps(options, prepared, accelerator.num_processes)
    done = step_of(options.output, options.resume_from_checkpoint)
    prompts = options.validation_prompts if first else []
    validation = Validation(subject, prompts, buckets[0], options, done) if prompts else None
    subject.put_away("" if personal is None else "text_encoder")
    learning, norms = _adapted(subject, names, options)
    if options.gradient_checkpointing:
        subject.model.enable_gradient_checkpointing()
    moment = subject.sparse(options.distill, [] if personal is None else personal.controls)
    settings = _settings(options, names, optimizing, noise, prepared, accelerator)
    trainer = Trainer(accelerator, subject.model, prepared, objective, settings, moment, personal, norms)
    trainer.resume()
    if first:
        _say(prepared, learning, len(names), trainer.step, options.max_train_steps)
        if validation is not None and accelerator.is_fsdp2:
            print("samples of the validation prompts before and after training, none on the way: the model is in parts")
    on_the_way = personal is None and not accelerator.is_fsdp2  # new words watch single captions
    told = _run(trainer, options, accelerator, validation if on_the_way else None)
    trainer.write()
    if first:
        if accelerator.is_fsdp2:
            subject, norms = _whole(subject, names, options, trainer)
        with accelerator.autocast():
            finish(options, subject, trainer, prepared, told, argv, norms)
            if personal is not None:
                files = [str(path) for path in personal.tokens.save(options.output)]
                print(f"new words in {', '.join(files)}; before the LoRA: pipe.load_textual_inversion({files})")
        accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # or latents come out in another type
        if validation is not None:
            validation.after(subject)
        trainer.forget()
        if options.push_to_hub:
            print(f"uploaded to {sharing.push(options)}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _adapted(subject: Subject, names: Sequence[str], options: Any) -> tuple[int, Norms | None]:
    """Put on a subject's model what learns: how many numbers that is, and normalisation if it is among it."""
    alpha = options.lora_alpha or options.rank
    learning = add_lora(subject.model, names, options.rank, alpha, options.seed, options.lora_dropout)
    norms = Norms(subject.model, options.norm_learning_rate) if options.train_norms else None
    learning += [] if norms is None else norms.parameters.values()
    return sum(parameter.numel() for parameter in learning), norms


def _whole(subject: Subject, names: Sequence[str], options: Any, trainer: Trainer) -> tuple[Subject, Norms | None]:
    """In place of a subject whose model is in parts: it anew, with what the checkpoint of this step has."""
    accelerator = trainer.accelerator
    again = subject_of(options, subject.attention, str(accelerator.device), DTYPES[accelerator.mixed_precision])
    again.put_away()
    _, norms = _adapted(again, names, options)
    state = read(options.output, f"checkpoint-{trainer.step}")
    assert state is not None
    put_back(again.model, norms, state.weights)
    return again, norms


def _prepared(
    options: Any,
    subject: Subject,
    buckets: Sequence[Size],
    items: Sequence[Item],
    validated: Sequence[Item],
    accelerator: Any,
) -> Prepared:
    """Data to train on and, unless nothing is validated, to validate on; one process makes what is not there yet."""
    quiet = not accelerator.is_main_process
    with accelerator.main_process_first():
        cache = Cache(
            options.cache_dir or options.output / "cache", subject.pipeline, subject.model, subject.call, options.fps
        )
        prepared = cache.prepare(items, buckets, quiet=quiet)
        if validated:
            return validated_on(prepared, cache.prepare(validated, buckets, quiet=quiet))
    return hold_out(prepared, options.validation_split, options.seed) if options.validation_steps else prepared


def _accelerator(options: Any) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available

    torch.backends.cuda.matmul.allow_tf32 |= options.allow_tf32
    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if options.report_to and not there[options.report_to]():
        raise ValueError(f"--report_to {options.report_to}: not installed; pip install {options.report_to}")
    kwargs = [DistributedDataParallelKwargs(find_unused_parameters=True), InitProcessGroupKwargs(timeout=PATIENCE)]
    made = Accelerator(
        mixed_precision=options.mixed_precision,
        log_with=options.report_to,
        project_config=ProjectConfiguration(str(options.output), str(options.output / (options.logging_dir or ""))),
        kwargs_handlers=kwargs,
    )
    sharding.prepare(made, options)
    if made.mixed_precision == "fp16" and made.device.type == "cpu":  # accelerate would not scale the loss there
        raise ValueError("--mixed_precision fp16: not on a CPU, where small gradients would be lost; take bf16 or no")
    return made


def _check_output(options: Any) -> None:
    """Raise where an earlier run's checkpoints are in the way, or the hub takes nothing from here."""
    found = checkpoints(options.output)
    if found and options.resume_from_checkpoint is None:
        raise ValueError(
            f"--output {options.output} has {found[-1].name} of an earlier run: go on with --resume_from_checkpoint "
            "latest, or name another folder"
        )
    if options.push_to_hub:
        sharing.check(options)


def _checked(options: Any, subject: Subject) -> tuple[list[str], Objective, Noise]:
    """Layers that get LoRA, what is predicted, at which noise; what cannot be trained is said before it takes long."""
    if not hasattr(subject.pipeline, "save_lora_weights"):
        raise ValueError(f"{type(subject.pipeline).__name__} loads no LoRA in Diffusers")
    with dattn.apply(subject.model, subject.attention, dense_steps=0, **subject.schedule):
        names = targets(subject.model, options.target_modules)
    if options.train_norms:
        normalising(subject.model)
    window = check_window("train_window", tuple(options.train_window))
    objective = replace(objective_of(subject.pipeline.scheduler, subject.between), window=window)
    scheme = options.weighting_scheme or ("logit_normal" if objective.kind == "flow" else "none")
    noise = Noise(scheme, options.logit_mean, options.logit_std, options.mode_scale, options.snr_gamma)
    objective.check(noise)
    return names, objective, noise


def _check_captions(prepared: Prepared, options: Any) -> None:
    """Raise where captions of one batch would be of different lengths."""
    for size, nothing in prepared.nothing.items():
        files = {example.told for example in prepared.examples if example.size == size}
        files |= {nothing} if options.caption_dropout or options.distill_guidance else set()
        shapes = {tuple((name, tuple(x.shape)) for name, x in sorted(load_told(file).items())) for file in files}
        if len(shapes) > 1 and options.distill_guidance:
            raise ValueError(
                f"--distill_guidance {options.distill_guidance:g}: the pipeline writes captions, and none, in "
                f"{len(shapes)} different lengths; leave it out"
            )
        if len(shapes) > 1 and options.train_batch_size > 1:
            raise ValueError(
                f"--train_batch_size {options.train_batch_size}: the pipeline writes captions in {len(shapes)} "
                "different lengths; train with 1 and --gradient_accumulation_steps"
            )


def _steps(options: Any, prepared: Prepared, processes: int) -> int:
    """How many there are, of the options or of so many times through the data."""
    if options.max_train_steps or not options.num_train_epochs:
        return int(options.max_train_steps or STEPS)
    batches = Order([one.size for one in prepared.examples], options.train_batch_size, options.seed).per_epoch
    return int(options.num_train_epochs * -(-batches // (options.gradient_accumulation_steps * processes)))


def _settings(
    options: Any,
    names: Sequence[str],
    optimizing: Optimizing,
    noise: Noise,
    prepared: Prepared,
    accelerator: Any,
) -> Settings:
    plain = parser().get_default
    return Settings(
        output=options.output,
        steps=options.max_train_steps,
        batch=options.train_batch_size,
        accumulate=options.gradient_accumulation_steps,
        optimizing=optimizing,
        clip=options.max_grad_norm,
        noise=noise,
        dropout=options.caption_dropout,
        distill=options.distill,
        teach_epochs=options.teach_epochs,
        guidance=options.distill_guidance,
        seed=options.seed,
        checkpoint_every=options.checkpointing_steps,
        checkpoint_limit=options.checkpoints_total_limit,
        validate_every=options.validation_steps,
        resume=options.resume_from_checkpoint,
        told={
            "rank": options.rank,
            "lora_alpha": options.lora_alpha or options.rank,
            "layers": list(names),
            "processes": accelerator.num_processes,
            **{name: getattr(options, name) for name in KEPT},
            "attention": str(options.attention),
            **{name: getattr(options, name) for name in CHOSEN if getattr(options, name) != plain(name)},
            **{name: getattr(options, name) for name in NEW_WORDS if options.placeholder_token},
            **_shifts(prepared),
            **({"sharded": True} if accelerator.is_fsdp2 else {}),
            **({"held_out": len(prepared.held_out)} if prepared.held_out else {}),
            "examples": _digest(prepared),
        },
    )


def _shifts(prepared: Prepared) -> dict[str, dict[str, float]]:
    """Of noise levels, by size, where the pipeline makes them of it."""
    found = {"x".join(map(str, size)): manner.shift for size, manner in prepared.manners.items()}
    told = {name: shift for name, shift in found.items() if shift is not None}
    return {"shifts": told} if told else {}


def _digest(prepared: Prepared) -> str:
    """A short hash of the examples in their order; their files are named by content."""
    names = [f"{one.latents.name} {one.told.name}" for one in prepared.examples]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _say(prepared: Prepared, learning: int, layers: int, done: int, steps: int) -> None:
    for line in prepared.skipped:
        print(f"skipped: {line}")
    examples, validated = len(prepared.examples), len(prepared.validated)
    print(f"validation on {validated} {'examples that are held out' if prepared.held_out else 'training examples'}")
    print(f"{learning:,} parameters in {layers} layers, {examples} examples, {done} of {steps} steps done")


def _run(trainer: Trainer, options: Any, accelerator: Any, validation: Validation | None) -> list[dict[str, float]]:
    """The loop, with a progress bar, a line of JSON for every step, a tracker, and samples on the way."""
    if options.report_to:
        accelerator.init_trackers("dattn", {name: str(value) for name, value in vars(options).items()})
    first, log = accelerator.is_main_process, options.output / "training.jsonl"
    if first:
        _cut(log, trainer.step)
    all_told: list[dict[str, float]] = []
    bar = tqdm(total=options.max_train_steps, initial=trainer.step, desc="training", unit="step", disable=not first)

    def report(told: dict[str, float]) -> None:
        if "loss" in told:
            bar.update()
            bar.set_postfix(loss=f"{told['loss']:.4f}", memory=_memory(accelerator.device))
        all_told.append({"step": trainer.step, **told})
        accelerator.log(told, step=trainer.step)
        if first:
            with log.open("a") as file:
                file.write(json.dumps(all_told[-1]) + "\n")
        if validation is not None and "validation_loss" in told and 0 < trainer.step < options.max_train_steps:
            validation.on_the_way(trainer.step)

    with bar:
        trainer.run(report)
    return all_told


def _cut(log: Path, step: int) -> None:
    """Keep the lines of a log up to a step; the last may be half a line, where a run was killed."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    whole = [line for line in lines if line.endswith("}\n")]
    part = log.with_suffix(".part")
    part.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
    part.replace(log)


def _memory(device: torch.device) -> str:
    """The most that was in use so far of a GPU; what the process uses elsewhere."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    import psutil

    return f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"
