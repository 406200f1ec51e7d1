"""The loopback server itself: its greedy text, its log-probabilities, its counts, its faults."""

import copy
from collections import Counter

import pytest
import torch
from servers import FAULTS, Server
from speakers import Canned, Model, tiny

httpx2 = pytest.importorskip("httpx2", reason="the extra 'api' is not installed")
pytestmark = pytest.mark.extra("api")

TURNS = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "to be"}]


@pytest.fixture(scope="module")
def network():
    return tiny()


@pytest.fixture(scope="module")
def server(network):
    with Server(Model(*network, "tiny")) as running:
        yield running


def post(server: Server, path: str, **told):
    told = {"model": "tiny", "temperature": 0, "max_tokens": 6, **told}
    reply = httpx2.post(f"{server.url}/{path}", json=told, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.json()


def alone(network, prompt: str) -> tuple[list[int], list[int], torch.Tensor]:
    """Tokens of a prompt, those that ``generate`` adds, and the whole log-probabilities."""
    model, tokenizer = network
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    told = torch.tensor([ids])
    made = model.generate(
        told, attention_mask=torch.ones_like(told), do_sample=False, max_new_tokens=6
    )
    with torch.no_grad():
        return ids, made[0, len(ids) :].tolist(), model(made).logits[0].log_softmax(-1)


def test_greedy_text_is_what_generate_writes(network, server):
    for prompt in ("to be", "a longer question, with a comma", "z"):
        ids, new, _ = alone(network, prompt)
        told = post(server, "completions", prompt=prompt)
        assert told["choices"][0]["text"] == network[1].decode(new, skip_special_tokens=True)
        assert told["usage"]["prompt_tokens"] == len(ids)
        assert told["usage"]["completion_tokens"] == len(new)


def test_chat_is_the_template_and_the_same_model(network, server):
    rendered = "<system>be brief\n<user>to be\n<assistant>"
    _, new, _ = alone(network, rendered)
    told = post(server, "chat/completions", messages=TURNS)
    message = told["choices"][0]["message"]
    assert message == {
        "role": "assistant", "content": network[1].decode(new, skip_special_tokens=True)
    }  # fmt: skip
    assert told["choices"][0]["finish_reason"] == ("stop" if new[-1] == 0 else "length")


def test_log_probabilities_are_those_of_the_model(network, server):
    ids, new, scores = alone(network, "to be")
    told = post(server, "completions", prompt="to be", logprobs=3, prompt_logprobs=2)
    choice = told["choices"][0]
    wanted = [float(scores[len(ids) - 1 + i, t]) for i, t in enumerate(new)]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert max(choice["logprobs"]["top_logprobs"][0].values()) == pytest.approx(wanted[0], abs=1e-4)
    before = choice["prompt_logprobs"]
    assert before[0] is None
    assert len(before) == len(ids)
    for i, entry in enumerate(before[1:], start=1):
        row = scores[i - 1]
        own = entry[str(ids[i])]
        assert own["logprob"] == pytest.approx(float(row[ids[i]]), abs=1e-4)
        assert own["rank"] == int((row >= row[ids[i]]).sum())
        assert own["decoded_token"] == network[1].decode(ids[i])
        assert len(entry) in (2, 3)


def test_log_probabilities_of_chat(network, server):
    _, new, _ = alone(network, "<system>be brief\n<user>to be\n<assistant>")
    told = post(server, "chat/completions", messages=TURNS, logprobs=True, top_logprobs=2)
    content = told["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == [network[1].decode(t) for t in new]
    assert all(one["top_logprobs"][0]["logprob"] == one["logprob"] for one in content)  # greedy


def test_the_same_seed_gives_the_same_sample(server):
    def drawn(seed: int) -> str:
        told = post(
            server, "completions", prompt="to be", temperature=1.0, seed=seed, max_tokens=20
        )
        return told["choices"][0]["text"]

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_a_stop_text_and_a_limit_end_an_answer(server):
    whole = post(server, "completions", prompt="to be")["choices"][0]["text"]
    cut = post(server, "completions", prompt="to be", stop=[whole[2:4]])["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(whole[2:4])], "stop")
    one = post(server, "completions", prompt="to be", max_tokens=1)
    assert one["usage"]["completion_tokens"] == 1


def test_models_are_listed_and_another_is_not_there(server):
    assert httpx2.get(f"{server.url}/models").json()["data"][0]["id"] == "tiny"
    told = {"model": "other", "prompt": "x"}
    assert httpx2.post(f"{server.url}/completions", json=told).status_code == 404


def test_faults_are_seeded_by_prompt_and_attempt_and_come_at_their_rates():
    one, same, other = (
        Server(Canned(str), dict.fromkeys(FAULTS, 0.05), seed=seed) for seed in (0, 0, 1)
    )
    drawn = [one.fault(f"q{i}", 1) for i in range(4000)]
    assert drawn == [same.fault(f"q{i}", 1) for i in range(4000)]
    assert drawn != [other.fault(f"q{i}", 1) for i in range(4000)]
    counts = Counter(drawn)
    for name in FAULTS:
        assert 130 < counts[name] < 270  # 200, five standard deviations of 14 each way
    assert [one.fault("q", k) for k in range(50)] != [one.fault("q", k) for k in range(50, 100)]
    for server in (one, same, other):
        server._http.server_close()


def test_it_counts_what_was_asked_answered_and_billed():
    with Server(Canned(lambda prompt: "one two three"), {"empty": 0.5}) as server:
        for i in range(30):
            httpx2.post(f"{server.url}/completions", json={"model": "canned", "prompt": f"q {i}"})
        assert sum(server.asked.values()) == 30
        assert 5 < sum(server.answered.values()) < 25
        assert server.tokens == {"prompt": 60, "answer": 90}


def test_a_model_without_a_template_says_so(network):
    model, tokenizer = network
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with Server(Model(model, bare, "tiny")) as server:
        told = {"model": "tiny", "messages": TURNS}
        reply = httpx2.post(f"{server.url}/chat/completions", json=told)
    assert reply.status_code == 400
    assert "chat_template" in reply.json()["error"]["message"]
