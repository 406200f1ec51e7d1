"""Networks in shares (FSDP2) learn what whole ones learn, and are shipped whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import launch
import pytest
import sharded
import torch
from numerics import contract, note
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM
from worlds import World, gap, job

from stillroom.core import Batch, Failure
from stillroom.engine import checkpoint
from stillroom.engine.sharding import check_shardable
from stillroom.engine.training import check, train
from stillroom.methods.gad import GAD
from stillroom.methods.seqkd import SeqKD
from stillroom.models.adapters import adapted
from stillroom.models.text import CausalLM
from stillroom.models.view import narrow
from stillroom.rollouts.sampling import Sampling, sample

RUNS = {
    "kd": {"steps": 6, "tokens_per_micro": 40},
    "gkd": {"steps": 8, "checkpointing": True},
    "gad": {"steps": 20, "tokens_per_micro": 60},
    "gad_pooled": {"steps": 10},
    "ps_kd": {"steps": 6},
    "ammd": {"steps": 5, "tokens_per_micro": 60},
}
EXACT = 1e-9
"""Float64: sums in another order, of which Adam makes more where a gradient is nearly zero."""


def together(tmp_path: Path, *args: Any, **kwargs: Any) -> list[str]:
    """What two processes said, which must have ended well."""
    children = launch.together(2, tmp_path / "log", *args, **kwargs)
    codes, said = [child.wait() for child in children], [child.said() for child in children]
    assert codes == [0, 0], "\n".join(said)
    return said


def final(folder: Path) -> Any:
    return checkpoint.load(checkpoint.saved(folder / "checkpoints")[-1])


def lines(folder: Path, name: str) -> list[dict]:
    told = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in told]


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        sharded.gradients,
        sharded.gradients_in_a_view,
        sharded.rounded_gradients,
        sharded.answers,
        sharded.guided_answers,
    ],
)
def test_shares_give_what_a_whole_network_gives(tmp_path, work):
    together(tmp_path, work, tmp_path)


@contract
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_in_shares_train_the_weights_of_one(tmp_path, name):
    told = {"every": 4, "double": True, **RUNS[name]}
    one, two = tmp_path / "one", tmp_path / "two"
    work = getattr(launch, name)
    assert launch.alone(tmp_path / "log", work, one, **told).wait() == 0
    together(tmp_path, sharded.run, name, two, **told)
    ours, theirs = final(one), final(two)
    start = checkpoint.load(checkpoint.saved(one / "checkpoints")[0])["players"]["networks"]
    assert gap(ours["players"]["networks"]["student"], start["student"]) > 1e-4
    note(name, "2 shards", gap(ours["players"], theirs["players"]), EXACT)
    for mine, other in zip(lines(one, "metrics"), lines(two, "metrics"), strict=True):
        assert mine == pytest.approx(other, rel=EXACT, abs=EXACT)  # norms of gradients among them
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["test"] == pytest.approx(results[1]["test"], rel=EXACT, abs=EXACT)
    assert results[0]["tokens"]["generated"] == results[1]["tokens"]["generated"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_in_shares_goes_on_bit_for_bit(tmp_path, precision):
    told = {"steps": 12, "every": 4, "precision": precision, "checkpointing": True}
    one, two = tmp_path / "one", tmp_path / "two"
    together(tmp_path, sharded.run, "gad", one, **told)
    shutil.copytree(one, two)
    (two / "result.json").unlink()
    shutil.rmtree(two / "student")
    shutil.rmtree(checkpoint.saved(two / "checkpoints")[-1])
    assert checkpoint.step_of(checkpoint.saved(two / "checkpoints")[-1]) == 8
    together(tmp_path, sharded.run, "gad", two, **told)
    assert gap(final(one)["players"], final(two)["players"]) == 0
    assert (final(one)["best"], final(one)["random"][0].keys()) == (
        final(two)["best"],
        final(two)["random"][0].keys(),
    )
    weights = [(f / "student" / "model.safetensors").read_bytes() for f in (one, two)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_the_student_that_is_shipped_is_whole_and_speaks_as_the_shares_did(tmp_path):
    together(tmp_path, sharded.shipped, tmp_path / "run")
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    assert result["selected_step"] == 8
    loaded: Any = CausalLM(AutoModelForCausalLM.from_pretrained(folder / "student"))
    assert gap(checkpoint.load_best(folder / "checkpoints", 8), dict(loaded.state_dict())) == 0
    for rank in range(2):
        given = torch.load(folder / f"given-{rank}.pt")
        assert gap(given, dict(loaded.state_dict())) == 0
    last = [line for line in lines(folder, "samples") if line["step"] == 12]
    tokenizer = launch.MarkedOrders().tokenizer()
    prompts = [tokenizer(line["prompt"]).input_ids for line in last]
    how = Sampling(temperature=0, max_new_tokens=9)
    told = sample(loaded, prompts, torch.arange(len(prompts)), seed=0, sampling=how)
    said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in told]
    assert said == [line["student"] for line in last]


def test_one_process_has_no_shares_to_hold(tmp_path):
    given = job(SeqKD(), World(kind="text"), sharding=True)
    check(given)  # the recipe is right, only the launch is not
    with pytest.raises(Failure, match=r"one process, so there are no shares.*accelerate launch"):
        train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.extra("lora")
def test_adapters_on_a_shared_base_are_refused_before_the_first_step():
    given = job(GAD(), World(kind="text"), sharding=True, student=adapted(sharded.model("llama")))
    with pytest.raises(Failure, match="'student' is an adapter on a base"):
        check(given)


def test_weights_that_two_networks_have_in_common_are_refused():
    student = World(kind="text").student()
    narrow(student, torch.tensor([0, 1, 5]))
    given = job(GAD(), World(kind="text"), sharding=True, student=student)
    with pytest.raises(Failure, match=r"'reference' and 'student' have .*lm_head.* in common"):
        check(given)


def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.delattr(FSDPModule, "set_force_sum_reduction_for_comms")
    with pytest.raises(Failure, match=r"needs a later torch than .*torch 2\.13 can"):
        check(job(SeqKD(), World(kind="text"), sharding=True))


def test_a_weight_that_is_one_number_is_refused():
    scaled = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(1.0))})
    with pytest.raises(Failure, match="scale of 'student' is a single number"):
        check_shardable({"student": scaled}, {})


@pytest.mark.parametrize("least", range(1, 5))
def test_a_batch_is_split_into_as_many_parts_as_another_process_has(least):
    children = Batch(id=torch.arange(8))
    batch = Batch(id=torch.arange(9), duel=Batch(id=torch.arange(4), samples=children))
    parts = batch.split(1000, least)
    assert len(parts) == min(least, 3)  # a fourth would be left without children
    assert torch.equal(torch.cat([p.id for p in parts]), batch.id)
    for part in (*parts, *(p.duel for p in parts), *(p.duel.samples for p in parts)):
        assert part.size > 0
    owned = torch.cat([p.duel.samples.id for p in parts])
    assert torch.equal(owned, children.id)
