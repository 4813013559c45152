"""``dattn train-lora``: fine-tune a model of any family with LoRA, under any attention."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import STOCK, Parser, at_least, count_or_share

if TYPE_CHECKING:
    from .lora.items import Item

EXAMPLES = """\
  dattn train-lora --model shapes-wan --data clips/ --buckets 33x64x64 --attention radial --output my-lora
  dattn train-lora --config wan.toml
  accelerate launch -m dattn.apps.train_lora --config wan.toml

Options may be written with - or _; a config file (.toml, .json) has the same names."""

COMPONENTS = ("transformer", "transformer_2", "unet")
SAMPLING = ("all", "uniform", "reweighted")


def parser() -> Parser:
    """The command's options."""
    p = Parser("train-lora", "Fine-tune a model with LoRA, under any attention.", EXAMPLES)
    p.add_argument("--config", type=Path, metavar="FILE", help="options in a .toml or .json file; those given here win")
    group = p.add_argument_group("model")
    group.add_argument(
        "--model",
        "--pretrained_model_name_or_path",
        metavar="FOLDER_OR_NAME",
        help="a Diffusers folder, hub name or demo model",
    )
    group.add_argument(
        "--component", choices=COMPONENTS, help="which model of the pipeline (default: the first that it has)"
    )
    group.add_argument(
        "--attention", default="stock", help="pattern, preset or recipe to train under (default: %(default)s)"
    )
    group.add_argument("--dense_layers", type=count_or_share, help="leading layers that stay dense")
    group.add_argument("--backend", default="auto", help="attention backend of the pattern (default: %(default)s)")
    group.add_argument(
        "--pipeline_args",
        type=_json,
        default={},
        metavar="JSON",
        help="further arguments of the pipeline's calls, such as '{\"max_sequence_length\": 128}'",
    )
    group = p.add_argument_group("data")
    group.add_argument(
        "--data",
        "--instance_data_dir",
        type=Path,
        metavar="PLACE",
        help="a folder or .jsonl file of clips or pictures with captions",
    )
    group.add_argument("--dataset_name", metavar="NAME", help="in place of --data: a data set of Hugging Face")
    group.add_argument("--dataset_split", default="train", help="of it (default: %(default)s)")
    group.add_argument(
        "--media_column", "--image_column", "--video_column", metavar="NAME", help="of it (default: image, video, …)"
    )
    group.add_argument("--caption_column", metavar="NAME", help="of it (default: text, caption or prompt)")
    group.add_argument(
        "--buckets",
        "--video_resolution_buckets",
        nargs="+",
        metavar="FxHxW",
        help="sizes to train at, 49x480x832 or 512x512",
    )
    group.add_argument("--cache_dir", type=Path, help="for latents and text (default: OUTPUT/cache)")
    group.add_argument(
        "--fps", type=float, help="frames taken of each second of a clip, as the model was trained (default: all)"
    )
    group.add_argument(
        "--caption_dropout", type=float, default=0.0, help="share of captions left out (default: %(default)s)"
    )
    group = p.add_argument_group("LoRA")
    group.add_argument("--rank", type=at_least(1), default=32, help="(default: %(default)s)")
    group.add_argument("--lora_alpha", type=at_least(1), help="(default: the rank)")
    group.add_argument(
        "--target_modules",
        nargs="+",
        default=[],
        metavar="REGEX",
        help="linear layers, by name or the end of it (default: those of attention)",
    )
    group = p.add_argument_group("new words, of pipelines with one CLIP encoder")
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
    group = p.add_argument_group("training")
    group.add_argument(
        "--output", "--output_dir", type=Path, default=Path("outputs/lora"), help="(default: %(default)s)"
    )
    group.add_argument("--max_train_steps", type=at_least(1), default=1000, help="(default: %(default)s)")
    group.add_argument("--train_batch_size", type=at_least(1), default=1, help="(default: %(default)s)")
    group.add_argument("--gradient_accumulation_steps", type=at_least(1), default=1, help="(default: %(default)s)")
    group.add_argument("--learning_rate", type=float, default=1e-4, help="(default: %(default)s)")
    group.add_argument("--lr_scheduler", default="constant_with_warmup", help="(default: %(default)s)")
    group.add_argument("--lr_warmup_steps", type=at_least(0), default=0, help="(default: %(default)s)")
    group.add_argument("--adam_weight_decay", type=float, default=1e-4, help="(default: %(default)s)")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="(default: %(default)s)")
    group.add_argument(
        "--weighting_scheme",
        choices=("none", "logit_normal", "mode"),
        help="how noise levels are drawn (default: logit_normal where the model learns flow, none elsewhere)",
    )
    group.add_argument(
        "--distill",
        action="store_true",
        help="match the model itself without LoRA and with stock attention, in place of the data's noise",
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), help="(default: accelerate's config)")
    group.add_argument("--seed", type=at_least(0), default=0, help="(default: %(default)s)")
    group = p.add_argument_group("while it runs")
    group.add_argument("--checkpointing_steps", type=at_least(1), default=500, help="(default: %(default)s)")
    group.add_argument("--checkpoints_total_limit", type=at_least(1), help="keep so many")
    group.add_argument(
        "--resume_from_checkpoint", metavar="latest|PATH", help="go on, to the same result as without the break"
    )
    group.add_argument(
        "--validation_steps",
        type=at_least(0),
        default=100,
        help="steps between losses of the first examples at fixed noise; 0 for none (default: %(default)s)",
    )
    group.add_argument(
        "--validation_prompts",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="made before training, with every validation loss, and after",
    )
    group.add_argument("--report_to", choices=("tensorboard", "wandb"), help="tracker, through accelerate")
    group.add_argument("--estimate", action="store_true", help="print tokens, FLOPs and memory, and train nothing")
    return p


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of the command line, over those of a config file.

    Raises:
        ValueError: what is wrong with them.
    """
    own = parser()
    words = [_underscored(word) for word in argv]
    config = own.parse_args(words).config
    options = own.parse_args([*(_words(config, own) if config is not None else []), *words])
    if options.data and options.dataset_name:
        raise ValueError(f"--data {options.data} and --dataset_name {options.dataset_name}: give one of them")
    for name in ("model", "buckets") if options.dataset_name else ("model", "data", "buckets"):
        if not getattr(options, name):
            raise ValueError(f"--{name} is missing (see dattn train-lora --help)")
    if options.fps is not None and not options.fps > 0:
        raise ValueError(f"--fps {options.fps}: frames a second, more than 0")
    if not 0 <= options.caption_dropout <= 1:
        raise ValueError(f"--caption_dropout {options.caption_dropout}: a share, 0 to 1")
    return options


def _underscored(word: str) -> str:
    """An option's name as the parser knows it; values stay."""
    if not word.startswith("--"):
        return word
    name, *value = word[2:].split("=", 1)
    return "=".join(["--" + name.replace("-", "_"), *value])


def _words(path: Path, own: argparse.ArgumentParser) -> list[str]:
    """A config file as words of the command line."""
    try:
        text = path.read_text()
        told = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"config {path}: {error}") from None
    words: list[str] = []
    for name, value in told.items():
        option = "--" + name.replace("-", "_")
        if option not in own._option_string_actions:
            raise ValueError(f"{path}: unknown option {name!r} (see dattn train-lora --help)")
        if isinstance(value, bool):
            words += [option] if value else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={json.dumps(value) if isinstance(value, dict) else value}")
    return words


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(argv)
    from .lora.clips import bucket
    from .lora.items import check_there, find_items

    try:
        buckets = [bucket(text) for text in options.buckets]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--buckets {error}") from None
    items = find_items(options.data) if options.data else _of_dataset(options)
    check_there(items)
    attention = None if options.attention in STOCK else options.attention
    if attention == "auto":
        raise ValueError(
            "--attention auto: chooses for each clip, and would train nothing in particular; name a pattern, a preset "
            "or a recipe, such as one that dattn tune wrote"
        )
    if options.estimate:
        from .lora.estimate import lines

        print("\n".join(lines(options, attention, buckets, len(items))))
    else:
        from .lora.run import train

        train(options, attention, buckets, items, argv)
    return 0


def _of_dataset(options: argparse.Namespace) -> list[Item]:
    from .lora.hub import items_of_dataset

    folder = (options.cache_dir or options.output / "cache") / "dataset"
    return items_of_dataset(
        options.dataset_name, options.dataset_split, folder, options.media_column, options.caption_column
    )


if __name__ == "__main__":
    import sys

    from .cli import main as dattn

    sys.exit(dattn(["train-lora", *sys.argv[1:]]))
