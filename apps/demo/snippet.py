"""A script that makes the same as the demo did, without the demo."""

from __future__ import annotations

from ..loading import Loaded, shipped_folder
from ..lora.adapting import WEIGHTS
from ..running import Request

LORA = "# The file that the tab Fine-tune offers, saved where this runs.\n"


def snippet(loaded: Loaded, request: Request, attention: str, dense: float, lora: bool = False) -> str:
    """Python that prints nothing and leaves ``clip.mp4`` or ``picture.png``.

    Args:
        lora: whether one is on the model, as the visitor may have downloaded it.
    """
    call = request.call(loaded)
    call.pop("output_type")
    call["generator"] = Code(f"torch.Generator().manual_seed({request.seed})")
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.items())
    where, note = _place(loaded)
    applied = "" if attention == "stock" else f"dattn.apply(pipe, {attention!r}, dense_steps={dense})\n"
    adapted = f'{LORA}pipe.load_lora_weights(".", weight_name={WEIGHTS!r})\n' if lora else ""
    kind = type(loaded.pipe).__name__
    if loaded.makes_video:
        ending = 'export_to_video(pipe(\n{}).frames[0], "clip.mp4", fps=16)\n'
        extra = "from diffusers.utils import export_to_video\n"
    else:
        ending, extra = 'pipe(\n{}).images[0].save("picture.png")\n', ""
    return (
        f"import torch\nfrom diffusers import {kind}\n{extra}\nimport dattn\n\n"
        f'{note}pipe = {kind}.from_pretrained({where!r}, dtype={loaded.pipe.dtype}).to("{loaded.pipe.device.type}")\n'
        f"{adapted}{applied}{ending.format(arguments)}"
    )


def _place(loaded: Loaded) -> tuple[str, str]:
    """The model as a visitor may have it, and a line that says where the script then runs; a hub's runs anywhere."""
    if loaded.folder is None:
        return loaded.name, ""
    if loaded.folder.resolve().parent == shipped_folder():
        return f"assets/models/{loaded.name}", "# Run this in a clone of dattn, which holds the model.\n"
    return loaded.name, f"# Run this beside a copy of the folder {loaded.name!r} of the demo's machine.\n"


class Code(str):
    """Text that stands in a script as it is."""

    def __repr__(self) -> str:
        return str(self)
