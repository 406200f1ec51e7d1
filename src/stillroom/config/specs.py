"""What a recipe says of networks, teachers and data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from stillroom.data.views import Views
from stillroom.failures import Failure
from stillroom.store.requests import Decoding
from stillroom.teachers.api import address
from stillroom.teachers.stored import Kept

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A student that keeps some layers of another model.

    Args:
        from_: ``from`` in a recipe: the model that is cut, by hub name, folder or GGUF file.
        layers: which are kept, counted from 0; ``search`` removes the layer whose loss costs the
            least ``KL(whole || cut)`` on training text, again and again.
        keep: how many ``search`` leaves.
        tokens: of the training text that ``search`` measures on.
    """

    from_: str
    layers: list[Annotated[int, Ge(0)]] | Literal["search"]
    keep: Annotated[int, Ge(1)] | None = None
    tokens: Annotated[int, Ge(1)] = 512


@dataclass(frozen=True, kw_only=True)
class Heal:
    """A training of all weights that comes before the arms, which share it: made once and kept.

    Args:
        steps: how many.
        method: a name or mapping; null is ``kd`` where the teacher gives logits, else ``seqkd``.
        train: changes of the recipe's ``train``.
    """

    steps: Annotated[int, Ge(1)]
    method: str | dict[str, Any] | None = None
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters on a frozen student (arXiv 2106.09685), by peft.

    Args:
        rank: of each update.
        alpha: updates are scaled by ``alpha / rank``.
        dropout: on the adapters' input.
        targets: names of layers as peft matches them; ``all-linear`` is all but the head.
        adapter: a folder with a saved adapter to start from, which has its own rank, alpha and
            targets.
    """

    rank: Annotated[int, Ge(1)] = 16
    alpha: Annotated[float, Gt(0)] = 32.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    targets: str | list[str] = "all-linear"
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model by hub name, folder, GGUF file or ``package:NAME``.

    The options go to ``from_pretrained``. ``lm`` makes a language model with fresh weights from a
    config instead: ``model_type`` (of ``transformers``, or ``windowed``) and its sizes. Its
    tokenizer is a byte-level BPE of ``vocab_size`` entries trained on the training text
    (``tokenizer: from-data``, which a made-up world must be told), or the one named.

    Args:
        model: which. With ``data.items`` a folder with a classifier or any model of
            ``transformers``, or ``timm:NAME``.
        net: a small classifier with fresh weights, by ``kind`` (``mlp``, ``cnn``, ``vit``, for
            several labels ``queries``) and its sizes; its ends fit the data (``data.items``).
        draw: which of the fresh weights that the seed has: another one is another random start on
            the same data.
        near: share of the teacher's weights in the first ones, ``(1 - near) fresh + near teacher``,
            of a student of the teacher's shape.
        trained: a model that is trained before all else, made once and kept.
        cut: keeps some layers of a model.
        heal: a training before the arms; steps, or a mapping.
        lora: trains adapters instead of the weights.
        vocab: ``view`` trains on the ids that occur in the training text, with a frozen head; the
            shipped model and all evaluation have the full vocabulary.
        view_size: ids of the view at least; the lowest ones fill up.
    """

    model: str | None = None
    dtype: Dtype = "float32"
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    lm: dict[str, Any] | None = None
    net: dict[str, Any] | None = None
    draw: Annotated[int, Ge(0)] = 0
    near: Annotated[float, Ge(0), Le(1)] = 0.0
    vocab_size: Annotated[int, Ge(300)] = 4096
    tokenizer: str | None = None
    trained: Trained | None = None
    cut: Cut | None = None
    heal: Annotated[int, Ge(1)] | Heal | None = None
    lora: Lora | None = None
    vocab: Literal["full", "view"] = "full"
    view_size: Annotated[int, Ge(1)] = 16384


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that is trained on the recipe's data before all else: made once and kept.

    Its network may be such a model in turn, as one that is tuned after it was pretrained; told in
    the same words elsewhere it is the same one.

    Args:
        student: the network that is trained, with its own tokenizer.
        steps: how many.
        method: a name or mapping.
        data: changes of the recipe's ``data``.
        train: changes of the recipe's ``train``.
        seed: of it and its data, whatever the seed of the run.
    """

    student: Network
    steps: Annotated[int, Ge(1)]
    method: str | dict[str, Any] = "seqkd"
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """Where the teacher's signals come from: exactly one of the first eight.

    Args:
        recorded: its answers are the data's completions.
        model: a model in this process, by hub name, folder, GGUF file or ``package:NAME``.
        api: ``openai:MODEL`` behind a server; it writes the completions that the data lack.
        base: the student's own base model, its adapter off.
        adapter: a saved adapter on the student's base model, by folder.
        world: the teacher of a made-up world that has one (``data.world``).
        trained: a model that is trained first.
        average: the student's own moving average, with this decay a step.
        base_url: of the server, up to and with ``/v1``; null is OpenAI's own.
        endpoint: ``completions`` sends a prompt as it is, ``chat`` as a message of the user.
        key_env: the environment variable that holds the server's key, ``OPENAI_API_KEY`` if null.
        store: folder in which answers are kept, and found again. With it a ``model`` writes the
            completions that the data lack, too.
        concurrency: requests in flight at once.
        budget_usd: stops before it is passed, over all runs on these prompts; scores are counted by
            themselves, and without a store those of this run.
        budget_tokens: the same in tokens.
        price: dollars a million tokens of prompt and of answer, where the known ones do not hold.
        sampling: of its answers.
        keep_truncated: keeps answers that met ``sampling.max_tokens``.
        signals: what of a model's scores of the data is kept in ``store``, and learned from without
            the model: ``hidden``, ``logits``, ``topk:K`` or ``sampled:N``. ``model``, or ``api`` by
            ``topk:K``, scores what the store lacks; without them the store must hold all. ``api``
            without a store scores each batch when it is learned from.
        tokenizer: with ``api`` and ``signals``: the one that the served model has, by hub name or
            folder; a server does not tell it.
        terms: under which terms its text or weights may be used; shown in the model card.
    """

    recorded: bool = False
    model: str | None = None
    api: str | None = None
    base: bool = False
    adapter: str | None = None
    world: bool = False
    trained: Trained | None = None
    average: Annotated[float, Gt(0), Lt(1)] | None = None
    dtype: Dtype = "float32"
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    base_url: str | None = None
    endpoint: Literal["chat", "completions"] = "chat"
    key_env: str | None = None
    store: str | None = None
    concurrency: Annotated[int, Ge(1)] = 8
    budget_usd: Annotated[float, Gt(0)] | None = None
    budget_tokens: Annotated[int, Gt(0)] | None = None
    price: tuple[Annotated[float, Ge(0)], Annotated[float, Ge(0)]] | None = None
    sampling: Decoding = field(default_factory=Decoding)
    keep_truncated: bool = False
    signals: str | None = None
    tokenizer: str | None = None
    terms: str | None = None

    def __post_init__(self) -> None:
        if self.base_url is not None:
            address(self.base_url)
        kept = None if self.signals is None else Kept.of(self.signals)
        scores = kept is not None and self.api is not None
        if kept is not None and scores and kept.kind != "topk":
            raise Failure(f"signals: a server gives topk:K alone, and {kept} was asked for")
        if scores and self.tokenizer is None:
            raise Failure(
                "tokenizer: name the one that the served model has (hub name or folder), which a "
                "server does not tell"
            )
        if self.tokenizer is not None and not scores:
            raise Failure("tokenizer: goes with a teacher's 'api' and 'signals' alone")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the rows come from and which are kept.

    Files are sought as given, beside the recipe, and under ``STILLROOM_DATA``.

    Args:
        train: JSON Lines, JSON, Parquet (a file, folder or pattern), a folder that ``datasets``
            saved (``FOLDER:SPLIT``), or ``hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT]`` of the hub.
            Where no split is named, the field's own name is.
        validation: a file of the same kind; or ``hold_out`` rows of ``train``.
        test: likewise.
        rows: by split, how many are used at most: the first that are kept.
        hold_out: rows that become validation, and as many that become test.
        form: of the rows: ``prompt`` (and ``completion``), ``messages``, ``alpaca``
            (``instruction``, ``input``, ``output``) or ``sharegpt`` (``conversations``); null tells
            it by the columns of the first. ``text2sql``: files of the text2sql-data collection, of
            which each split takes its own questions.
        train_on: ``all`` supervises every assistant turn of a conversation, not the last alone; a
            limit on completions is on the last.
        columns: Jinja templates that make ``prompt`` and ``completion`` from other columns, and
            further answers where a method learns from them: ``cot``, with a chain of thought,
            ``rejected``, a worse one. ``gold`` is the bare answer for evaluation.
        max_prompt_tokens: longer prompts are left out, and counted.
        max_completion_tokens: longer answers, the end token included, are left out, and counted.
        cut_completion_tokens: longer answers are cut to so many tokens and lose their end token,
            as samples do that reach ``sampling.max_new_tokens``; give both the same number.
        corpus: plain text that some methods learn from beside the rows: a file of rows with
            ``text``, or a ``.txt``; every token counts.
        corpus_tokens: longer texts are parted into pieces of so many.
        database: a SQLite file, on which the evaluator ``sql`` runs queries.
        route: the column that names each row's teacher, one of ``teachers``.
        world: a made-up world instead of files (``marked_orders``, ``zipf_chain``, ``addition``,
            ``markov``, ``chains``) by ``name``, and its options.
        items: examples with classes instead of text, by ``name`` (``digits``, ``mnist1d``,
            ``sklearn`` and others; ``rows`` and ``folder`` read ``train`` and so on), with its
            options.
        views: how inputs that are no text are changed when they are learned from (``shift``,
            ``flip``, ``scale``, ``noise``, ``mixup``), and what of it the teacher sees. A network
            that is trained first has views of its own (``trained.data.views``), or none.
        licence: shown in the model card.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    rows: dict[Literal["train", "validation", "test"], Annotated[int, Ge(1)]] = field(
        default_factory=dict
    )
    hold_out: Annotated[int, Ge(1)] | None = None
    form: Literal["prompt", "messages", "alpaca", "sharegpt", "text2sql"] | None = None
    train_on: Literal["last", "all"] = "last"
    columns: dict[str, str] = field(default_factory=dict)
    max_prompt_tokens: Annotated[int, Ge(1)] | None = None
    max_completion_tokens: Annotated[int, Gt(1)] | None = None
    cut_completion_tokens: Annotated[int, Ge(1)] | None = None
    corpus: str | None = None
    corpus_tokens: Annotated[int, Gt(1)] = 512
    database: str | None = None
    route: str | None = None
    world: dict[str, Any] | None = None
    items: dict[str, Any] | None = None
    views: Views | None = None
    licence: str | None = None
