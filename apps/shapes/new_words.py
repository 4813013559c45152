"""Two textures learned from one picture, apart: ``python -m dattn.apps.shapes.new_words --output outputs/new-words``.

The picture shows a circle in upright red stripes left of a square in lying blue ones; ``<new1>`` and ``<new2>``, which
start from "red" and "blue", are to learn stripes that the world has not. Pictures of plain objects keep what other
words mean. Each method of keeping the two apart trains on that, then makes pictures of each word alone and of both,
which a program reads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from ..record import provenance, write_json
from ..sheet import pictures
from .captions import RELATIONS, SHAPES
from .judge import RELATION_GAP
from .pictures import caption_of, draw_pictures, whole_pictures
from .score import STEPS
from .score_pictures import generate, how_to_call
from .stripes import Seen, Striped, draw, read
from .training import MODEL_FOLDER

MODEL = MODEL_FOLDER.parent / "shapes-sd"
WORDS = {"<new1>": ("red", "circle", "upright"), "<new2>": ("blue", "square", "lying")}
"""Colour, shape and stripes that each word has in the picture."""
COPIES = 8
"""Of the picture in the folder, beside as many of plain objects."""
PLAIN = ["--binding_weight", "0"]
METHODS = {
    "plain": PLAIN,
    "DisenDiff": ["--binding_weight", "0.01"],
    "AttenCraft": [*PLAIN, "--masking_weight", "1", "--concept_sampling", "uniform"],
    "AttenCraft, reweighted": [*PLAIN, "--masking_weight", "1", "--concept_sampling", "reweighted"],
}
"""Options of ``dattn train-lora`` by what keeps concepts apart."""
UNTRAINED = "untrained"
"""The model itself, told of red and blue."""
SHOWN = 8
"""Pictures of each method on the sheet."""


@dataclass(frozen=True)
class Asked:
    """A prompt, and what is wanted of it.

    Attributes:
        kind: which prompts it is counted with.
        objects: (word, shape) in their order; the word is a new one or a colour.
        relation: of two, or None.
    """

    kind: str
    objects: tuple[tuple[str, str], ...]
    relation: str | None = None

    def __str__(self) -> str:
        told = [f"a {word} {shape}" for word, shape in self.objects]
        return told[0] if self.relation is None else f"{told[0]} {self.relation} {told[1]}"

    def untrained(self) -> str:
        """The same in words that the model knows."""
        text = str(self)
        for word, (color, _, _) in WORDS.items():
            text = text.replace(word, color)
        return text


def questions() -> list[Asked]:
    """Eight of each kind: alone in its own shape and in others, both in their own and in others, beside green."""
    (one, two), own = WORDS, {word: shape for word, (_, shape, _) in WORDS.items()}
    others = {word: [shape for shape in SHAPES if shape != own[word]] for word in WORDS}
    found = [Asked("alone", ((word, own[word]),)) for word in WORDS for _ in range(4)]
    found += [Asked("alone, other shape", ((w, shape),)) for w in WORDS for shape in others[w] for _ in range(2)]
    for turn, relation in product((1, -1), RELATIONS):
        pair = (one, two)[::turn]
        found.append(Asked("together", tuple((w, own[w]) for w in pair), relation))
        shapes = {one: others[one][turn > 0], two: others[two][turn < 0]}
        found.append(Asked("together, other shapes", tuple((w, shapes[w]) for w in pair), relation))
        found.append(Asked("beside green", ((pair[0], own[pair[0]]), ("green", "triangle"))[::turn], relation))
    return sorted(found, key=lambda asked: asked.kind)


def judged(picture: np.ndarray, asked: Asked) -> dict[str, float]:
    """Shares of the objects whose stripes, shape, and both are right, and whether the relation holds.

    A colour of the world is to have no stripes.
    """
    wanted = [(*WORDS.get(word, (word, "", None))[::2], shape) for word, shape in asked.objects]
    seen = [read(picture, color) for color, _, _ in wanted]
    stripes = [s is not None and s.direction == w[1] for s, w in zip(seen, wanted, strict=True)]
    shapes = [s is not None and s.shape == w[2] for s, w in zip(seen, wanted, strict=True)]
    told = {"stripes": fmean(stripes), "shapes": fmean(shapes), "all": float(all(stripes) and all(shapes))}
    return told | ({} if asked.relation is None else {"places": float(_holds(asked.relation, seen))})


def _holds(relation: str, seen: Sequence[Seen | None]) -> bool:
    first, second = seen
    if first is None or second is None:
        return False
    return float(np.subtract(first.center, second.center) @ np.array(RELATIONS[relation])) >= RELATION_GAP


def the_picture() -> tuple[np.ndarray, str]:
    """What both words are learned from, and its caption."""
    striped = [Striped(*parts) for parts in WORDS.values()]
    (one, two), places = WORDS, ((0.28, 0.5), (0.72, 0.5))
    caption = f"a {one} {striped[0].shape} left of a {two} {striped[1].shape}"
    return draw(dict(zip(places, striped, strict=True)), 10.5 / 64), caption


def write_folder(folder: Path) -> None:
    """Write the data."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = whole_pictures(COPIES)
    shown = [the_picture()] * COPIES + list(zip(draw_pictures(plain), map(caption_of, plain), strict=True))
    lines = []
    for number, (picture, caption) in enumerate(shown):
        Image.fromarray(picture).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def train(method: str, output: Path, args: argparse.Namespace) -> Path:
    """Train as a user does; the folder that holds the LoRA and the words."""
    folder = output / "".join(c if c.isalnum() else "-" for c in method.lower())
    command = [sys.executable, "-m", "dattn.apps.train_lora", "--model", str(MODEL), "--data", str(output / "data")]
    command += ["--buckets", "64x64", "--cache_dir", str(output / "cache"), "--output", str(folder)]
    command += ["--placeholder_token", *WORDS, "--initializer_token", *(color for color, _, _ in WORDS.values())]
    command += ["--concept", *(f"{word} {shape}" for word, (_, shape, _) in WORDS.items()), "--validation_steps", "0"]
    command += ["--max_train_steps", str(args.train_steps), "--train_batch_size", "4", "--seed", str(args.seed)]
    command += ["--rank", str(args.rank), "--learning_rate", str(args.learning_rate)]
    command += ["--token_learning_rate", str(args.token_learning_rate), *METHODS[method]]
    subprocess.run(command, check=True)
    return folder


def made(folder: Path | None, asked: Sequence[Asked], args: argparse.Namespace) -> Iterator[np.ndarray]:
    """A picture for each prompt, the same noise whatever the method; without a folder, of the untrained model."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    if folder is not None:
        pipe.load_textual_inversion([str(path) for path in sorted(folder.glob("learned_embeds-*.safetensors"))])
        pipe.load_lora_weights(str(folder))
    texts = [one.untrained() if folder is None else str(one) for one in asked]
    for first in range(0, len(texts), 8):
        yield from generate(pipe, texts[first : first + 8], args.steps, 1000 + first, **how_to_call(MODEL))


def rows(method: str, made: Sequence[np.ndarray], asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """What is right, by kind of prompt."""
    found = []
    for kind in dict.fromkeys(one.kind for one in asked):
        told = [judged(picture, one) for picture, one in zip(made, asked, strict=True) if one.kind == kind]
        shares = {name: fmean(one[name] for one in told) for name in told[0]}
        found.append({"method": method, "asked": kind, "pictures": len(told), **shares})
    return found


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Train, make, judge, and write ``results.json`` and ``results.png``."""
    write_folder(args.output / "data")
    asked, found = questions(), []
    spread = np.linspace(0, len(asked) - 1, SHOWN).round().astype(int)
    shown = [{"learned from": the_picture()[0]}]
    for method in (UNTRAINED, *args.methods):
        folder = None if method == UNTRAINED else train(method, args.output, args)
        pictured = list(made(folder, asked, args))
        found += rows(method, pictured, asked)
        shown.append({f"{method}: {asked[i]}": (pictured[i] * 255).round().astype(np.uint8) for i in spread})
        record = {"rows": found, "methods": {name: METHODS[name] for name in args.methods}}
        write_json(args.output / "results.json", record | provenance("dattn.apps.shapes.new_words", argv))
        pictures(shown, "two textures learned from one picture", cell=112).save(args.output / "results.png")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/new-words"), help="(default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="(default: all)")
    parser.add_argument("--train_steps", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--token_learning_rate", type=float, default=1e-2, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of making a picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")
    run(parser.parse_args(), sys.argv[1:])


if __name__ == "__main__":
    main()
