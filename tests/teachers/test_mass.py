"""Probability mass on tokens that another tokenizer has, against a sum over the vocabulary."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vocabularies import byte_fallback, merged

from stillroom.core import Failure
from stillroom.data.spelling import spelled
from stillroom.models.text import CausalLM
from stillroom.teachers.mass import mass

ROWS = [
    ("row 0", {"prompt": "the cat", "completion": " sat on the mat"}),
    ("row 1", {"prompt": "Hello 😀", "completion": " 你"}),
]
WEATHER = ("w e", "we a", "wea t", "weat h", "weath e", "weathe r", "weather ?")
OWN = merged(*WEATHER)
"""Its last words are some of the others' with a space before."""


def network(width: int, context: int = 64) -> CausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    told = LlamaConfig(
        vocab_size=width,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        attention_dropout=0.5,
        eos_token_id=1,
        bos_token_id=None,
        **sizes,
    )
    return CausalLM(LlamaForCausalLM(told))


def summed(model: CausalLM, kept: set[int]) -> float:
    """Over the answers' tokens and their end, by the model's own logits."""
    said = []
    for _, row in ROWS:
        prompt, answer = (
            OWN(row[c], add_special_tokens=False).input_ids for c in ("prompt", "completion")
        )
        with torch.no_grad():
            p = model.model(torch.tensor([prompt + answer])).logits[0].double().softmax(-1)
        said += [sum(float(p[k, i]) for i in kept) for k in range(len(prompt) - 1, len(p))]
    return sum(said) / len(said)


@pytest.mark.parametrize("width", [265, 320], ids=["head", "padded head"])
@pytest.mark.parametrize(
    "other", [byte_fallback(), byte_fallback(space_first=False), merged("c a", "ca t")]
)
def test_mass_is_that_of_the_tokens_that_the_other_has(width, other):
    model = network(width)
    own = {i: bytes(word) for i, word in enumerate(spelled(OWN)) if word is not None}
    words = {bytes(word) for word in spelled(other) if word is not None}
    wide = {i for i, word in own.items() if word in words}
    if other("a", add_special_tokens=False).tokens()[0].startswith("▁"):
        wide |= {i for i, word in own.items() if b" " + word in words}
        assert {own[i] for i in wide} - words == {b"weathe", b"weather?"}
    common, beginning = mass(model.train(), OWN, other, ROWS)
    assert model.training
    model.eval()
    same = {i for i, word in own.items() if word in words}
    assert common == pytest.approx(summed(model, same), rel=1e-5)
    assert beginning == pytest.approx(summed(model, wide), rel=1e-5)
    assert 0.05 < common <= beginning < 1
    assert (common < beginning) == (wide != same)


def test_a_vocabulary_beyond_the_head_is_no_error():
    """Tokens that were added and have no row yet have no mass."""
    model = network(260)
    kept = set(range(2, 260))
    rows = [("row", {"prompt": "!!", "completion": "!#"})]
    common, _ = mass(model, OWN, OWN, rows)
    ids = torch.tensor([OWN("!!!#", add_special_tokens=False).input_ids])
    with torch.no_grad():
        p = model.eval().model(ids).logits[0]
    wanted = p.softmax(-1)[1:, sorted(kept)].sum(-1).mean()
    assert common == pytest.approx(float(wanted), rel=1e-5)


def test_rows_that_a_model_cannot_read_are_refused():
    with pytest.raises(Failure, match=r"row 0: \d\d tokens are more than the context of 9"):
        mass(network(265, context=9), OWN, OWN, ROWS)
    with pytest.raises(Failure, match="row 5: expected a text in 'completion'"):
        mass(network(265), OWN, OWN, [("row 5", {"prompt": "a"})])
