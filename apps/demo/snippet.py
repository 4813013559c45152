"""A script that makes the same as the demo did, without the demo."""

from __future__ import annotations

from ..loading import Loaded, shipped_folder
from ..lora.adapting import WEIGHTS
from ..running import Request


def snippet(loaded: Loaded, request: Request, attention: str, dense: float, lora: bool = False) -> str:
    """Python that prints nothing and leaves ``clip.mp4`` or ``picture.png``.

    Args:
        lora: whether one is on the model, as the visitor may have downloaded it.
    """
    call = request.call(loaded)
    call.pop("output_type")
    call["generator"] = Code(f"torch.Generator().manual_seed({request.seed})")
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.items())
    shipped = loaded.folder is not None and loaded.folder.resolve().parent == shipped_folder()
    where = f"assets/models/{loaded.name}" if shipped else str(loaded.folder or loaded.name)
    applied = "" if attention == "stock" else f"dattn.apply(pipe, {attention!r}, dense_steps={dense})\n"
    adapted = f'pipe.load_lora_weights(".", weight_name={WEIGHTS!r})\n' if lora else ""
    kind = type(loaded.pipe).__name__
    if loaded.makes_video:
        ending = 'export_to_video(pipe(\n{}).frames[0], "clip.mp4", fps=16)\n'
        extra = "from diffusers.utils import export_to_video\n"
    else:
        ending, extra = 'pipe(\n{}).images[0].save("picture.png")\n', ""
    return (
        f"import torch\nfrom diffusers import {kind}\n{extra}\nimport dattn\n\n"
        f'pipe = {kind}.from_pretrained({where!r}, dtype={loaded.pipe.dtype}).to("{loaded.pipe.device.type}")\n'
        f"{adapted}{applied}{ending.format(arguments)}"
    )


class Code(str):
    """Text that stands in a script as it is."""

    def __repr__(self) -> str:
        return str(self)
