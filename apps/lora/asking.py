"""How a pipeline asks its model: found out by listening, so that training needs no code for any family.

The pipeline is called with a stand-in for the model's forward pass. What it is given, besides latents and time, is what
the pipeline makes of a prompt at a size: embeddings, masks, positions. From two steps follow how it writes the time,
and whether the scheduler is given the model's output or what is opposite to it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from dattn.models import models_of

Arguments = dict[str, Any]
Size = tuple[int, int, int]
"""Frames, height and width in pixels."""
TIMES = ("timestep", "timesteps")
STEPS = 8
"""Of the call that is listened to: enough for both of two models that share the noise levels."""
SIMPLE = [(factor, offset) for factor in (1.0, -1.0, 0.001, -0.001) for offset in (0.0, 1.0, 1000.0)]
"""How pipelines write the scheduler's time: (factor, offset)."""
ROUNDED = 2**-7
"""Of a time that a pipeline has rounded to bfloat16 on the way."""


class _Enough(Exception):
    """The stand-in has heard what it was to hear."""


@dataclass(frozen=True)
class Manner:
    """How a pipeline asks its model at one size.

    Attributes:
        size: the one that it asks at.
        latents, time: the names of those arguments.
        shape: of one sample's latents.
        batched: names of the tensors with an entry for each sample; of nested ones as ``outer.inner``.
        common: all other arguments.
        sample: batched tensors of some prompt, to go by their shapes.
        time_shape: of one sample's time, beyond the batch; () for a number.
        factor, offset: the model's time is ``factor`` · the scheduler's + ``offset``.
        sign: 1 where the scheduler is given the model's output, -1 where the opposite.
        shift: of the noise levels, where the pipeline makes it of the size; None where the scheduler's config has it.
    """

    size: Size
    latents: str
    time: str
    shape: tuple[int, ...]
    batched: tuple[str, ...]
    common: Mapping[str, Any]
    sample: Mapping[str, Tensor]
    time_shape: tuple[int, ...]
    factor: float
    offset: float
    sign: int
    shift: float | None = None

    def arguments(self, latents: Tensor, times: Tensor, told: Mapping[str, Tensor]) -> Arguments:
        """The model's arguments for a batch.

        Args:
            latents: [batch, …], noisy.
            times: [batch], the scheduler's.
            told: the batched tensors by name.
        """
        times = (self.factor * times + self.offset).view(-1, *[1] * len(self.time_shape))
        given = {self.latents: latents, self.time: times.expand(-1, *self.time_shape)}
        return nested(dict(self.common) | dict(told) | given)

    def prediction(self, output: Any) -> Tensor:
        """What the scheduler would be given, of what the model gives: [batch, …] as the latents."""
        first = output if isinstance(output, Tensor) else output[0]
        return self.sign * first[:, : self.shape[0]]  # learned variances come behind in channels


def listen(pipeline: Any, model: nn.Module, size: Size, call: Mapping[str, Any]) -> Manner:
    """How a pipeline asks ``model`` at a size.

    Args:
        call: further arguments of every call of the pipeline.

    Raises:
        ValueError: a pipeline that asks in a way that cannot be trained from text alone; the message says why.
    """
    heard = _heard(pipeline, model, ["a", "a"], size, call, STEPS)
    (one,) = _heard(pipeline, model, ["a"], size, call, 1).asked
    if len(heard.asked) < 2 or len(heard.asked) != len(heard.stepped):
        raise ValueError(_why(pipeline, f"asked its model {len(heard.asked)} times in {len(heard.stepped)} steps"))
    two, single, names = flat(heard.asked[0]), flat(one), list(flat(heard.asked[0]))
    latents, time = names[0], next((name for name in TIMES if name in names), "")
    if not time:
        raise ValueError(_why(pipeline, f"tells its model no time, but {', '.join(names)}"))
    batched = [n for n in names if n not in (latents, time) and _grows(single.get(n), two[n])]
    sample = heard.stepped[0][2]
    if two[latents].shape != sample.shape:
        raise ValueError(_why(pipeline, f"gives it {tuple(two[latents].shape)} for latents {tuple(sample.shape)}"))
    times = [float(stepped[1]) for stepped in heard.stepped]
    factor, offset = _line(times, [float(flat(asked)[time].flatten()[0]) for asked in heard.asked])
    common = {name: value for name, value in two.items() if name not in (latents, time, *batched)}
    return Manner(
        size,
        latents,
        time,
        tuple(sample.shape[1:]),
        tuple(batched),
        common,
        {name: single[name] for name in batched},
        tuple(two[time].shape[1:]),
        factor,
        offset,
        _sign(pipeline, heard),
        _shift(pipeline.scheduler, heard.scheduled),
    )


def told(
    pipeline: Any, model: nn.Module, manner: Manner, prompt: str, size: Size, call: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What a pipeline tells its model of a prompt: the batched tensors by name, [1, …] each."""
    (asked,) = _heard(pipeline, model, [prompt], size, call, 1).asked
    return {name: flat(asked)[name].detach() for name in manner.batched}


def told_with_graph(
    pipeline: Any, model: nn.Module, manner: Manner, prompts: Sequence[str], call: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What a pipeline tells its model of some prompts, [prompts, …] each, with the graph to its text encoders.

    Raises:
        ValueError: a pipeline that lets go of the graph.
    """
    (asked,) = _heard(pipeline, model, prompts, manner.size, call, 1, graph=True).asked
    found = {name: flat(asked)[name] for name in manner.batched}
    if not any(tensor.requires_grad for tensor in found.values()):
        raise ValueError(_why(pipeline, "encodes text without gradients"))
    return found


@dataclass
class _Heard:
    """Arguments of the model, outputs that it seemed to give, and what the scheduler is told: at first and in steps."""

    asked: list[Arguments]
    gave: list[Tensor]
    stepped: list[tuple[Tensor, Any, Tensor]]
    scheduled: Arguments


@torch.no_grad()
def _heard(
    pipeline: Any,
    model: Any,
    prompts: Sequence[str],
    size: Size,
    call: Mapping[str, Any],
    most: int,
    graph: bool = False,
) -> _Heard:
    """What passes between pipeline, model and scheduler in a call, until the model has been asked ``most`` times."""
    run = type(pipeline).__call__
    run = getattr(run, "__wrapped__", run) if graph else run  # pipelines run without gradients
    heard = _Heard([], [], [], {})
    signature, awaited = inspect.signature(model.forward), False

    def stand_in(own: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal awaited
        asked = dict(signature.bind(*args, **kwargs).arguments)
        gave = _random_output(own, next(iter(asked.values())))
        if own is model and not awaited:
            awaited = True
            heard.asked.append({name: value for name, value in asked.items() if name != "return_dict"})
            heard.gave.append(gave)
            if len(heard.asked) == most:
                raise _Enough
        return (gave,) if asked.get("return_dict") is False else _Output(sample=gave)

    step = pipeline.scheduler.step
    of_step = inspect.signature(step)

    def noted(*args: Any, **kwargs: Any) -> Any:
        nonlocal awaited
        given = of_step.bind(*args, **kwargs).arguments
        if awaited:
            heard.stepped.append((next(iter(given.values())), given["timestep"], given["sample"]))
        awaited = False
        return step(*args, **kwargs)

    schedule = pipeline.scheduler.set_timesteps

    @wraps(schedule)  # pipelines look at what it takes
    def scheduled(*args: Any, **kwargs: Any) -> Any:
        heard.scheduled |= kwargs
        return schedule(*args, **kwargs)

    guidance = call.get("guidance_scale", 1.0) if model.config.get("guidance_embeds") else 1.0
    options = {**call, "prompt": list(prompts), "num_inference_steps": STEPS, **_options(pipeline, size, guidance)}
    with ExitStack() as stack:
        for one in models_of(pipeline).values():
            stack.enter_context(_in_place(one, "forward", partial(stand_in, one)))
        stack.enter_context(_in_place(pipeline.scheduler, "step", noted))
        stack.enter_context(_in_place(pipeline.scheduler, "set_timesteps", scheduled))
        stack.enter_context(suppress(_Enough))
        try:
            with torch.set_grad_enabled(graph):
                run(pipeline, **options)
        except (TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            raise ValueError(_why(pipeline, f"cannot be listened to ({type(error).__name__}: {error})")) from error
    del heard.asked[len(heard.stepped) + (most == 1) :]
    return heard


def _random_output(model: Any, latents: Tensor) -> Tensor:
    """What a model may give for latents: of as many channels as it has, learned variances among them."""
    channels = latents.shape[1]
    wider = latents.ndim > 3 and getattr(model.config, "out_channels", None) == 2 * channels
    return torch.randn_like(torch.cat([latents, latents], 1) if wider else latents)


def _line(times: Sequence[float], told: Sequence[float]) -> tuple[float, float]:
    """Factor and offset from the scheduler's times to the model's, whatever rounding is on the way."""
    for factor, offset in SIMPLE:
        pairs = [(factor * time, had) for time, had in zip(times, told, strict=True)]
        if all(abs(scaled + offset - had) <= ROUNDED * (abs(scaled) + abs(offset)) for scaled, had in pairs):
            return factor, offset
    last = max(range(len(times)), key=lambda i: abs(times[i] - times[0]))
    if times[last] == times[0]:
        return 1.0, told[0] - times[0]
    factor = (told[last] - told[0]) / (times[last] - times[0])
    return factor, told[0] - factor * times[0]


class _Output(dict[str, Any]):
    """What models return where they are not asked for a tuple."""

    __getattr__ = dict.__getitem__

    def __getitem__(self, key: Any) -> Any:
        return next(iter(self.values())) if key == 0 else super().__getitem__(key)


def _options(pipeline: Any, size: Size, guidance: float) -> dict[str, Any]:
    """Size, and no guidance: only a model that has it as an input is told another than 1."""
    takes = inspect.signature(type(pipeline).__call__).parameters
    wanted = {"num_frames": size[0], "height": size[1], "width": size[2], "guidance_scale": guidance}
    return {name: value for name, value in wanted.items() if name in takes} | {"output_type": "latent"}


@contextmanager
def _in_place(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Another method on one object."""
    before = vars(owner).get(name)
    object.__setattr__(owner, name, method)
    try:
        yield
    finally:
        object.__delattr__(owner, name)
        if before is not None:
            object.__setattr__(owner, name, before)


def _grows(one: Any, two: Any) -> bool:
    """Whether a tensor has an entry for each sample."""
    tensors = isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim == two.ndim > 0
    return tensors and len(two) == 2 * len(one) and one.shape[1:] == two.shape[1:]


def _sign(pipeline: Any, heard: _Heard) -> int:
    gave, given = heard.gave[0].float(), heard.stepped[0][0].float()
    gave = gave[:, : given.shape[1]].to(given.device) if gave.ndim == given.ndim else gave
    for sign in (1, -1):
        if given.shape == gave.shape and torch.allclose(given, sign * gave, atol=1e-2, rtol=1e-2):
            return sign
    raise ValueError(_why(pipeline, "makes something else of its model's output"))


def _shift(scheduler: Any, scheduled: Arguments) -> float | None:
    """What a scheduler with ``use_dynamic_shifting`` makes of the number that the pipeline makes of the size.

    Both of its ways are s -> shift s / (1 + (shift - 1) s).
    """
    mu = scheduled.get("mu")
    if mu is None or not scheduler.config.get("use_dynamic_shifting"):
        return None
    return float(mu) if scheduler.config.get("time_shift_type") == "linear" else math.exp(mu)


def _why(pipeline: Any, what: str) -> str:
    return (
        f"{type(pipeline).__name__} {what}: dattn trains models that are given noisy latents and a prompt; use the "
        "text-to-image or text-to-video pipeline of the model"
    )


def flat(arguments: Mapping[str, Any], prefix: str = "") -> Arguments:
    """Arguments with those in mappings written as ``outer.inner``."""
    found: Arguments = {}
    for name, value in arguments.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
        found |= inner
    return found


def nested(arguments: Mapping[str, Any]) -> Arguments:
    """The opposite of ``flat``."""
    found: Arguments = {}
    for name, value in arguments.items():
        *outer, inner = name.split(".")
        place = found
        for part in outer:
            place = place.setdefault(part, {})
        place[inner] = value
    return found
