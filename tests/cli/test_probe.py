"""``dattn probe``: patterns beside dense attention, inside a model that stays as it was."""

import json

import pytest


@pytest.fixture
def probe(dattn_command, shapes_folder, tmp_path):
    def call(*words):
        common = "--model", shapes_folder, "--frames", "9", "--steps", "2", "--every", "1"
        outcome = dattn_command("probe", *common, "--output", tmp_path / "probe.json", *words)
        assert outcome.code == 0, outcome.err
        return outcome, {row["pattern"]: row for row in json.loads((tmp_path / "probe.json").read_text())["rows"]}

    return call


def test_figures_of_patterns_and_operators(probe):
    names = "Dense()", "Radial(block_size=16, sink=False)", "Neighborhood((1, 2, 2))", "Agent(0.5)"
    outcome, rows = probe("--patterns", *names, "Reshaped(Neighborhood((1, 2, 2)), refresh=2)")
    assert list(rows)[:4] == list(names) and all(name in outcome.out for name in names)
    assert rows["Dense()"]["error"] < 1e-4 and rows["Dense()"]["kept"] == pytest.approx(1, abs=1e-4)
    window = rows["Neighborhood((1, 2, 2))"]
    assert window["error"] > 0.01 and window["kept"] < 0.9 and window["work"] < 1
    assert rows["Agent(0.5)"]["error"] > 0.01 and rows["Agent(0.5)"]["kept"] is None
    reshaped = rows["Reshaped(Neighborhood((1, 2, 2)), refresh=2)"]
    assert 0 < reshaped["error"] < window["error"]  # the first step of two is dense
    assert set(window["error of layers"]) == {"0", "1"}


def test_tails_are_compared_on_each_pattern(probe):
    _, rows = probe("--patterns", "Radial(block_size=16, sink=False, decay=0.1)", "--tails")
    assert len(rows) == 4
    work = {name.split(" + tail 16")[-1]: row["work"] for name, row in rows.items()}
    assert work[""] < work[", first order"]
    assert work[""] == work[", first order by the mean"]


def test_an_operator_has_no_tail(dattn_command, shapes_folder):
    outcome = dattn_command("probe", "--model", shapes_folder, "--patterns", "Agent(0.5)", "--tails")
    assert outcome.code == 2 and "only attention computes it" in outcome.err


def test_patterns_that_choose_say_what_they_chose_and_how_long_it_took(probe):
    names = "Selected(Pooled(), TopK(0.3), block_size=16)", "Selected(Pooled(), TopK(0.9), block_size=16)"
    outcome, rows = probe("--patterns", *names, "Radial(block_size=16)")
    few, many = (rows[name] for name in names)
    assert 0.3 <= few["work"] < many["work"] <= 1 and few["error"] > many["error"]
    assert few["kept"] < many["kept"] <= 1.0001 and few["choosing"] > 0
    assert rows["Radial(block_size=16)"]["choosing"] is None and "choosing" in outcome.out
