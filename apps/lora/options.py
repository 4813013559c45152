"""The options of ``dattn train-lora``, under the names that Diffusers' training scripts have for them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..arguments import Parser, at_least, count_or_share, fraction, positive

EXAMPLES = """\
  dattn train-lora --model shapes-wan --data clips/ --buckets 33x64x64 --attention radial --output my-lora
  dattn train-lora --config wan.toml
  accelerate launch -m dattn.apps.train_lora --config wan.toml

Options may be written with - or _; a config file (.toml, .json) has the same names."""

COMPONENTS = ("transformer", "transformer_2", "unet")
SAMPLING = ("all", "uniform", "reweighted")
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
WEIGHTINGS = ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap")


def parser() -> Parser:
    """The command's options."""
    p = Parser("train-lora", "Fine-tune a model with LoRA, under any attention.", EXAMPLES)
    p.add_argument("--config", type=Path, metavar="FILE", help="options in a .toml or .json file; those given here win")
    _model(p.add_argument_group("model"))
    _data(p.add_argument_group("data"))
    _lora(p.add_argument_group("LoRA"))
    _words(p.add_argument_group("new words, of pipelines with one CLIP encoder"))
    _training(p.add_argument_group("training"))
    _rates(p.add_argument_group("optimiser and its rate"))
    _noise(p.add_argument_group("noise"))
    _while_it_runs(p.add_argument_group("while it runs"))
    return p


def _model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        "--pretrained_model_name_or_path",
        metavar="FOLDER_OR_NAME",
        help="a Diffusers folder, hub name or demo model",
    )
    group.add_argument("--revision", metavar="NAME", help="of a hub model: a branch, tag or commit")
    group.add_argument("--variant", metavar="NAME", help="of its files, such as fp16")
    group.add_argument(
        "--component", choices=COMPONENTS, help="which model of the pipeline (default: the first that it has)"
    )
    group.add_argument(
        "--attention", default="stock", help="pattern, preset or recipe to train under (default: %(default)s)"
    )
    group.add_argument("--dense_layers", type=count_or_share, help="leading layers that stay dense")
    group.add_argument("--backend", default="auto", help="attention backend of the pattern (default: %(default)s)")
    group.add_argument("--max_sequence_length", type=at_least(1), help="tokens of a caption (default: the pipeline's)")
    group.add_argument(
        "--guidance_scale", type=float, help="told to models that have it as an input, such as Flux dev (default: 1)"
    )
    group.add_argument(
        "--pipeline_args",
        type=_json,
        default={},
        metavar="JSON",
        help="further arguments of the pipeline's calls, such as '{\"max_sequence_length\": 128}'",
    )


def _data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        "--instance_data_dir",
        "--train_data_dir",
        type=Path,
        metavar="PLACE",
        help="a folder or .jsonl file of clips or pictures with captions",
    )
    group.add_argument("--dataset_name", metavar="NAME", help="in place of --data: a data set of Hugging Face")
    group.add_argument("--dataset_config_name", metavar="NAME", help="of it")
    group.add_argument("--dataset_split", default="train", help="of it (default: %(default)s)")
    group.add_argument(
        "--media_column", "--image_column", "--video_column", metavar="NAME", help="of it (default: image, video, …)"
    )
    group.add_argument("--caption_column", metavar="NAME", help="of it (default: text, caption or prompt)")
    group.add_argument("--instance_prompt", metavar="TEXT", help="the caption of what has none")
    group.add_argument("--id_token", metavar="TEXT", help="put before every caption")
    group.add_argument("--max_train_samples", type=at_least(1), metavar="N", help="take so many, chosen by the seed")
    group.add_argument(
        "--buckets",
        "--video_resolution_buckets",
        nargs="+",
        metavar="FxHxW",
        help="sizes to train at, 49x480x832 or 512x512",
    )
    group.add_argument("--resolution", metavar="N|HxW", help="in place of --buckets: one size, square if one number")
    group.add_argument("--height", type=at_least(1), help="the same, with --width")
    group.add_argument("--width", type=at_least(1), help="the same, with --height")
    group.add_argument(
        "--num_frames", "--max_num_frames", type=at_least(1), help="frames of that one size (default: 1)"
    )
    group.add_argument("--cache_dir", type=Path, help="for latents and text (default: OUTPUT/cache)")
    group.add_argument(
        "--fps", type=positive, help="frames taken of each second of a clip, as the model was trained (default: all)"
    )
    group.add_argument(
        "--caption_dropout", type=float, default=0.0, help="share of captions left out (default: %(default)s)"
    )


def _lora(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rank", type=at_least(1), default=32, help="(default: %(default)s)")
    group.add_argument("--lora_alpha", type=at_least(1), help="(default: the rank)")
    group.add_argument(
        "--lora_dropout", type=fraction, default=0.0, help="share of LoRA's inputs left out (default: %(default)s)"
    )
    group.add_argument(
        "--target_modules",
        nargs="+",
        default=[],
        metavar="REGEX",
        help="linear layers, by name or the end of it (default: those of attention)",
    )
    group.add_argument(
        "--train_norms", action="store_true", help="train the weights of normalisation layers too (LongLoRA)"
    )
    group.add_argument("--norm_learning_rate", type=positive, help="of these (default: that of the LoRA)")
    group.add_argument(
        "--lora_layers",
        dest="target_modules",
        type=_listed,
        default=argparse.SUPPRESS,
        metavar="NAME,NAME",
        help="the same with commas",
    )


def _words(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--placeholder_token", nargs="+", default=[], metavar="WORD", help="words to learn, such as '<new1>' '<new2>'"
    )
    group.add_argument(
        "--initializer_token", nargs="+", default=[], metavar="WORD", help="a known word that each starts from"
    )
    group.add_argument("--token_learning_rate", type=float, default=5e-4, help="(default: %(default)s)")
    group.add_argument(
        "--concept",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="a new word and its class, '<new1> circle': several of a picture are kept apart",
    )
    group.add_argument(
        "--binding_weight", type=float, default=0.01, help="of DisenDiff's loss on maps (default: %(default)s)"
    )
    group.add_argument(
        "--masking_weight", type=float, default=0.0, help="of AttenCraft's, by masks (default: %(default)s)"
    )
    group.add_argument(
        "--concept_sampling",
        choices=SAMPLING,
        default="all",
        help="which concepts a step is about, its error in their masks; AttenCraft (default: %(default)s)",
    )
    group.add_argument(
        "--mask_steps",
        type=at_least(0),
        default=20,
        help="look for masks again so often; 0: never (default: %(default)s)",
    )


def _training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output", "--output_dir", type=Path, default=Path("outputs/lora"), help="(default: %(default)s)"
    )
    group.add_argument("--max_train_steps", type=at_least(1), help="(default: 1000, or those of --num_train_epochs)")
    group.add_argument(
        "--num_train_epochs", type=at_least(1), help="times through the data; --max_train_steps wins over it"
    )
    group.add_argument("--train_batch_size", type=at_least(1), default=1, help="(default: %(default)s)")
    group.add_argument("--gradient_accumulation_steps", type=at_least(1), default=1, help="(default: %(default)s)")
    group.add_argument(
        "--distill",
        action="store_true",
        help="match the model itself without LoRA and with stock attention, in place of the data's noise",
    )
    group.add_argument(
        "--teach_epochs",
        type=at_least(1),
        metavar="N",
        help="with --distill: ask the stock model N times through the data; then the same noise comes again, and what "
        "it said is read from disk (default: always ask)",
    )
    group.add_argument(
        "--distill_guidance",
        type=float,
        metavar="SCALE",
        help="with --distill: match the prediction under this guidance scale, from two passes, with and without the "
        "caption; guidance makes their errors larger (default: match single passes)",
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), help="(default: accelerate's config)")
    group.add_argument("--allow_tf32", action="store_true", help="faster float32 products on NVIDIA GPUs, less exact")
    group.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")


def _rates(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--learning_rate", type=float, default=1e-4, help="(default: %(default)s)")
    group.add_argument("--scale_lr", action="store_true", help="multiply it by batch size, accumulation and processes")
    group.add_argument(
        "--lr_scheduler", choices=SCHEDULERS, default="constant_with_warmup", help="(default: %(default)s)"
    )
    group.add_argument("--lr_warmup_steps", type=at_least(0), default=0, help="(default: %(default)s)")
    group.add_argument("--lr_num_cycles", type=at_least(1), help="of cosine_with_restarts (default: 1)")
    group.add_argument("--lr_power", type=positive, help="of polynomial (default: 1)")
    group.add_argument("--adam_beta1", type=fraction, default=0.9, help="(default: %(default)s)")
    group.add_argument("--adam_beta2", type=fraction, default=0.999, help="(default: %(default)s)")
    group.add_argument("--adam_epsilon", type=positive, default=1e-8, help="(default: %(default)s)")
    group.add_argument("--adam_weight_decay", type=float, default=1e-4, help="(default: %(default)s)")
    group.add_argument("--use_8bit_adam", action="store_true", help="optimiser states of 8 bits, by bitsandbytes")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="(default: %(default)s)")


def _noise(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weighting_scheme",
        choices=WEIGHTINGS,
        help="how noise levels of flow are drawn, or, by the last two, weighted (default: logit_normal where the model "
        "learns flow, none elsewhere)",
    )
    group.add_argument("--logit_mean", type=float, default=0.0, help="of logit_normal (default: %(default)s)")
    group.add_argument("--logit_std", type=positive, default=1.0, help="of logit_normal (default: %(default)s)")
    group.add_argument("--mode_scale", type=float, default=1.29, help="of mode (default: %(default)s)")
    group.add_argument(
        "--train_window",
        nargs=2,
        type=float,
        default=[0.0, 1.0],
        metavar=("START", "END"),
        help="train the noise levels of these denoising steps alone, as shares: 0.25 1 leaves out a first quarter, "
        "which the recipe then has dense; LoRAWindow lets the LoRA act in the same steps",
    )
    group.add_argument(
        "--snr_gamma", type=positive, help="clip the weight of low noise (Min-SNR, 5 is usual); not for flow"
    )


def _while_it_runs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpointing_steps", type=at_least(1), default=500, help="(default: %(default)s)")
    group.add_argument("--checkpoints_total_limit", type=at_least(1), help="keep so many")
    group.add_argument(
        "--resume_from_checkpoint", metavar="latest|PATH", help="go on, to the same result as without the break"
    )
    group.add_argument(
        "--validation_steps",
        type=at_least(0),
        default=100,
        help="steps between losses at fixed noise of what is held out; 0 for none (default: %(default)s)",
    )
    group.add_argument(
        "--validation_split",
        type=count_or_share,
        metavar="N",
        help="files, or a share of them, held out for it (default: a tenth, at most 8; of fewer than 10 files none, "
        "and training examples serve)",
    )
    group.add_argument(
        "--validation_data", type=Path, metavar="PLACE", help="other data for it, of any layout that --data may have"
    )
    group.add_argument(
        "--validation_prompts",
        "--validation_prompt",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="made before training, with every validation loss, and after; several in one are parted by :::",
    )
    group.add_argument("--report_to", choices=("tensorboard", "wandb"), help="tracker, through accelerate")
    group.add_argument("--logging_dir", type=Path, help="for the tracker, in the output (default: the output)")
    group.add_argument("--push_to_hub", action="store_true", help="upload what comes out, as who is logged in there")
    group.add_argument("--hub_model_id", metavar="NAME", help="where to (default: the output's name)")
    group.add_argument("--estimate", action="store_true", help="print tokens, FLOPs and memory, and train nothing")


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
