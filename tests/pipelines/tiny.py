"""Tiny random pipelines, with the tokenizers of the demo models."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tests.families import cogvideox, sd3
from tests.families.base import ready

MODELS = "assets/models"


def tokenizer(name, part="tokenizer"):
    """A demo model's."""
    return AutoTokenizer.from_pretrained(f"{MODELS}/{name}/{part}")


def cogvideox_pipeline():
    """A stock pipeline of random weights, whose scheduler adds noise."""
    torch.manual_seed(0)
    encoder = T5Config(vocab_size=27, d_model=10, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
    )
    return CogVideoXPipeline(
        tokenizer("shapes-flux", "tokenizer_2"),
        ready(T5EncoderModel(encoder)),
        ready(vae),
        cogvideox.model(max_text_seq_length=226),
        CogVideoXDPMScheduler(),
    )


def _clip(projected):
    options = CLIPTextConfig(
        vocab_size=27,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=8,
        eos_token_id=1,
    )
    return ready((CLIPTextModelWithProjection if projected else CLIPTextModel)(options))


def _vae():
    return ready(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            norm_num_groups=4,
            shift_factor=0.1,
        )
    )


def sdxl_pipeline():
    """Stable Diffusion XL of random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        cross_attention_dim=16,
    )
    own = tokenizer("shapes-sd")
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        _vae(), _clip(False), _clip(True), own, own, ready(unet), scheduler, add_watermarker=False
    )


def sd3_pipeline():
    """Stable Diffusion 3 of random weights, without T5."""
    torch.manual_seed(0)
    own = tokenizer("shapes-sd")
    return StableDiffusion3Pipeline(
        transformer=sd3.model(joint_attention_dim=16, pooled_projection_dim=16),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=_clip(True),
        tokenizer=own,
        text_encoder_2=_clip(True),
        tokenizer_2=own,
        text_encoder_3=None,
        tokenizer_3=None,
    )
