"""Diffusers pipelines built from dattn patterns and controls."""

from dattn.pipelines.multi_prompt_video import MultiPromptVideoPipeline
from dattn.pipelines.prompt_edit import PromptEditPipeline

__all__ = ["MultiPromptVideoPipeline", "PromptEditPipeline"]
