"""Answers sampled from a language model: ours, and ``generate`` of transformers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import fresh, measure, models, write
from stillroom.models.text import CausalLM
from stillroom.rollouts.sampling import Sampling, sample

CHECKED = 8
"""Tokens that each arm writes greedily and that must be those of float64."""
FULL = [
    {"batch": batch, "layers": layers, "prompt": 32, "new": 32}
    for layers in (models.LAYERS, 18)
    for batch in (8, 32)
]
QUICK = [{"batch": 4, "layers": 2, "prompt": 4, "new": 8}]


def main() -> None:
    """Measures all cases and writes ``rollouts.json``."""
    told = measure.arguments(__doc__)
    done = []
    for case in QUICK if told.quick else FULL:
        name = f"batch {case['batch']}, {case['layers']} layers"
        if told.only not in name:
            continue
        print(f"\n{name}", flush=True)
        greedy = fresh.call("rollouts.greedy", quick=told.quick, layers=case["layers"])
        given = {"case": case, "quick": told.quick, "repeats": told.repeats, "greedy": greedy}
        found = fresh.call("rollouts.times", **given)
        done.append({"name": name, **case, **found})
        write.json_file(told.out / "rollouts.json", {"what": __doc__, "cases": done})


def greedy(quick: bool, layers: int) -> list[list[int]]:
    """The likeliest continuation of two prompts in float64, each token from a whole pass."""
    _, student, _ = models.pair(quick=quick, layers=layers)
    student = student.double().eval()
    ids = _prompts(student, 2, CHECKED)
    with torch.no_grad():
        for _ in range(CHECKED):
            logits = student(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[:, CHECKED:].tolist()


def times(case: dict[str, Any], quick: bool, repeats: int, greedy: list[list[int]]) -> Any:
    """CPU seconds of a batch of answers by arm."""
    _, student, _ = models.pair(quick=quick, layers=case["layers"])
    wrapped = CausalLM(student.eval(), stop_ids=())
    prompts = _prompts(student, case["batch"], case["prompt"])

    def ours(ids: torch.Tensor, new: int, temperature: float = 1.0) -> list[list[int]]:
        told = Sampling(temperature=temperature, max_new_tokens=new)
        return sample(wrapped, ids.tolist(), torch.arange(len(ids)), seed=0, sampling=told)

    @torch.no_grad()
    def theirs(ids: torch.Tensor, new: int, temperature: float = 1.0) -> list[list[int]]:
        drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if temperature else {}
        told = {"max_new_tokens": new, "do_sample": bool(temperature), "pad_token_id": 0, **drawn}
        mask = torch.ones_like(ids)
        made = student.generate(input_ids=ids, attention_mask=mask, eos_token_id=None, **told)
        return made[:, ids.shape[1] :].tolist()

    arms, rows = {"stillroom": ours, "transformers generate": theirs}, []
    for name, arm in arms.items():
        good = arm(_prompts(student, 2, CHECKED), CHECKED, 0.0) == greedy
        print(f"  {'checked' if good else 'REFUSED'} {name}: greedy tokens of float64", flush=True)
        rows.append({"name": name, "refused": not good})
    kept = {
        row["name"]: (lambda arm=arms[row["name"]]: arm(prompts, case["new"]))
        for row in rows
        if not row["refused"]
    }
    spent = measure.interleaved(kept, repeats)
    for row in rows:
        if took := spent.get(row["name"]):
            base = spent.get("transformers generate", took)
            row["seconds"] = measure.spread(took)
            row["speed"] = measure.against(took, base)
            print(f"  {row['name']:22} {row['seconds']['median']:.2f} s, {row['speed']}")
    return {
        "arms": rows,
        "repeats": repeats,
        "environment": measure.environment(fresh.SAME_FOR_ALL),
    }


def _prompts(model: Any, rows: int, length: int) -> torch.Tensor:
    return models.tokens(rows, length, model.config.get_text_config().vocab_size)


if __name__ == "__main__":
    main()
