"""Controls that hide keys on backends that take no mask, such as flash and sage."""

import pytest
import torch
from diffusers.models import attention_dispatch

import dattn
from dattn.control import Emphasize, Isolation, Reweight, SplitContext, SubjectKeys
from tests.families import FAMILIES

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
CONTROLS = {
    "split": lambda: SplitContext([LEFT], [(0, 1), (2, 3)]),
    "isolation": lambda: Isolation([LEFT, RIGHT]),
    "isolation-beside": lambda: [Emphasize({0: 0.5}), Isolation([LEFT, RIGHT])],
    "subjects": lambda: SubjectKeys([(0, 1), (2, 3)]),
    "reweight": lambda: Reweight({(0, 1): 2.0}),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_keys_are_hidden_without_the_models_backend(name, monkeypatch):
    family = FAMILIES["flux"]
    model = family.model()
    plain = attention_dispatch.dispatch_attention_fn

    def no_masks(query, key, value, attn_mask=None, *more, **options):
        assert attn_mask is None, "this backend takes no mask"
        return plain(query, key, value, attn_mask, *more, **options)

    def run():
        with dattn.apply(model, control=CONTROLS[name]()) as handle:
            handle._stage.prompts = ("a red circle", "a blue square")
            return family.run(model, batch=2)

    wanted = run()
    monkeypatch.setattr(attention_dispatch, "dispatch_attention_fn", no_masks)
    assert torch.equal(run(), wanted)
    assert (wanted - family.run(model, batch=2)).abs().max() > 1e-3
