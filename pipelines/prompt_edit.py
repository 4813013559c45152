"""PromptEditPipeline: change a picture by changing its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SchedulerMixin,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dattn.control import Control, LocalBlend, Refine, Replace, Reweight
from dattn.control.base import Layers, Window
from dattn.control.from_source import FromSource
from dattn.control.words import Phrase
from dattn.pipelines.inversion import Path, backwards, latents_of
from dattn.pipelines.on_stock import IMPLIED, OnStock

OF_INVERSION = ("height", "width", "num_inference_steps", "timesteps", "sigmas", "max_sequence_length")
"""Arguments of a call that the inversion of its picture shares."""
METHODS: dict[str, type[FromSource]] = {"replace": Replace, "refine": Refine}


class PromptEditPipeline(OnStock, DiffusionPipeline):
    """Prompt-to-Prompt (Hertz et al., 2022) with Stable Diffusion, SDXL, Flux or Stable Diffusion 3.

    The first picture of a call is of the prompt, the others of its edits, which keep its layout. In cross-attention
    they take over its maps; in joint attention the picture's queries and keys. A real picture is inverted first; its
    own picture then comes back as the autoencoder gives it (Ju et al., "PnP Inversion", ICLR 2024).

    Everything that works with the stock pipeline does here: ``from_pretrained``, ``custom_pipeline=`` with this file's
    path, ``PromptEditPipeline.from_pipe(pipe)``, offloading, LoRA, ``dattn.apply``.
    """

    _optional_components: ClassVar = [
        *("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
        *("unet", "transformer", "safety_checker", "feature_extractor", "image_encoder"),
    ]
    stocks: ClassVar = {
        "UNet2DConditionModel": (StableDiffusionPipeline, StableDiffusionXLPipeline),
        "FluxTransformer2DModel": (FluxPipeline,),
        "SD3Transformer2DModel": (StableDiffusion3Pipeline,),
    }

    def __init__(
        self,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        unet: UNet2DConditionModel | None = None,
        transformer: FluxTransformer2DModel | SD3Transformer2DModel | None = None,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        text_encoder_3: PreTrainedModel | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
        safety_checker: PreTrainedModel | None = None,
        feature_extractor: Any = None,
        image_encoder: PreTrainedModel | None = None,
        requires_safety_checker: bool | None = None,
        force_zeros_for_empty_prompt: bool | None = None,
        add_watermarker: bool | None = None,
    ) -> None:
        super().__init__(**{name: given for name, given in locals().items() if name not in IMPLIED})

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        edits: str | Sequence[str],
        *,
        image: Any = None,
        method: str = "auto",
        reweight: Mapping[Phrase, float] | None = None,
        blend: Sequence[Phrase | Sequence[str]] | None = None,
        subtract: Sequence[Phrase | Sequence[str]] | None = None,
        threshold: float | tuple[float, float] = 0.3,
        cross: Window = 0.8,
        inject: Window = 0.4,
        words: Mapping[str, Window] | None = None,
        max_tokens: int | None = None,
        layers: Layers = None,
        negative_prompt: str | None = None,
        inversion_guidance: float = 1.0,
        **call: Any,
    ) -> Any:
        """Make a picture and its edits.

        Args:
            prompt: of the picture; of a real one, what is to be seen.
            edits: one prompt or several, as the picture should be.
            image: a real picture to edit (PIL image, array or tensor), which gives the size where none is told; it
                needs a ``DDIMScheduler``, with Flux and Stable Diffusion 3 their own
                ``FlowMatchEulerDiscreteScheduler``.
            method: ``"replace"`` for words that are swapped, ``"refine"`` for others; ``"auto"`` replaces where every
                edit has as many words as the prompt.
            reweight: factors for words of the edits, in the steps of ``cross``, or in those that ``words`` has for
                them.
            blend: for the prompt and for every edit the words outside of which nothing changes.
            subtract: with ``blend``, for each of them words whose place does not change.
            threshold: of their maps, see ``LocalBlend``.
            cross, inject, words, max_tokens: the denoising steps in which edits follow the picture, and the largest
                self-attention in which they do, see ``FromSource``.
            layers: the layers of self-attention or joint attention in which they do; None is all.
            negative_prompt: one for all of them.
            inversion_guidance: of the inversion of a real picture.
            **call: what the stock pipeline takes.

        Returns:
            What the stock pipeline returns: the picture, then its edits.

        Raises:
            ValueError: no edits, an unknown method, several pictures for each prompt, ``subtract`` without ``blend``,
                and what the controls raise.
        """
        prompts = [prompt, *([edits] if isinstance(edits, str) else edits)]
        if len(prompts) < 2 or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"prompt={prompt!r}, edits={edits!r}: give a prompt, and one edited prompt or more")
        if call.get("num_images_per_prompt", 1) != 1:
            raise ValueError("num_images_per_prompt: the pipeline makes one picture for each prompt")
        if subtract is not None and blend is None:
            raise ValueError(f"subtract={subtract!r}: it is taken off where blend= lets a picture change; give both")
        controls: list[Control] = [_method(method, prompts)(cross, inject, words, max_tokens, layers)]
        controls += _weights(reweight or {}, cross, words or {}, range(1, len(prompts)))
        if image is not None:
            call = self._size_of(image) | call
            path = self._invert(image, prompt, inversion_guidance, call)
            call["latents"] = path[0].repeat(len(prompts), *[1] * (path[0].ndim - 1))
            controls.append(Path(path))
        if blend is not None:
            controls.append(LocalBlend(blend, subtract, threshold))
        negative = {} if negative_prompt is None else {"negative_prompt": [negative_prompt] * len(prompts)}
        with ExitStack() as stack:
            for control in controls:
                stack.enter_context(control.on(self))
            return super().__call__(prompt=prompts, **negative, **call)

    def _invert(self, image: Any, prompt: str, guidance: float, call: Mapping[str, Any]) -> list[torch.Tensor]:
        """The latents of a picture at every noise level, the most first."""
        same = {name: call[name] for name in OF_INVERSION if name in call}
        clean = latents_of(self, image, call.get("height"), call.get("width"))
        with backwards(self) as scheduler:
            super().__call__(prompt=prompt, guidance_scale=guidance, latents=clean, output_type="latent", **same)
        return scheduler.path[::-1]

    def _size_of(self, image: Any) -> dict[str, int]:
        """The size of a picture, in pixels that the model can have."""
        height, width = self.image_processor.get_default_height_width(image)
        unit = 2 * self.vae_scale_factor
        return {"height": height // unit * unit, "width": width // unit * unit}


def _method(method: str, prompts: Sequence[str]) -> type[FromSource]:
    """The control that carries attention over."""
    if method != "auto" and method not in METHODS:
        raise ValueError(f"method={method!r}: choose auto, {' or '.join(METHODS)}")
    swapped = len({len(prompt.split()) for prompt in prompts}) == 1
    return METHODS[method] if method != "auto" else Replace if swapped else Refine


def _weights(
    factors: Mapping[Phrase, float], cross: Window, words: Mapping[str, Window], edits: Sequence[int]
) -> list[Reweight]:
    """Factors act where the map follows the source's, as the method has it: in the steps of each word."""
    windows: dict[Window, dict[Phrase, float]] = {}
    for word, factor in factors.items():
        window = words.get(word, cross) if isinstance(word, str) else cross
        windows.setdefault(window, {})[word] = factor
    return [Reweight(some, window, prompts=edits) for window, some in windows.items()]
