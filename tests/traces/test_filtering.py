"""Each rule at its bound, by hand; the order of reasons; provenance."""

from __future__ import annotations

import pytest

from stillroom.failures import Failure
from stillroom.traces.filtering import LION, Filter, filtered
from stillroom.traces.texts import Dropped, Kept, chained, noted, text_of


def row(text, prompt="What is it?"):
    return {"prompt": prompt, "completion": text}


RULES = [
    ({"min_words": 3}, "one two three", "one two"),
    ({"max_words": 2}, "one two", "one two three"),
    ({"min_characters": 3}, "abc", "ab"),
    ({"max_characters": 3}, "abc", "abcd"),
    ({"ended": True}, 'He said "yes."', "and then he"),
    ({"ended": True}, "\u306f\u3044\u3002", "\u306f\u3044"),
    # 9 words are 6 runs of four; the first four twice: 5 different
    ({"max_repetition": 1 / 6 + 1e-9}, "a b c d x a b c d", "a b c d a b c d a b"),
    ({"max_line_run": 2}, "x\nx\ny\nx", "x\n x \nx"),
    ({"refusals": True}, "I'm sorry to hear of it.", "I\u2019m sorry, but I can't help."),
    ({"refusals": True}, "I cannot emphasize it enough.", "* As an AI language model, I"),
    ({"patterns": ("sure[,!]",)}, "I am sure, yes", "Sure! Here"),
    ({"min_letters": 0.5}, "ab 12", "a 12"),
    ({"min_ascii": 0.5}, "a\u00e9", "a\u00e9\u00e9"),
    ({"plain_start": True}, "Yes", "- yes"),
    ({"plain_start": True}, "Yes", "\u00c9t\u00e9"),
    ({"without": ("Instruction",)}, "instructions", "the INSTRUCTION."),
]


@pytest.mark.parametrize(("rule", "kept", "dropped"), RULES)
def test_a_rule_keeps_at_its_bound_and_drops_beyond(rule, kept, dropped):
    found = filtered([row(dropped), row(kept)], Filter(**rule))
    assert [r["completion"] for r in found.rows] == [kept]
    assert found.counts == {next(iter(rule)): 1}
    assert found.dropped[0].place == 0
    assert found.dropped[0].row == row(dropped)


def test_a_copy_of_the_prompt_is_measured_in_its_own_four_grams():
    asked = "one two three four five six"
    half = "One, two three four five! seven eight"  # 2 of 4 runs stand in the prompt
    for bound, stays in ((0.5, 1), (0.49, 0)):
        assert len(filtered([row(half, asked)], Filter(max_copied=bound)).rows) == stays


def test_tokens_are_counted_by_the_tokenizer_alone():
    told = [row("abc"), row("abcd")]
    kept = filtered(told, Filter(max_tokens=3, min_tokens=3), tokenize=list)
    assert [r["completion"] for r in kept.rows] == ["abc"]
    with pytest.raises(Failure, match="max_tokens: tokens of which tokenizer"):
        filtered(told, Filter(max_tokens=3))


def test_the_first_broken_rule_is_the_reason_and_without_rules_all_stays():
    both = Filter(min_words=2, ended=True)
    assert filtered([row("no")], both).counts == {"min_words": 1}
    assert len(filtered([row(""), row("no")], Filter()).rows) == 2


def test_lion_drops_short_odd_and_instruction():
    prompts = ["Do it for me", "Do it now", "- do it for me", "Write an instruction for me"]
    kept = filtered([{"prompt": p} for p in prompts], LION, column="prompt")
    assert [r["prompt"] for r in kept.rows] == prompts[:1]
    assert kept.counts == {"min_words": 1, "plain_start": 1, "without": 1}


def test_provenance_is_added_to_and_columns_stay():
    before = {**row("x"), "gold": "1", "provenance": {"asked": {"teacher": "t"}}}
    once = filtered([before], Filter(max_words=3)).rows[0]
    (twice,) = filtered([once], Filter(), column="prompt").rows
    assert twice["gold"] == "1"
    assert twice["provenance"] == {
        "asked": {"teacher": "t"},
        "filtered": [
            {"by": "rules", "column": "completion", "max_words": 3},
            {"by": "rules", "column": "prompt"},
        ],
    }
    assert before["provenance"] == {"asked": {"teacher": "t"}}


BAD = [
    ({"max_repetition": 1.1}, "max_repetition is a share"),
    ({"min_words": -1}, "min_words is a count"),
    ({"patterns": ("(",)}, "the pattern"),
]


@pytest.mark.parametrize(("rule", "message"), BAD)
def test_a_rule_out_of_range_is_refused(rule, message):
    with pytest.raises(Failure, match=message):
        Filter(**rule)


def test_the_text_of_messages_is_what_the_user_says_and_the_last_answer():
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    told = {"messages": [{"role": r, "content": c} for r, c in turns]}
    assert text_of(told, "prompt") == "a\nc"
    assert text_of(told, "completion") == "d"
    with pytest.raises(Failure, match=r"row 3: expected a text in 'cot', got NoneType"):
        text_of(told, "cot", "row 3")


def test_chained_steps_tell_places_of_the_first_list():
    def without(letter):
        def step(rows):
            out = [i for i, r in enumerate(rows) if r["completion"] == letter]
            gone = [Dropped(i, rows[i], letter, "") for i in out]
            return Kept([noted(r, {}) for i, r in enumerate(rows) if i not in out], gone)

        return step

    kept = chained([row(c) for c in "abcab"], [without("a"), without("c"), without("b")])
    assert [(d.place, d.kind) for d in kept.dropped] == [*enumerate("abcab")]
    assert not kept.rows
    assert kept.dropped[1].told()["dropped"] == {"row": 1, "kind": "b", "why": ""}
