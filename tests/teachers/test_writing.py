"""A local model as teacher: greedy text as its own ``generate``, and the same in any batch."""

import asyncio
import json

import pytest
import torch
from speakers import tiny

from stillroom.models.text import CausalLM
from stillroom.store.requests import Decoding, Outcome, Request, Tokens
from stillroom.teachers.writing import Writer, writer

GREEDY = Decoding(temperature=0.0, max_tokens=8)
SAMPLED = Decoding(temperature=1.0, max_tokens=8, seed=3)
PROMPTS = ["to be", "or not to be, that is", "x", "the question"]


@pytest.fixture(scope="module")
def network():
    return tiny()


def local(network, size: int = 4) -> Writer:
    return Writer(CausalLM(network[0]), network[1], "tiny", "w", size)


def ask(source: Writer, requests: list[Request]) -> list[Outcome]:
    return asyncio.run(source.ask(requests))


def generated(network, ids: list[int]) -> list[int]:
    model, _ = network
    told = torch.tensor([ids])
    made = model.generate(
        told, attention_mask=torch.ones_like(told), do_sample=False, max_new_tokens=8
    )
    return made[0, len(ids) :].tolist()


def test_greedy_text_is_what_generate_writes(network):
    _, tokenizer = network
    outcomes = ask(local(network), [Request(p, GREEDY) for p in PROMPTS])
    for prompt, outcome in zip(PROMPTS, outcomes, strict=True):
        ids = tokenizer(prompt).input_ids
        new = generated(network, ids)
        assert outcome.text == tokenizer.decode(new, skip_special_tokens=True)
        assert outcome.tokens == Tokens(len(ids), len(new))
        assert outcome.kind == ("answer" if new[-1] == 0 else "truncated")


def test_messages_go_through_the_template_and_plain_prompts_do_not(network):
    source, (_, tokenizer) = local(network), network
    turns = [{"role": "user", "content": "to be"}]
    assert source.rendered(Request("to be"))["ids"] == tokenizer("to be").input_ids
    told = source.rendered(Request(turns))["ids"]
    assert tokenizer.decode(told) == "<user>to be\n<assistant>"


def test_a_sample_depends_on_its_question_seed_and_copy_and_not_on_the_batch(network):
    source = local(network)
    together = ask(source, [Request(p, SAMPLED) for p in PROMPTS])
    alone = [ask(source, [Request(p, SAMPLED)])[0] for p in PROMPTS]
    assert together == alone
    other = ask(source, [Request(p, SAMPLED, 1) for p in PROMPTS])
    assert [o.text for o in other] != [o.text for o in together]


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(network):
    plain = ask(local(network), [Request("to be", GREEDY)])[0].text
    word = plain[3:5]
    how = Decoding(temperature=0.0, max_tokens=8, stop=(word,))
    (outcome,) = ask(local(network), [Request("to be", how)])
    assert outcome.kind == "answer"
    assert outcome.text == plain[: plain.index(word)]


def test_a_prompt_that_leaves_no_room_is_dropped_and_the_others_are_answered(network):
    long = "a" * 600
    outcomes = ask(local(network), [Request(p, GREEDY) for p in ("to be", long, "x")])
    assert [o.kind == "rejected" for o in outcomes] == [False, True, False]
    assert "600 tokens of prompt" in outcomes[1].why
    assert outcomes[2] == ask(local(network), [Request("x", GREEDY)])[0]


def test_the_identity_of_a_folder_follows_weights_tokenizer_and_template(network, tmp_path):
    def saved(name: str, seed: int = 0, template: str = "") -> dict:
        model, tokenizer = tiny(seed)
        tokenizer.chat_template = template or tokenizer.chat_template
        model.save_pretrained(tmp_path / name / "model")
        tokenizer.save_pretrained(tmp_path / name / "model")
        return dict(writer(str(tmp_path / name / "model")).identity)

    base = saved("a")
    assert base == saved("b")  # wherever it lies
    assert (base["kind"], base["model"]) == ("local", "model")
    weights, template = saved("c", seed=1), saved("d", template="{{ messages }}")
    assert {k for k in base if base[k] != weights[k]} == {"weights"}
    assert {k for k in base if base[k] != template[k]} == {"template"}
    file = tmp_path / "b" / "model" / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    words = told["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(told), encoding="utf-8")
    other = dict(writer(str(tmp_path / "b" / "model")).identity)
    assert {k for k in base if base[k] != other[k]} == {"tokenizer"}
