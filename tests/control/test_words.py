"""Words of a prompt are found among the tokens of real tokenizers, whichever way they split and frame a text."""

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dattn.adapters.text import Written
from dattn.control.words import Tokens, positions, tokenize

WORDS = "a red circle moving right above the blue square cat 's red"
LONGEST = 77


def ready(core, **names):
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=LONGEST, **names)


@cache
def clip():
    """Lower case, pieces of up to three letters, the last of a word marked, between BOS and EOS; as CLIP's."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789',.!?-"
    pairs = [(a, b) for a in "aeiourst" for b in "aeiournstd"]
    ends = [(a, b + "</w>") for a in "aeiourst" for b in "edst"]
    pieces = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in pairs), *(a + b for a, b in ends)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["<s>", "</s>", "<unk>", *pieces]))}
    core = Tokenizer(models.BPE(vocabulary, pairs + ends, end_of_word_suffix="</w>", unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return ready(core, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>")


@cache
def t5():
    """Pieces that begin with the space before a word, and EOS but no BOS; as sentencepiece writes for T5."""
    whole = [("▁" + word, -2.0) for word in ("a", "red", "circ", "blue", "squ", "mov", "right", "above", "the")]
    pieces = [(c, -6.0) for c in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789',.!?-"]
    rest = [("le", -3.0), ("are", -3.0), ("ing", -3.0)]
    core = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *whole, *rest, *pieces], 2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return ready(core, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@cache
def chat():
    """A token for every byte, no special ones but those that the text spells out; like those of language models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    return ready(core, pad_token="<|pad|>", eos_token="<|im_end|>")


KINDS = {"clip": clip, "t5": t5, "chat": chat}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def found(tokenizer, phrase, prompt, count=LONGEST, **framed):
    return positions(phrase, [tokenize(tokenizer, Written(prompt, **framed))], count)


def said(tokenizer, prompt, at):
    """What the tokens at some positions say, in lower case and without spaces."""
    ids = tokenizer(prompt)["input_ids"]
    text = tokenizer.decode([ids[i] for i in at]).replace("</w>", "")
    return re.sub(r"\s", "", text).lower()


@pytest.mark.parametrize("phrase", ["red", "circle", "red circle", "moving right", "red  \n circle", "RED Circle"])
def test_a_phrase_is_found(tokenizer, phrase):
    prompt = "a red circle moving right"
    at = found(tokenizer, phrase, prompt)
    assert said(tokenizer, prompt, at) == re.sub(r"\s", "", phrase).lower()
    assert at == sorted(set(at))


def test_a_word_is_found_wherever_it_is(tokenizer):
    prompt = "red circle, a Red square. RED!"
    at = found(tokenizer, "red", prompt)
    assert said(tokenizer, prompt, at) == "redredred"


def test_a_word_is_a_whole_one(tokenizer):
    prompt = "a credit card is red, redder than dark-red reds"
    assert said(tokenizer, prompt, found(tokenizer, "red", prompt)) == "redred"
    with pytest.raises(ValueError, match="'car' is not in the prompt 'a credit card"):
        found(tokenizer, "car", prompt)


@pytest.mark.parametrize("phrase", ["cat's", "st. john", "who?", "a.b", "it's-a"])
def test_punctuation_is_taken_as_it_is(tokenizer, phrase):
    prompt = f"look: {phrase} above"
    assert said(tokenizer, prompt, found(tokenizer, phrase, prompt)) == phrase.replace(" ", "")
    with pytest.raises(ValueError, match="is not in the prompt"):
        found(tokenizer, "axb", "a.b")


def test_letters_beyond_ascii():
    prompt = "el niño ve über 🦊 Ärger"
    for phrase in ("niño", "über", "🦊", "ärger"):
        at = found(chat(), phrase, prompt)
        ids = chat()(prompt)["input_ids"]
        assert chat().decode([ids[i] for i in at]).strip().lower() == phrase


def test_special_tokens_are_no_words(tokenizer):
    prompt = "s unk"
    at = found(tokenizer, "s", prompt)
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    assert all(spans[i][1] > spans[i][0] for i in at)


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_what_is_cut_off_is_an_error(name):
    tokenizer = KINDS[name]()
    prompt = " ".join(["circle"] * 60) + " red"
    ids = tokenizer(prompt, truncation=True, max_length=LONGEST)["input_ids"]
    with pytest.raises(ValueError, match="'red' is beyond the 77 text tokens"):
        found(tokenizer, "red", prompt)
    kept = found(tokenizer, "circle", prompt)
    assert kept[-1] == LONGEST - 2 and ids[-1] == tokenizer.eos_token_id  # the last one seen is EOS
    assert said(tokenizer, prompt, kept).startswith("circlecircle")


def test_a_model_that_sees_less_than_its_tokenizer_writes():
    prompt = "a red circle"
    with pytest.raises(ValueError, match="'circle' is beyond the 2 text tokens"):
        found(t5(), "circle", prompt, count=2)
    assert found(t5(), "red", prompt, count=2) == [1]


@pytest.mark.parametrize(("phrase", "at"), [(0, [0]), (5, [5]), ([1, 3], [1, 3]), ((2,), [2]), (range(2), [0, 1])])
def test_positions_are_taken_as_they_are(phrase, at):
    assert positions(phrase, [], 6) == at


@pytest.mark.parametrize("phrase", [-1, 6, [0, 6], [], [0.5], ["red"]])
def test_positions_out_of_range(phrase):
    with pytest.raises(ValueError, match="there are 6 text tokens, counted from 0"):
        positions(phrase, [], 6)


@pytest.mark.parametrize("phrase", ["", "  ", "\n"])
def test_an_empty_phrase(phrase):
    with pytest.raises(ValueError, match="an empty phrase"):
        found(clip(), phrase, "a red circle")


def test_words_need_a_prompt():
    with pytest.raises(ValueError, match="the prompt is not known"):
        positions("red", [], 6)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow does not tell which characters"):
        tokenize(Slow(), Written("a red circle"))


def test_two_tokenizers_follow_each_other():
    prompt = "a red circle"
    first = tokenize(clip(), Written(prompt)).within(0, LONGEST)
    second = tokenize(t5(), Written(prompt)).within(LONGEST, 16)
    at = positions("circle", [first, second], LONGEST + 16)
    assert at == [*first.of("circle"), *(LONGEST + i for i in found(t5(), "circle", prompt))]


@pytest.mark.parametrize("dropped", [0, 3, 15])
def test_a_template_around_the_prompt(dropped):
    before, prompt, after = "<|im_start|>paint the red:\n", "a red circle", "<|im_end|>red"
    whole = chat()(before + prompt + after)["input_ids"]
    tokens = tokenize(chat(), Written(prompt, before, after)).within(0, LONGEST, dropped)
    at = positions("red", [tokens], LONGEST)
    assert chat().decode([whole[dropped:][i] for i in at]) == "red"  # the prompt's alone
    assert tokens.text == prompt and tokens.ids == tuple(whole[dropped:])


def test_padding_before_the_prompt():
    prompt = "a red circle"
    padded = chat()(prompt, padding="max_length", max_length=32, padding_side="left")["input_ids"]
    tokens = tokenize(chat(), Written(prompt)).within(0, 32, last=True)
    at = positions("red circle", [tokens], 32)
    assert chat().decode([padded[i] for i in at]) == "red circle"


WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9)
PROMPT = st.lists(st.one_of(WORD, st.sampled_from(WORDS.split())), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(PROMPT, st.data(), st.sampled_from([" ", "  ", ", ", " \n"]), st.sampled_from(sorted(KINDS)))
def test_every_token_over_a_phrase_is_found_and_no_other(words, data, space, name):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first + 1, len(words)))
    phrase, prompt = space.join(words[first:last]), space.join(words)
    offsets = KINDS[name]()(prompt, return_offsets_mapping=True)["offset_mapping"]
    pattern = (
        rf"(?<!\w){re.escape(phrase)}(?!\w)"
        if space == ", "
        else (r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)")
    )
    covered = {i for match in re.finditer(pattern, prompt) for i in range(*match.span())}
    letters = [{i for i in range(*span) if not prompt[i].isspace()} for span in offsets]
    spaces = {i for i in covered if prompt[i].isspace()}
    wanted = {i for i, own in enumerate(letters) if own & covered}
    at = set(found(KINDS[name](), phrase, prompt, count=10**6)) if covered else set()
    assert wanted <= at
    assert all(letters[i] & covered or set(range(*offsets[i])) & spaces for i in at)


def test_tokens_that_end_in_special_ones_are_told_apart():
    spans = ((0, 0), (0, 3), (4, 7), (0, 0), (0, 0))
    assert Tokens("red cat", (0, 1, 2, 3, 4), spans, 0, 5).seen == 5
    assert Tokens("red cat", (0, 1, 2, 3, 4), spans, 0, 4).seen == 2
