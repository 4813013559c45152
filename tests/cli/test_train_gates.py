"""``dattn train-gates``: gates that a pipeline teaches, as files that other commands take."""

import json

import pytest

CLIP = "--frames", "9", "--steps", "2"


def test_blocks(dattn_command, shapes_folder, tmp_path):
    gate = tmp_path / "new" / "gate.safetensors"
    words = "--model", shapes_folder, *CLIP, "--block_size", "16", "--rounds", "2", "--output", gate
    outcome = dattn_command("train-gates", "blocks", *words)
    assert outcome.code == 0, outcome.err
    assert "layer 1: loss" in outcome.out and gate.is_file()
    pattern = outcome.out.split('--pattern "')[1].split('"')[0]
    assert pattern == f"LearnedGate('{gate}', topk=0.2, block_size=16)"
    outcome = dattn_command("probe", "--model", shapes_folder, *CLIP, "--every", "1", "--patterns", pattern)
    assert outcome.code == 0, outcome.err


def test_heads(dattn_command, shapes_folder, tmp_path):
    recipe = tmp_path / "heads.json"
    words = "--model", shapes_folder, *CLIP, "--local", "Neighborhood((1, 2, 2))", "--dense", "0.5"
    outcome = dattn_command("train-gates", "heads", *words, "--output", recipe, "--gradient_checkpointing")
    assert outcome.code == 0, outcome.err
    layers = json.loads(recipe.read_text())["attention"]["layers"]
    names = [pattern["name"] for _, row in layers for pattern in row["patterns"]]
    assert sorted(names) == ["Dense"] * 2 + ["Neighborhood"] * 2
    made = dattn_command("generate", "--model", shapes_folder, *CLIP, "--pattern", recipe, "--output", tmp_path / "out")
    assert made.code == 0, made.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("heads", "--dense", "1.5"), "--dense 1.5: a share of the heads"),
        (("heads", "--local", "Nowhere()"), "unknown pattern 'Nowhere'"),
        (("blocks", "--block_size", "24"), "--block_size: invalid choice"),
        (("heads", "--output", "heads.txt"), "heads are written as .json"),
        (("blocks", "--learning_rate", "0"), "--learning_rate 0.0: above 0"),
    ],
)
def test_what_is_wrong_is_said(dattn_command, shapes_folder, tmp_path, words, message):
    outcome = dattn_command("train-gates", words[0], "--model", shapes_folder, *CLIP, *words[1:])
    assert outcome.code == 2 and message in outcome.err


def test_prompts_are_asked_for(dattn_command, plain_folder):
    outcome = dattn_command("train-gates", "blocks", "--model", plain_folder)
    assert outcome.code == 2 and "--prompts is missing" in outcome.err
