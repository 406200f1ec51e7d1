"""``stillroom claim``: tests a claim of a paper, records what came out, prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli.common import Json, quiet

Tiny = Annotated[bool, typer.Option("--tiny", help="A few steps, 2 seeds; writes nothing.")]


def claim(
    source: Annotated[str, typer.Argument(help="A YAML file, or a packaged claim's name.")],
    seeds: Annotated[
        int | None, typer.Option(min=2, help="How many; fewer than the claim's do not count.")
    ] = None,
    as_json: Json = False,
    tiny: Tiny = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; beside the claim by default.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all anew, use nothing kept.")] = False,
) -> None:
    """Test a claim of a paper: tuned arms, paired seeds, an interval and a verdict."""
    quiet()
    from rich.console import Console
    from rich.text import Text

    from stillroom.config.cases import read_claim
    from stillroom.evidence import results
    from stillroom.evidence.trial import TINY_SEEDS, Trial
    from stillroom.reports.claims import claim_text

    case = read_claim(source, tiny=tiny)
    file = results.place_of(case, out)
    told = results.opened(file, case)
    log = Console(stderr=True, highlight=False)
    if case.claim.longer and not tiny:
        log.print(Text(f"More than four minutes: {case.claim.longer}"))
    trial = Trial(
        case=case,
        seeds=TINY_SEEDS if tiny else seeds or case.claim.seeds,
        again=len(results.runs_of(told)) if fresh else 0,
        tiny=tiny,
        tell=lambda line: log.print(Text(line)),
    )
    run = trial.judge()
    if tiny:
        words = "Tiny: it works, and says nothing of the claim."
    else:
        words = _recorded(file, results.opened(file, case), run, trial.made)
    if as_json:
        typer.echo(json.dumps(run, indent=1, allow_nan=False))
    else:
        Console().print(*claim_text(told, run), sep="\n")
    log.print(Text(words))


def _recorded(file: Path, told: dict[str, Any], run: Mapping[str, Any], made: int) -> str:
    """Adds the run to the file, unless it is one that stands there already; says what was done."""
    from stillroom.evidence import results

    same = [old for old in results.runs_of(told) if old["difference"] == run["difference"]]
    if same and not made:
        return f"Recorded already on {same[0]['date']} in {file}; --fresh runs all anew"
    after = results.added(told, run)
    results.write(file, after)
    if not run["full"]:
        return f"A partial run of {run['seeds']} seeds, which does not count: {file}"
    if after["first"] is not run:
        first = after["first"]
        return f"A further run; the first, of {first['date']}, counts ({first['verdict']}): {file}"
    changed = "; the claim was changed since earlier runs, which count no more"
    return f"The first full run, which counts{changed if after['earlier'] else ''}: {file}"
