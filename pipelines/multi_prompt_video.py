"""MultiPromptVideoPipeline: one long video of several prompts, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    SchedulerMixin,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dattn.adapters import adapter_for
from dattn.control import SharedKeys, SubjectKeys
from dattn.control.base import Layers, Window
from dattn.pipelines.on_stock import IMPLIED, OnStock
from dattn.pipelines.segments import Joined, Segment, plan


class MultiPromptVideoPipeline(OnStock, DiffusionPipeline):
    """A long video of several prompts, tuning-free (Cai et al., "DiTCtrl", CVPR 2025), with Wan or CogVideoX.

    The video is a row of overlapping segments that are denoised together, each as long as the model was trained for:
    one for each prompt, and on the way to the next some under a mix of both. Where segments overlap, what the model
    predicts is blended; in the deeper layers a segment looks at the keys and values of the one before it. Unlike the
    authors' pairs of segments all are one batch, so that each is computed once.

    Everything that works with a ``WanPipeline`` or ``CogVideoXPipeline`` does here: ``from_pretrained``,
    ``MultiPromptVideoPipeline.from_pipe(pipe)``, ``custom_pipeline=`` with this file's path, offloading, LoRA,
    ``dattn.apply``.
    """

    _optional_components: ClassVar = ["transformer", "transformer_2"]
    stocks: ClassVar = {"WanTransformer3DModel": (WanPipeline,), "CogVideoXTransformer3DModel": (CogVideoXPipeline,)}

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        vae: AutoencoderKLWan | AutoencoderKLCogVideoX,
        scheduler: SchedulerMixin,
        transformer: WanTransformer3DModel | CogVideoXTransformer3DModel | None = None,
        transformer_2: WanTransformer3DModel | None = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        super().__init__(**{name: given for name, given in locals().items() if name not in IMPLIED})

    def timeline(
        self,
        prompts: int,
        num_frames: int | None = None,
        overlap: int | None = None,
        transitions: int = 2,
        hold: int | Sequence[int] = 0,
    ) -> tuple[Segment, ...]:
        """The segments of a call with these arguments; the video ends with the last one's last latent frame.

        Raises:
            ValueError: what ``plan`` raises.
        """
        tile = (self._frames(num_frames) - 1) // self.vae_scale_factor_temporal + 1
        return plan(prompts, tile, _share(tile) if overlap is None else overlap, transitions, hold)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[str],
        negative_prompt: str | None = None,
        *,
        num_frames: int | None = None,
        overlap: int | None = None,
        transitions: int = 2,
        hold: int | Sequence[int] = 0,
        share: Window = (0.04, 0.5),
        share_layers: Layers = None,
        subjects: Sequence[str] | None = None,
        threshold: float = 0.3,
        map_layers: Layers = None,
        **call: Any,
    ) -> Any:
        """Make the video.

        Args:
            prompt: prompts in their order in time.
            negative_prompt: one for all of them.
            num_frames: frames of one segment, by default those of the stock pipeline; give what the model was trained
                for. ``timeline`` tells how long the video becomes.
            overlap: latent frames that neighbours share; by default 9 of 13.
            transitions: segments between two prompts.
            hold: segments more for every prompt that is neither first nor last, or a list with a number for each one.
            share: the denoising steps in which a segment sees the keys and values of the one before it.
            share_layers: the layers in which it does; by default the last sixth.
            subjects: for every prompt the words of its subject: subject then sees subject, and the rest the rest, see
                ``SubjectKeys``; needs fast tokenizers.
            threshold: of the subjects' maps.
            map_layers: the layers whose maps count; by default all with cross-attention, and in joint attention four.
            **call: what the stock pipeline takes, for all segments.

        Returns:
            What the stock pipeline returns, with one video.

        Raises:
            ValueError: prompts that are no list, subjects that are not as many, several videos for each prompt, and
                what ``plan`` and the stock pipeline raise.
        """
        prompts = _listed(prompt, subjects, call)
        frames = self._frames(num_frames)
        segments = self.timeline(len(prompts), frames, overlap, transitions, hold)
        layers = self._last_sixth() if share_layers is None else share_layers
        controls: list[Any] = []
        if len(segments) > 1 and subjects is None:
            controls.append(SharedKeys("batch_item", item="previous", replace=True, window=share, layers=layers))
        elif len(segments) > 1 and subjects is not None:
            words, maps = (
                [subjects[s.prompt] for s in segments],
                self._map_layers() if map_layers is None else map_layers,
            )
            controls.append(SubjectKeys(words, threshold, item="previous", maps=maps, window=share, layers=layers))
        texts = [prompts[segment.prompt] for segment in segments]
        negative = None if negative_prompt is None else [negative_prompt] * len(texts)
        with ExitStack() as stack:
            for control in (*controls, Joined(segments)):
                stack.enter_context(control.on(self))
            return super().__call__(prompt=texts, negative_prompt=negative, num_frames=frames, **call)

    def _frames(self, num_frames: int | None) -> int:
        """Frames of a segment, rounded so that the stock pipeline neither rounds nor pads; by default its own."""
        factor = self.vae_scale_factor_temporal
        if num_frames is None:
            num_frames = 81 if self.stock is WanPipeline else self.transformer.config.sample_frames
        joined = 1 if self.transformer is None else getattr(self.transformer.config, "patch_size_t", None) or 1
        latent = max(0, num_frames - 1) // factor + 1
        return (-(-latent // joined) * joined - 1) * factor + 1

    def _layers(self) -> int:
        denoiser = self.transformer if self.transformer is not None else self.transformer_2
        return len(adapter_for(denoiser).sites(denoiser))

    def _last_sixth(self) -> list[int]:
        count = self._layers()
        return list(range(count - max(1, round(count / 6)), count))

    def _map_layers(self) -> list[int] | None:
        """In joint attention four layers, spread as the authors' 4, 14, 24 and 29 of 30."""
        count = self._layers()
        return (
            None if self.stock is WanPipeline else sorted({round(count * share) for share in (0.13, 0.47, 0.8, 0.93)})
        )


def _share(tile: int) -> int:
    """Latent frames that segments share, as 9 of 13."""
    return min(max(1, round(tile * 9 / 13)), tile - 1)


def _listed(prompt: Any, subjects: Sequence[str] | None, call: dict[str, Any]) -> list[str]:
    """The prompts, checked."""
    if isinstance(prompt, str) or not all(isinstance(text, str) for text in prompt):
        raise ValueError(f"prompt={prompt!r}: give a list of prompts, in their order in time")
    if subjects is not None and len(subjects) != len(prompt):
        raise ValueError(f"subjects for {len(subjects)} prompts, but there are {len(prompt)}: give words for each")
    if call.get("num_videos_per_prompt", 1) != 1 or "latents" in call:
        raise ValueError("num_videos_per_prompt and latents: a call makes one video, from noise of its generator")
    return list(prompt)
