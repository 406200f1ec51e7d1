"""``stillroom judge``: a language model's verdicts on pairs of answers, asked in both orders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stillroom.cli import asking
from stillroom.cli.common import check_out, pair, write_rows, write_text
from stillroom.failures import Failure

if TYPE_CHECKING:
    from stillroom.data.rows import Row
    from stillroom.store.requests import Request
    from stillroom.teachers.cached import Cached
    from stillroom.traces.judgements import Judgements


def judge(
    pairs: Annotated[str, typer.Argument(help="Rows with a question and two answers.")],
    teacher: Annotated[
        str, typer.Option(help="The judge: openai:MODEL, a hub name, folder, FILE.gguf ...")
    ],
    store: Annotated[Path, typer.Option(help="Folder in which all is kept.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to write: the rows, judged.")],
    kind: Annotated[
        Literal["verdict", "scores"], typer.Option(help="A, B or tie; or 1 to 10 for each.")
    ] = "verdict",
    template: Annotated[
        Path | None, typer.Option(help="Jinja of question, first and second, instead of ours.")
    ] = None,
    answer: Annotated[str, typer.Option(help="Column of the answer a.")] = "completion",
    other: Annotated[str, typer.Option(help="Column of the answer b.")] = "other",
    single_order: Annotated[
        bool, typer.Option("--single-order", help="One order's verdict stands without the other.")
    ] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Of the server, up to and with /v1; OpenAI's if none.")
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="Dollars for these questions, over all runs.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="The same in tokens of prompts and replies.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 8,
    temperature: Annotated[float | None, typer.Option(min=0, help="Not sent if not told.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.001, max=1, help="Likewise.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a reply; a budget needs it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sent with each question.")] = None,
    endpoint: Annotated[
        Literal["chat", "completions"], typer.Option(help="A user's message, or a plain prompt.")
    ] = "chat",
    price: asking.Price = None,
    key_env: Annotated[
        str | None, typer.Option(help="Variable that holds the key, instead of OPENAI_API_KEY.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for a reply.")] = 600.0,
) -> None:
    """Ask a model which of two answers is better, in both orders; measure its order bias.

    An answer wins that wins in both orders; where they disagree it is a tie, marked inconsistent.
    Identical answers are a tie without asking. What has arrived is kept in the store and never
    asked for again. The numbers stand in OUT.judged.json, what it cost in OUT.ledger.json.
    """
    check_out(out)
    from stillroom.store.answers import Store
    from stillroom.store.budget import Budget
    from stillroom.store.prices import told_price
    from stillroom.store.requests import Decoding
    from stillroom.teachers.cached import Cached
    from stillroom.traces.judging import judged, replies

    decoding = Decoding(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    rows, told, requests, about = _asks(pairs, (answer, other), kind, template, decoding)
    how = {"endpoint": endpoint, "lanes": concurrency, "key_env": key_env, "timeout": timeout}
    source = asking.source(teacher, base_url, how)
    dollars = pair(price)
    known = told_price(*dollars) if dollars else source.price()
    cached = Cached(source, Store(store), requests, Budget(budget_usd, budget_tokens, known))
    estimate = [cached.budget.told(cost) for cost in cached.estimate()]
    asking.asked(cached)
    ledger = cached.ledger()
    ledger["estimate"] = dict(zip(("about", "at_most"), estimate, strict=True))
    found = judged(told, replies(cached), kind, single_order=single_order)
    about["teacher"] = source.identity["model"]
    _write(out, rows, found, about, ledger)
    _tell(out, cached, found, ledger)


def _asks(
    pairs: str, columns: tuple[str, str], kind: Any, template: Path | None, decoding: Any
) -> tuple[list[Row], list[Any], list[Request], dict[str, Any]]:
    """Rows, their pairs, what is asked about them, and by which template."""
    from stillroom.data.forms import shaped
    from stillroom.data.rows import read_rows
    from stillroom.store.requests import Request
    from stillroom.traces.judge_prompts import Template, pairs_of, questions

    read = read_rows(pairs)
    made = shaped(read)[1]
    named = [(where, {**row, **new}) for row, (where, new) in zip(read.rows, made, strict=True)]
    told, asks = pairs_of(named, columns), Template(kind, template)
    about = {"template": asks.name, "template_sha256": asks.digest, "columns": list(columns)}
    requests = [Request(prompt, decoding) for prompt in questions(told, asks)]
    return [row for _, row in named], told, requests, about


def _write(
    out: Path, rows: list[Row], found: Judgements, about: dict[str, Any], ledger: dict[str, Any]
) -> None:
    from stillroom.traces.judging import with_judgements

    numbers = {**about, **found.told()}
    for name, told in (("ledger", ledger), ("judged", numbers)):
        beside = out.with_name(f"{out.name}.{name}.json")
        write_text(beside, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if all(one.winner is None for one in found):
        raise Failure(f"no pair has a verdict, so {out} is not written; {out}.ledger.json says why")
    write_rows(out, with_judgements(rows, found, about))


def _tell(out: Path, cached: Cached, found: Judgements, ledger: dict[str, Any]) -> None:
    run = cached.budget.spent - cached.before
    won = ", ".join(f"{name} {count}" for name, count in found.winners.items())
    typer.echo(f"{out}: {len(found)} pairs: {won}")
    for name in ("order_bias", "first_rate", "consistency", "ties", "parse_failures"):
        typer.echo(f"{name:14}  {getattr(found, name)}")
    if gaps := found.gaps:
        typer.echo(f"{'gap':14}  {sum(gaps) / len(gaps):+.3f} (mean of a minus b, n = {len(gaps)})")
    typer.echo(
        f"cost: {cached.budget.says(run)}; all runs: {cached.budget.says(cached.budget.spent)}\n"
        f"ledger: {out}.ledger.json"
    )
    if cached.stopped:
        raise Failure(
            f"{cached.stopped}: {ledger['left']} questions are left. {out} holds the verdicts so "
            "far; the same command with a larger budget goes on"
        )
