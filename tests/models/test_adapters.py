"""LoRA: an adapter on a frozen base that others share; merged, saved, and refused."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from numerics import SAME_BITS, contract, note
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from stillroom.core import Failure
from stillroom.data.text import collate
from stillroom.models import text
from stillroom.models.adapters import adapted
from stillroom.models.cut import Early
from stillroom.models.heads import mode
from stillroom.models.text import CausalLM
from stillroom.nets.scorer import Scorer
from stillroom.rollouts.sampling import Sampling, sample

peft = pytest.importorskip("peft", reason="the extra 'lora' is not installed")
pytestmark = pytest.mark.extra("lora")

V, EOS = 40, 1
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
KINDS = {
    "llama": GROUPED,
    "gemma3_text": GROUPED | {"sliding_window": 4},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "windowed": SIZES | {"window": 3, "sinks": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_target = pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]], ids=str)
AS_PEFT_IS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
PAIRS = [([5, 6, 7, 8], [9, 10, 11, 12, 13, EOS]), ([14], [15, EOS]), ([16, 17, 18], [19, 20, EOS])]
BATCH = collate(PAIRS, torch.arange(len(PAIRS)), 0)


def plain(kind="llama", seed=0, **sizes):
    config = AutoConfig.for_model(
        kind, vocab_size=V, pad_token_id=0, eos_token_id=EOS, bos_token_id=None,
        **{**KINDS[kind], **sizes},
    )  # fmt: skip
    torch.manual_seed(seed)
    return CausalLM(AutoModelForCausalLM.from_config(config).eval())


def moved(lm, seed=7):
    """An adapter that has learned something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return lm.eval()


def student(kind="llama", **told):
    return moved(adapted(plain(kind), **{"rank": 3, **told}))


def base_weights(lm):
    """A copy of what the base holds, by the names it had before."""
    state = lm.model.state_dict().items()
    return {k.replace(".base_layer.", "."): v.clone() for k, v in state if ".lora_" not in k}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- what an adapter is


@contract
@every_kind
def test_with_its_adapter_off_it_says_what_the_base_says_bit_for_bit(kind):
    lm = moved(adapted(plain(kind).double()))
    off, wanted = lm.base().eval()(BATCH).logits, plain(kind).double().eval()(BATCH).logits
    assert (lm.eval()(BATCH).logits - wanted).abs().max() > 1e-3
    note(f"model: {kind}", "adapter off", (off - wanted).abs().max().item(), SAME_BITS)


@every_kind
def test_at_the_start_it_says_what_the_base_says_bit_for_bit(kind):
    lm = adapted(plain(kind)).eval()
    assert lm.signals == {"hidden", "features", "text", "weights"}
    assert torch.equal(lm(BATCH).logits, plain(kind)(BATCH).logits)
    assert torch.equal(lm.states(BATCH), plain(kind).states(BATCH))


@every_kind
@every_target
def test_it_adds_a_scaled_product_to_linear_weights(kind, targets):
    lm = moved(adapted(plain(kind).double(), rank=3, alpha=4.5, targets=targets))
    whole = plain(kind).double().model
    if targets == ["lm_head"]:
        whole.lm_head.weight = nn.Parameter(whole.lm_head.weight.clone())  # no embedding moves
    linear = {n: m for n, m in whole.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    chosen = {n: m for n, m in linear.items() if (n == "lm_head") == (targets == ["lm_head"])}
    weights = dict(lm.weights.items())
    assert len(weights) == 2 * len(chosen) > 0
    with torch.no_grad():
        for name, layer in chosen.items():
            down, up = (weights[f"{name.replace('.', '/')}/lora_{x}/weight"] for x in "AB")
            assert (len(down), up.shape[1]) == (3, 3)
            update = 1.5 * up @ down
            layer.weight += update.T if isinstance(layer, Conv1D) else update
    torch.testing.assert_close(lm(BATCH).logits, CausalLM(whole)(BATCH).logits)
    torch.testing.assert_close(lm.base().eval()(BATCH).logits, plain(kind).double()(BATCH).logits)


def test_an_adapter_of_the_head_is_no_formula_that_is_known():
    assert student("gemma3_text", targets=["lm_head"]).signals == {"logits", "text", "weights"}
    assert student("gemma3_text", targets=["q_proj", "lm_head"]).head_known is False


def test_it_is_float32_on_a_base_in_another_dtype(tmp_path):
    half = plain()
    half.model.to(torch.bfloat16)
    lm = moved(adapted(half, rank=3))
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    assert {v.dtype for v in base_weights(lm).values()} == {torch.bfloat16}
    assert lm(BATCH).hidden.dtype == torch.bfloat16
    lm.save(tmp_path)
    assert {p.dtype for p in text.load(str(tmp_path), dtype="bfloat16").parameters()} == {
        torch.bfloat16
    }
    whole = adapted(plain(), adapter=str(tmp_path / "adapter"))  # the same base in float32
    assert same(whole.state_dict(), lm.state_dict())


def test_dropout_is_of_the_adapter_and_of_training_alone():
    lm = student(dropout=0.5)
    calm = lm(BATCH).hidden
    assert torch.equal(lm(BATCH).hidden, calm)
    torch.manual_seed(0)
    lm.train()
    loud = lm(BATCH).hidden
    assert not torch.equal(loud, calm)
    assert not torch.equal(lm(BATCH).hidden, loud)
    assert torch.equal(lm.base().eval()(BATCH).hidden, plain()(BATCH).hidden)
    with mode(lm, training=False):
        assert torch.equal(lm(BATCH).hidden, calm)


# ---- who holds what


def test_only_its_own_weights_are_its_parameters_and_state():
    lm = student()
    critic, frozen, base = Scorer(lm.body()), lm.snapshot(), lm.base()
    own = {p.data_ptr() for p in lm.parameters()}
    assert lm.state_dict().keys() == frozen.state_dict().keys()
    assert {k.removeprefix("body.") for k in critic.state_dict() if k[:4] != "head"} == set(
        lm.state_dict()
    )
    assert all("lora_" in name for name in lm.state_dict())
    assert not list(base.parameters())
    assert not base.state_dict()
    for other in (critic, frozen):
        assert own.isdisjoint(p.data_ptr() for p in other.parameters())
    assert all(p.requires_grad for p in [*lm.parameters(), *critic.parameters()])
    assert not any(p.requires_grad for p in frozen.parameters())
    assert critic.head.weight.dtype == torch.float32
    assert lm.model is frozen.model is base.model is critic.body.model


def test_a_body_and_a_snapshot_begin_as_copies_and_stand_apart():
    lm = student()
    before = lm(BATCH).hidden
    body, frozen = lm.body().eval(), lm.snapshot()
    assert body.width == 16
    assert torch.equal(body.states(BATCH).flatten(0, 1)[BATCH.rows], before)
    moved(lm, seed=8)
    assert not torch.equal(lm(BATCH).hidden, before)
    assert torch.equal(body.states(BATCH).flatten(0, 1)[BATCH.rows], before)
    assert torch.equal(frozen(BATCH).hidden, before)
    assert not frozen.training
    frozen.load_state_dict(lm.state_dict())
    assert torch.equal(frozen(BATCH).hidden, lm(BATCH).hidden)


def test_a_body_of_another_size_is_a_whole_fresh_trunk():
    body = student().body(num_hidden_layers=1)
    assert len(body.network.layers) == 1
    assert "lora" not in " ".join(body.state_dict())
    assert all(p.requires_grad for p in body.parameters())


def test_gradients_that_are_awaited_come_though_others_spoke_and_were_added():
    def gradients(meanwhile):
        lm = student()
        loss = lm.train()(BATCH).logits.square().sum()
        if meanwhile:
            critic = Scorer(lm.body())
            (critic(BATCH).sum() + critic.train()(BATCH).sum()).backward()
            lm.snapshot()(BATCH)
            lm.base().eval()(BATCH)
            assert all(p.grad is not None for p in critic.parameters())
            assert all(p.grad is None for p in lm.parameters())
        loss.backward()
        return [p.grad for p in lm.parameters()]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(one, other)


def test_the_state_is_as_before_after_each_word_even_a_failing_one(monkeypatch):
    lm = student().train()
    shared, rest = lm.shared, lm.shared.state
    assert rest == (lm.adapter, False)  # so that lm.model itself is the student
    seen = []
    lm.model.base_model.register_forward_pre_hook(lambda *_: seen.append(shared.state))
    base, body = lm.base().eval(), lm.body().eval()
    seen.clear()
    lm(BATCH), base(BATCH), body.states(BATCH)
    assert seen == [(lm.adapter, True), (None, False), ("adapter_1", False)]
    monkeypatch.setattr(type(lm.model.base_model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        base(BATCH)
    assert shared.state == rest
    assert not any(m.training for m in lm.model.modules())


def test_a_refused_teacher_leaves_the_student_as_it_was(tmp_path):
    lm = student()
    wanted = lm(BATCH).hidden
    student(rank=2).save(tmp_path)
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(place.read_text().replace('"r": 2', '"r": 4'))
    with pytest.raises(Failure, match="of other shapes"):
        lm.other(str(tmp_path / "adapter"))
    assert torch.equal(lm(BATCH).hidden, wanted)


def test_answers_are_those_of_the_one_that_is_asked():
    lm, told = student(), {"seed": 0, "sampling": Sampling(temperature=0, max_new_tokens=12)}
    prompts, ids = [p for p, _ in PAIRS], torch.arange(len(PAIRS))
    mine, bare = (sample(one, prompts, ids, **told) for one in (lm, lm.base()))
    assert bare == sample(plain(), prompts, ids, **told) != mine
    with lm.shared.merged(lm.adapter) as model:
        assert sample(CausalLM(model), prompts, ids, **told) == mine


def test_a_move_takes_the_base_along():
    lm = student().double()
    assert {v.dtype for v in base_weights(lm).values()} == {torch.float64}
    assert {p.dtype for p in lm.parameters()} == {torch.float64}
    assert lm(BATCH).hidden.dtype == torch.float64


def test_a_deep_copy_shares_nothing():
    lm = student()
    lm.checkpointing()
    other = copy.deepcopy(lm)
    assert other.shared is not lm.shared
    layer = other.model.base_model.layers[0]
    assert layer._gradient_checkpointing_func.keywords["context_fn"]()[1].shared is other.shared
    before = lm(BATCH).hidden
    moved(other, seed=9)
    assert torch.equal(lm(BATCH).hidden, before)
    assert not torch.equal(other(BATCH).hidden, before)


def test_the_first_layers_of_a_shared_trunk_are_read_in_place():
    lm = moved(student())
    whole, early = lm.states(BATCH), Early(lm, 1).states(BATCH)
    assert not torch.allclose(early, whole)
    assert torch.equal(lm.states(BATCH), whole)


# ---- merged and saved


@every_kind
@every_target
def test_merged_it_says_the_same_and_then_the_base_is_as_before(kind, targets):
    lm = student(kind, targets=targets).double()
    before, wanted, tied = base_weights(lm), lm(BATCH).logits, lm.model.config.tie_word_embeddings
    with lm.shared.merged(lm.adapter) as model:
        assert not any("lora" in name for name, _ in model.named_modules())
        found = CausalLM(model)(BATCH).logits
        untied = tied and targets == ["lm_head"]
        assert model.config.tie_word_embeddings == (tied and not untied)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert (wanted - lm.base().eval()(BATCH).logits).abs().max() > 0.01
    assert same(base_weights(lm), before)
    assert lm.model.config.tie_word_embeddings == tied
    assert torch.equal(lm(BATCH).logits, wanted)


FRESH = """
import sys
sys.modules["peft"] = None  # as where it is not installed
import json, torch
from transformers import AutoModelForCausalLM
from stillroom.models import windowed
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
told = dict(max_new_tokens=12, do_sample=False)
for prompt in json.loads(sys.argv[2]):
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=ids * 0 + 1, **told)
    print(json.dumps(made[0, len(prompt):].tolist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "targets"), [("llama", "all-linear"), ("gemma3_text", ["lm_head", "o_proj"])]
)
def test_a_fresh_process_without_peft_writes_the_same_greedy_text(kind, targets, tmp_path):
    lm = student(kind, targets=targets)
    lm.save(tmp_path)
    prompts, ids = [p for p, _ in PAIRS], torch.arange(len(PAIRS))
    greedy = Sampling(temperature=0, max_new_tokens=12)
    mine = sample(lm, prompts, ids, seed=0, sampling=greedy)
    told = [sys.executable, "-c", FRESH, str(tmp_path), json.dumps(prompts)]
    said = subprocess.run(told, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert [json.loads(line) for line in said.stdout.splitlines()] == mine


@AS_PEFT_IS
@every_kind
def test_peft_itself_reads_the_adapter(kind, tmp_path):
    lm = student(kind, alpha=5.0)
    lm.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(plain(kind).model, tmp_path / "adapter")
    torch.testing.assert_close(CausalLM(theirs.eval().base_model.model)(BATCH).logits,
                               lm(BATCH).logits)  # fmt: skip


@AS_PEFT_IS
def test_what_peft_saved_is_a_start_and_a_teacher(tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
    theirs = peft.get_peft_model(plain().model, config)
    moved(theirs.base_model.model.model.layers[0].self_attn.q_proj.lora_B)
    theirs.save_pretrained(tmp_path)
    wanted = CausalLM(theirs.eval().base_model.model)(BATCH).logits
    start = adapted(plain(), rank=9, adapter=str(tmp_path)).eval()
    assert len(start.state_dict()) == 8
    teacher = student().other(str(tmp_path)).eval()
    for one in (start, teacher):
        torch.testing.assert_close(one(BATCH).logits, wanted)
    assert all(p.requires_grad for p in start.parameters())


def test_it_takes_its_own_adapter_up_again(tmp_path):
    lm = student()
    lm.save(tmp_path)
    before = {k: v.clone() for k, v in lm.state_dict().items()}
    moved(lm, seed=8)
    lm.load(tmp_path)
    assert same(lm.state_dict(), before)


# ---- what does not fit


@pytest.fixture
def folder(tmp_path):
    student().save(tmp_path)
    return tmp_path / "adapter"


def edited(folder, **changes):
    place = folder / "adapter_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    return folder


def stripped(folder, change=lambda weights: weights):
    """As another program would write it: without the mark of the base."""
    place = folder / "adapter_model.safetensors"
    save_file(change(load_file(place)), place)
    return folder


WHOLE = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD = {
    "no folder": (lambda f: f / "nowhere", "holds no adapter: adapter_config.json and adapter_m"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink() or f,
        r"holds no adapter: adapter_model\.safetensors missing",
    ),
    "a broken config": (
        lambda f: (f / "adapter_config.json").write_text("{") and f,
        "adapter_config.json is no config of peft",
    ),
    "another kind": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3"}') and f,
        "expected a LoRA adapter, got one of kind .*IA3",
    ),
    "more than LoRA": (lambda f: edited(f, use_dora=True), "only plain LoRA.*use_dora=True"),
    "another start of the base": (
        lambda f: edited(f, init_lora_weights="pissa"),
        "only plain LoRA.*init_lora_weights='pissa'",
    ),
    "unknown layers": (
        lambda f: edited(f, target_modules=["q_prj"]),
        "no linear layer 'q_prj'; did you mean 'q_proj'.*it has down_proj, ",
    ),
    "fewer layers": (
        lambda f: stripped(f, lambda w: {k: v for k, v in w.items() if k != WHOLE}),
        r"does not fit LlamaForCausalLM: it has no model\.layers\.0\.self_attn\.q_proj\.lora_A",
    ),
    "more layers": (
        lambda f: stripped(f, lambda w: {**w, "base_model.model.x.lora_A.weight": w[WHOLE] + 1}),
        r"it has, and the model has not, x\.lora_A\.weight",
    ),
    "another rank": (
        lambda f: edited(f, r=5),
        r"of other shapes are .*lora_A\.weight \(\[3, 32\], here \[5, 32\]\).* and 25 more",
    ),
    "half a file": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x08") and f,
        r"adapter_model\.safetensors cannot be read",
    ),
}


@pytest.mark.parametrize(("change", "told"), BAD.values(), ids=BAD)
def test_an_adapter_that_does_not_fit_says_why(change, told, folder):
    with pytest.raises(Failure, match=told):
        adapted(plain(), adapter=str(change(folder)))


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"hidden_size": 24}, r"of other shapes are .*\(\[3, 16\], here \[3, 24\]\)"),
        ({"num_hidden_layers": 3}, "made for other base weights"),
        ({"num_hidden_layers": 1}, r"LlamaForCausalLM has no linear layer 'model\.layers\.1\."),
        ({"seed": 1}, "made for other base weights"),
    ],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused(sizes, told, folder):
    with pytest.raises(Failure, match=told):
        adapted(plain(**sizes), adapter=str(folder))
    other = adapted(plain(**sizes))
    with pytest.raises(Failure, match=told):
        other.other(str(folder))


def test_without_a_mark_two_names_of_the_hub_tell_bases_apart(folder):
    stripped(folder)
    lm = plain(seed=1)
    adapted(lm, adapter=str(folder))  # nobody says for which base it was made
    edited(folder, base_model_name_or_path="some/model")
    named = plain(seed=1)
    named.model.config.name_or_path = named.model.name_or_path = "other/model"
    with pytest.raises(Failure, match=r"other base weights \(some/model\) than .*\(other/model\)"):
        adapted(named, adapter=str(folder))
    edited(folder, base_model_name_or_path="other/model")
    named = plain(seed=1)
    named.model.config.name_or_path = named.model.name_or_path = "other/model"
    adapted(named, adapter=str(folder))


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (["q_proj", "k_prj"], "LlamaForCausalLM has no linear layer 'k_prj'; did you mean"),
        (["embed_tokens"], "has no linear layer 'embed_tokens'"),
        (["self_attn"], "has no linear layer 'self_attn'"),
        (".*embed_tokens", "embed_tokens is no linear layer"),
        ("nothing", "targets 'nothing': .*not found"),
        ("(", r"targets '\('"),
    ],
)
def test_targets_that_are_no_linear_layers_are_refused(targets, told):
    with pytest.raises(Failure, match=told):
        adapted(plain(), targets=targets)


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(Failure, match=r"peft is not installed, and LoRA .*stillroom\[lora\]"):
        adapted(plain())
