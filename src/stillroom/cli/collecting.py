"""``stillroom collect``: answers of a teacher to a file of prompts, at a price known before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stillroom.cli import asking
from stillroom.cli.common import check_out, pair, write_rows, write_text
from stillroom.cli.scoring import scores
from stillroom.failures import Failure

if TYPE_CHECKING:
    from stillroom.data.rows import Row
    from stillroom.teachers.answering import Answered
    from stillroom.teachers.cached import Cached


def collect(
    prompts: Annotated[
        str, typer.Argument(help="Rows with prompt or messages, in any form; or a recipe (scores).")
    ],
    teacher: Annotated[
        str, typer.Option(help="openai:MODEL, a hub name, folder, FILE.gguf or package:NAME.")
    ],
    store: Annotated[Path, typer.Option(help="Folder in which all is kept.")],
    out: Annotated[
        Path | None, typer.Option(help="JSON Lines to write: the rows with 'completion'.")
    ] = None,
    signals: Annotated[
        str, typer.Option(help="text, or scores of the rows: hidden, logits, topk:K, sampled:N.")
    ] = "text",
    base_url: Annotated[
        str | None, typer.Option(help="Of the server, up to and with /v1; OpenAI's if none.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="Dollars for these answers, over all runs.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="The same in tokens of prompts and answers.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 8,
    temperature: Annotated[float | None, typer.Option(min=0, help="Not sent if not told.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.001, max=1, help="Likewise.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; a budget needs it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Copy k of a prompt is asked with seed + k.")] = (
        None
    ),
    endpoint: Annotated[
        Literal["chat", "completions"],
        typer.Option(help="Plain prompts go as they are (completions) or as a user's message."),
    ] = "chat",
    price: asking.Price = None,
    key_env: Annotated[
        str | None, typer.Option(help="Variable that holds the key, instead of OPENAI_API_KEY.")
    ] = None,
    keep_truncated: Annotated[
        bool, typer.Option("--keep-truncated", help="Keep answers that met --max-tokens.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for an answer.")] = 600.0,
    tokenizer: Annotated[
        str | None, typer.Option(help="That of a served model, by name or folder (scores).")
    ] = None,
) -> None:
    """Ask a teacher for answers to a file of prompts, or for scores of answers that are there.

    What has arrived is kept in the store and never asked for again: the same command goes on after
    a kill, a fault or a budget. What was dropped, and what it cost, stands in OUT.ledger.json.

    With --signals a model in this process, or by topk:K a server that gives log-probabilities of
    given tokens, scores every token of the rows' completions, for a recipe whose teacher has the
    same 'signals' and 'store'; given the recipe, its rows are rendered as it does.
    """
    if signals != "text":
        asked = {"base_url": base_url, "concurrency": concurrency, "key_env": key_env}
        bounds = {"budget_usd": budget_usd, "budget_tokens": budget_tokens, "price": pair(price)}
        return scores(prompts, teacher, store, signals, out, tokenizer=tokenizer, **asked, **bounds)
    if out is None:
        raise Failure("--out: name the file that the answers are written to")
    check_out(out)
    from stillroom.store.answers import Store
    from stillroom.store.budget import Budget
    from stillroom.store.prices import told_price
    from stillroom.store.requests import Decoding
    from stillroom.teachers.answering import answered, requests_of
    from stillroom.teachers.cached import Cached

    decoding = Decoding(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    named = _rows(prompts)
    requests = requests_of(named, decoding, n)
    asked = {"endpoint": endpoint, "lanes": concurrency, "key_env": key_env, "timeout": timeout}
    source = asking.source(teacher, base_url, asked)
    told = pair(price)
    budget = Budget(budget_usd, budget_tokens, told_price(*told) if told else source.price())
    cached = Cached(source, Store(store), requests, budget)
    about, most = cached.estimate()
    asking.asked(cached)
    ledger = cached.ledger(keep_truncated=keep_truncated)
    ledger["estimate"] = {"about": budget.told(about), "at_most": budget.told(most)}
    _write(out, answered(named, cached, n, keep_truncated=keep_truncated), ledger)
    _tell(out, cached, ledger)


def _rows(prompts: str) -> list[tuple[str, Row]]:
    """Rows with all their columns, but the one in which another teacher's answer stood."""
    from stillroom.data.forms import FORMS, shaped
    from stillroom.data.rows import read_rows

    read = read_rows(prompts)
    form, made = shaped(read)
    stale = FORMS[form][-1:] if form in ("alpaca", "sharegpt") else ()
    rows = [{k: v for k, v in row.items() if k not in stale} for row in read.rows]
    return [(where, {**row, **new}) for row, (where, new) in zip(rows, made, strict=True)]


def _write(out: Path, answers: Sequence[Answered], ledger: dict[str, Any]) -> None:
    """Rows, dropped questions and ledger, each written aside and moved into place."""
    dropped = [
        {"row": a.where, "copy": a.copy, "kind": a.outcome.kind, "why": a.outcome.why}
        for a in answers
        if a.outcome and not a.row
    ]
    beside = {
        name: out.with_name(f"{out.name}.{name}") for name in ("ledger.json", "dropped.jsonl")
    }
    beside["dropped.jsonl"].unlink(missing_ok=True)
    if dropped:
        write_rows(beside["dropped.jsonl"], dropped)
    write_text(beside["ledger.json"], json.dumps(ledger, indent=2, ensure_ascii=False) + "\n")
    if not ledger["answered"]:
        raise Failure(
            f"no question was answered, so {out} is not written; {beside['ledger.json']} says why"
        )
    write_rows(out, [dict(a.row) for a in answers if a.row])


def _tell(out: Path, cached: Cached, ledger: dict[str, Any]) -> None:
    run = cached.budget.spent - cached.before
    dropped = ", ".join(f"{count} {kind}" for kind, count in ledger["dropped"].items()) or "none"
    typer.echo(
        f"{out}: {ledger['answered']} answers to {ledger['questions']} questions, "
        f"{ledger['from_store']} from the store; dropped: {dropped}; left: {ledger['left']}\n"
        f"cost: {cached.budget.says(run)}; all runs: {cached.budget.says(cached.budget.spent)}\n"
        f"ledger: {out}.ledger.json"
    )
    if cached.stopped:
        raise Failure(
            f"{cached.stopped}: {ledger['left']} questions are left. {out} holds the answers so "
            "far; the same command with a larger budget goes on"
        )
