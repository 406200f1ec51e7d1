"""A step of generalised knowledge distillation, made once by each library and then called."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.arms import WHY
from stillroom.data.streams import Stream
from stillroom.data.text import Example, TextData
from stillroom.engine.job import Job
from stillroom.engine.loop import iterate
from stillroom.engine.parallel import Processes
from stillroom.engine.players import Players
from stillroom.engine.run import Run
from stillroom.engine.settings import Train
from stillroom.extras import extra
from stillroom.methods.gkd import GKD
from stillroom.models.text import CausalLM
from stillroom.rollouts.sampling import Sampling
from stillroom.teachers.local import Local

RATE = 1e-12
"""Learning rate: the optimiser does all its work, and the student stays the same for all arms."""
BETA, CLIP = 0.5, 1.0

Step = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """What is learned from: ``ids`` [B, L], of which the first ``prompt`` are no targets."""

    teacher: Any
    student: Any
    tokenizer: Any
    ids: Tensor
    prompt: int
    on_policy: bool

    @property
    def completion(self) -> int:
        return self.ids.shape[1] - self.prompt


def stillroom(task: Task) -> Step:
    """A step of the engine: AdamW, clipping, one micro-batch."""
    examples = [
        Example("", "", tuple(row[: task.prompt]), tuple(row[task.prompt :]))
        for row in task.ids.tolist()
    ]
    data, student = TextData(examples, pad_id=0), CausalLM(task.student.train(), stop_ids=())
    job = Job(
        method=GKD(beta=BETA, on_policy=float(task.on_policy)),
        student=student,
        teachers={"teacher": Local(CausalLM(task.teacher))},
        streams={"train": data},
        train=Train(steps=10**6, batch=len(examples), lr=RATE, clip=CLIP),
        sampling=Sampling(max_new_tokens=task.completion),
    )
    processes = Processes()
    streams = {"train": Stream(data, len(examples), seed=0)}
    run = Run(job, Players({"student": student}, job.train, processes), streams, processes)

    def step() -> dict[str, float]:
        log = iterate(run, run.next("train"))
        run.step += 1
        return {"loss": log["loss/student/loss"], "norm": log["grad_norm/student"]}

    return step


def trl_gkd(task: Task, kind: Any = None) -> Step:
    """``GKDTrainer.training_step``, then clipping and its own optimiser: what its loop does."""
    gkd = extra("trl.experimental.gkd", "bench", why=WHY)
    config = gkd.GKDConfig(
        output_dir=tempfile.mkdtemp(),
        beta=BETA,
        lmbda=float(task.on_policy),
        temperature=1.0,
        max_new_tokens=task.completion,
        learning_rate=RATE,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        per_device_train_batch_size=len(task.ids),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = (kind or gkd.GKDTrainer)(
        model=task.student,
        teacher_model=task.teacher,
        args=config,
        processing_class=task.tokenizer,
        train_dataset=_no_rows(),
    )
    trainer.generation_config.eos_token_id = None
    trainer.current_gradient_accumulation_steps = 1  # set by its loop, which is not used
    trainer.create_optimizer()
    model = trainer.model.train()

    def step() -> dict[str, float]:
        loss = trainer.training_step(model, _inputs(task))
        norm = trainer.accelerator.clip_grad_norm_(model.parameters(), CLIP)
        trainer.optimizer.step()
        model.zero_grad()
        return {"loss": float(loss), "norm": float(norm)}

    return step


def trl_chunked(task: Task) -> Step:
    """The same trainer with the chunked loss of TRL's ``DistillationTrainer`` in place of its own.

    That trainer itself learns on-policy only.
    """
    gkd = extra("trl.experimental.gkd", "bench", why=WHY)
    loss = extra("trl.trainer.distillation_trainer", "bench", why=WHY)._chunked_divergence_loss

    class Chunked(gkd.GKDTrainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            mine = model.base_model(**read).last_hidden_state[:, :-1]
            with torch.no_grad():
                theirs = self.teacher_model.base_model(**read).last_hidden_state[:, :-1]
            heads = (model.lm_head.weight, self.teacher_model.lm_head.weight)
            mask = inputs["labels"][:, 1:] != -100
            return loss(mine, theirs, *heads, mask, self.beta)[0]

    return trl_gkd(task, Chunked)


ARMS: dict[str, Callable[[Task], Step]] = {
    "stillroom": stillroom,
    "TRL GKD": trl_gkd,
    "TRL chunked": trl_chunked,
}


def present(*, on_policy: bool) -> list[str]:
    """Names of the arms whose library is installed and that do the work."""
    names = [*ARMS] if find_spec("trl") is not None else ["stillroom"]
    return [name for name in names if not (on_policy and name == "TRL chunked")]


def _inputs(task: Task) -> dict[str, Tensor]:
    """What the trainer's collator makes of the rows."""
    labels = task.ids.clone()
    labels[:, : task.prompt] = -100
    prompts = task.ids[:, : task.prompt]
    return {
        "input_ids": task.ids,
        "attention_mask": torch.ones_like(task.ids),
        "labels": labels,
        "prompts": prompts,
        "prompt_attention_mask": torch.ones_like(prompts),
    }


def _no_rows() -> Any:
    """A data set that the trainer asks for; the step is given its rows directly."""
    datasets = extra("datasets", "data", why=WHY)
    turns = [{"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5"}]
    return datasets.Dataset.from_list([{"messages": turns}])
