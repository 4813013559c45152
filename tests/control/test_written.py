"""Words are found where Diffusers' own pipelines put them: templates, dropped beginnings, padding on either side.

The pipelines are real but for their models: a text encoder gives back the ids that it is told, so that the tokens that
a model would see can be read.
"""

import inspect
import re
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from dattn.adapters import ADAPTERS
from dattn.adapters.text import Prompt
from dattn.control import HeatMaps
from dattn.control.stage import Stage

from .test_words import chat, clip, t5

CPU = torch.device("cpu")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if add_generation_prompt and enable_thinking is false %}<think>{% endif %}"
)
SYSTEM = "Describe the video by its main content, its colours, and whatever else there is to see in a red circle."
HUMAN = ["Given a prompt, enhance it:", "A red circle becomes a red circle in the sun.", "Prompt: "]


@cache
def talker(side="right"):
    """The tokenizer of a language model, for texts of any length."""
    tokenizer = deepcopy(chat())
    tokenizer.chat_template, tokenizer.model_max_length, tokenizer.padding_side = CHAT, 10**6, side
    return tokenizer


class Processor:
    """A tokenizer inside of what also takes pictures."""

    def __init__(self, side="right"):
        self.tokenizer = talker(side)
        self.apply_chat_template, self.decode = self.tokenizer.apply_chat_template, self.tokenizer.decode

    def __call__(self, text, images=None, videos=None, **options):
        return self.tokenizer(text, **options)


class Echo(torch.nn.Module):
    """A text encoder whose hidden states, in every layer, are one-hot for the ids of the tokens."""

    dtype, device, config = torch.float32, CPU, SimpleNamespace()

    def forward(self, input_ids, *args, **options):
        states = F.one_hot(input_ids, 512).float()
        return Said(hidden_states=[states] * 40, last_hidden_state=states)


class Said(SimpleNamespace):
    def __getitem__(self, item):
        return getattr(self, item) if isinstance(item, str) else self.last_hidden_state


def pipeline(name, tokenizer, **attributes):
    """A pipeline without models."""
    cls = getattr(diffusers, name)
    wanted = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
    pipe = cls(**{p.name: None if p.default is p.empty else p.default for p in wanted})
    return given(pipe, tokenizer, **attributes)


def bare(name, tokenizer, **attributes):
    """The same where making it asks for more than there is."""
    return given(object.__new__(getattr(diffusers, name)), tokenizer, **attributes)


def given(pipe, tokenizer, **attributes):
    parts = {
        f"{part}{end}": one for part, one in (("tokenizer", tokenizer), ("text_encoder", Echo())) for end in ("", "_2")
    }
    vars(pipe).update(parts | attributes)
    return pipe


def module_of(pipe):
    return sys.modules[type(pipe).__module__]


def llama(pipe, prompt):
    return pipe._get_llama_prompt_embeds(
        prompt, module_of(pipe).DEFAULT_PROMPT_TEMPLATE, device=CPU, max_sequence_length=999
    )[0]


def kandinsky(pipe, prompt):
    return pipe._encode_prompt_qwen([module_of(pipe).prompt_clean(prompt)], CPU, 1999)[0]


def hunyuan_image(pipe, prompt):
    template = {"template": pipe.prompt_template_encode, "drop_idx": pipe.prompt_template_encode_start_idx}
    return pipe._get_qwen_prompt_embeds(pipe.tokenizer, pipe.text_encoder, prompt, CPU, **template)[0]


def hunyuan15(pipe, prompt):
    template = {"system_message": pipe.system_message, "crop_start": pipe.prompt_template_encode_start_idx}
    return pipe._get_mllm_prompt_embeds(pipe.text_encoder, pipe.tokenizer, prompt, CPU, **template)[0]


def mistral(pipe, prompt):
    system = {"system_message": pipe.system_message}
    return pipe._get_mistral_3_small_prompt_embeds(pipe.text_encoder, pipe.tokenizer, prompt, **system)


def instructed(pipe, prompt):
    return pipe.encode_prompt(prompt, False, device=CPU, complex_human_instruction=HUMAN)[0]


def encoded(pipe, prompt):
    return pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device=CPU)[0]


T5 = t5()
CASES = {
    "Qwen-Image": ("qwen_image", talker, pipeline, lambda pipe, p: pipe._get_qwen_prompt_embeds(p, CPU)[0]),
    "HunyuanImage": ("hunyuan_image", talker, pipeline, hunyuan_image),
    "HunyuanVideo": ("hunyuan_video", talker, pipeline, llama),
    "HunyuanVideoFramepack": ("framepack", talker, pipeline, llama),
    "HunyuanVideo15": ("hunyuan_video15", talker, bare, hunyuan15),
    "ZImage": ("z_image", talker, pipeline, lambda pipe, p: pipe._encode_prompt([p], CPU)[0][None]),
    "Kandinsky5T2V": ("kandinsky5", Processor, pipeline, kandinsky),
    "Kandinsky5T2I": ("kandinsky5", Processor, pipeline, kandinsky),
    "Lumina2": ("lumina2", talker, pipeline, encoded),
    "OvisImage": ("flux", talker, pipeline, lambda pipe, p: pipe._get_ovis_prompt_embeds(p, device=CPU)),
    "LongCatImage": ("flux", talker, pipeline, lambda pipe, p: pipe._encode_prompt([p])),
    "Flux2": ("flux2", Processor, pipeline, mistral),
    "Flux2Klein": (
        "flux2",
        talker,
        pipeline,
        lambda pipe, p: pipe._get_qwen3_prompt_embeds(pipe.text_encoder, pipe.tokenizer, p),
    ),
    "Cosmos2_5_PredictBase": ("cosmos", talker, bare, lambda pipe, p: pipe._get_prompt_embeds(p, device=CPU)),
    "CogView4": ("cogview", talker, pipeline, lambda pipe, p: pipe._get_glm_embeds(p, device=CPU)),
    "Sana": ("sana", talker, pipeline, instructed),
    "SanaVideo": ("sana_video", talker, pipeline, instructed),
    "Flux": ("flux", lambda side: T5, pipeline, lambda pipe, p: pipe._get_t5_prompt_embeds(p, device=CPU)),
    "Wan": ("wan", lambda side: T5, pipeline, lambda pipe, p: pipe._get_t5_prompt_embeds(p, device=CPU)),
    "PixArtAlpha": ("pixart", lambda side: T5, pipeline, encoded),
}
"""Family, tokenizer for a side of padding, how the pipeline is made, how it encodes a prompt."""
MORE = {
    "HunyuanVideo15": {"system_message": SYSTEM, "prompt_template_encode_start_idx": 40},
    "Sana": {"asked": {"complex_human_instruction": HUMAN}},
    "SanaVideo": {"asked": {"complex_human_instruction": HUMAN}},
}
EITHER_SIDE = ("LongCatImage", "Flux2", "Flux2Klein", "Cosmos2_5_PredictBase", "CogView4", "ZImage", "Qwen-Image")
SIDES = [(name, "right") for name in CASES] + [(name, "left") for name in EITHER_SIDE]


def staged(pipe, family, prompt, counts=(), **asked):
    adapter = next(one for one in ADAPTERS if one.family == family)
    own = Stage(lambda: pipe, adapter.tokenizers, adapter.written, adapter.positive_first)
    own.prompts, own.encoding = (prompt,), {"prompt": prompt, **asked}
    own.enter(Prompt(tuple(counts)), 1)
    return own


def said(tokenizer, ids):
    return re.sub(r"\s+", " ", tokenizer.decode(ids)).strip().lower()


@pytest.mark.parametrize("prompt", ["a Red circle on a  blue\nsquare, red circle", " red circle"])
@pytest.mark.parametrize(("name", "side"), SIDES)
def test_words_are_where_the_pipeline_puts_them(name, side, prompt):
    family, tokenizer, make, encode = CASES[name]
    more = dict(MORE.get(name, {}))
    asked = more.pop("asked", {})
    pipe = make(name.replace("-", "") + "Pipeline", tokenizer(side), **more)
    ids = encode(pipe, prompt)[0][:, :512].argmax(-1)
    own = staged(pipe, family, prompt, [len(ids)], **asked)
    reader = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)
    times = prompt.lower().count("red circle")
    assert said(reader, ids[own.positions("red  circle")]).replace(" ", "") == "redcircle" * times
    assert said(reader, ids[own.positions("circle")]).replace(" ", "") == "circle" * times
    with pytest.raises(ValueError, match="'describe' is not in the prompt"):
        own.positions("describe")


@pytest.mark.parametrize(
    ("family", "pipe", "prompt", "asked", "message"),
    [
        ("cogview", bare("GlmImagePipeline", talker()), "red", {}, "nothing but what is quoted"),
        ("flux", pipeline("LongCatImagePipeline", talker()), "a 'red' sign", {}, "letter by letter"),
        ("flux", pipeline("LongCatImagePipeline", talker()), "red", {"image": 1}, "a picture before the prompt"),
        ("z_image", bare("ZImageOmniPipeline", talker()), "red", {"num_condition_images": 1}, "pictures between"),
        ("hunyuan_video", pipeline("HunyuanVideoImageToVideoPipeline", talker()), "red", {}, "a picture between"),
        (
            "flux",
            pipeline("FluxPipeline", T5),
            "red",
            {"prompt_2": "blue"},
            "prompt_2=: words are looked for in prompt=",
        ),
    ],
)
def test_words_that_cannot_be_told(family, pipe, prompt, asked, message):
    own = staged(pipe, family, prompt, [40], **asked)
    with pytest.raises(ValueError, match=message) as error:
        own.positions("red")
    assert "positions of tokens" in str(error.value)
    assert own.positions([3, 4]) == [3, 4]


def test_pictures_before_the_prompt():
    """Qwen-Image-Edit: a place for a picture becomes as many tokens as the picture has."""
    pipe, prompt = pipeline("QwenImageEditPipeline", talker()), "make the red circle blue"
    text = pipe.prompt_template_encode.format(prompt).replace("<|image_pad|>", "<|image_pad|>" * 30)
    ids = talker()(text)["input_ids"][pipe.prompt_template_encode_start_idx :]
    own = staged(pipe, "qwen_image", prompt, [len(ids)], image="a picture")
    assert said(talker(), [ids[i] for i in own.positions("red circle")]) == "red circle"
    own.encoding = {"prompt": [prompt, "red"], "image": "a picture"}
    with pytest.raises(ValueError, match="before each of several prompts"):
        own.positions("red")


@pytest.mark.parametrize(
    ("family", "tokenizers", "counts", "starts"),
    [
        ("sd3", {"tokenizer": clip(), "tokenizer_3": T5}, (77 + 20,), (0, 77)),
        ("hunyuan_dit", {"tokenizer": clip(), "tokenizer_2": T5}, (77, 20), (0, 77)),
        ("hidream", {"tokenizer_3": T5, "tokenizer_4": chat()}, (20, 30, 30), (0, 20, 50)),
        ("flux", {"tokenizer": clip(), "tokenizer_2": T5}, (20,), (0,)),
        ("flux", {"tokenizer": T5}, (20,), (0,)),  # Bria
    ],
)
def test_several_tokenizers(family, tokenizers, counts, starts):
    prompt = "a red circle"
    own = staged(SimpleNamespace(**tokenizers), family, prompt, counts)
    tokens = own.tokens(prompt)
    assert tuple(part.start for part in tokens) == starts
    assert own.positions("circle") == [i for part in tokens for i in part.of("circle")]
    ends = [*starts[1:], sum(counts)]
    for part, start, end in zip(tokens, starts, ends, strict=True):
        assert start < min(part.of("circle")) <= max(part.of("circle")) < end


@pytest.mark.parametrize(
    ("model", "family", "attribute"), [("sd", "unet", ""), ("flux", "flux", "_2"), ("wan", "wan", "")]
)
def test_words_of_the_demo_models(model, family, attribute):
    folder = Path(__file__).parents[2] / "assets" / "models" / f"shapes-{model}" / f"tokenizer{attribute}"
    tokenizer, prompt = AutoTokenizer.from_pretrained(folder), "a red circle above a blue square"
    own = staged(SimpleNamespace(**{f"tokenizer{attribute}": tokenizer}), family, prompt, [16])
    ids = tokenizer(prompt)["input_ids"]
    for phrase in ("red", "red circle", "blue square", "above"):
        assert said(tokenizer, [ids[i] for i in own.positions(phrase)]) == phrase
    assert len(own.positions("a")) == 2


def test_another_call_may_write_its_prompt_in_another_way():
    pipe, prompt = pipeline("SanaPipeline", talker()), "a red circle"
    own = staged(pipe, "sana", prompt, [300], complex_human_instruction=HUMAN)
    behind = own.positions("circle")
    own.encoding = {"prompt": prompt}
    assert behind[0] == 2 + own.positions("circle")[0]  # two of the instructions' tokens are left


def test_a_word_of_several_embeddings_is_all_of_them():
    """Textual inversion with several vectors: the pipeline writes one word as many, and those after it move on."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(Path(__file__).parents[2] / "assets/models/shapes-sd")
    pipe.tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.set_progress_bar_config(disable=True)
    maps = HeatMaps(["<toy>", "circle"])
    with maps.on(pipe):
        pipe("a <toy> circle", height=32, width=32, num_inference_steps=1, output_type="latent")
        found = [maps.stage.positions(word) for word in ("a", "<toy>", "circle")]
    assert found == [[0], [1, 2, 3], [4]]
