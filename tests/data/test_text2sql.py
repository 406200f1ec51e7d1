"""Questions with SQL: a row for each, of its own split, with values in place of names."""

import pytest

from stillroom.core import Failure
from stillroom.data.text2sql import questions

QUERY = {
    "sql": ['SELECT a FROM t WHERE b = "name0" AND c = "name01" ;', "SELECT a FROM other"],
    "variables": [],
    "sentences": [
        {
            "text": "what a has name0 and name01",
            "question-split": "train",
            "variables": {"name0": "new york", "name01": "name0"},
        },
        {"text": "which a", "question-split": "dev", "variables": {}},
        {"text": "any a", "question-split": "train", "variables": {}},
    ],
}


def test_a_row_for_each_question_of_a_split():
    found = questions([("f.json, row 0", QUERY)], "train")
    assert [where for where, _ in found] == [f"f.json, row 0, sentence {i}" for i in (0, 2)]
    assert found[1][1] == {"prompt": "any a", "completion": QUERY["sql"][0]}
    ((_, row),) = questions([("f.json, row 0", QUERY)], "validation")
    assert row["prompt"] == "which a"


def test_longer_names_are_filled_in_first_and_values_are_left_alone():
    row = questions([("f.json, row 0", QUERY)], "train")[0][1]
    assert row["prompt"] == "what a has new york and name0"
    assert row["completion"] == 'SELECT a FROM t WHERE b = "new york" AND c = "name0" ;'


def test_a_split_that_has_none_and_rows_of_another_form():
    with pytest.raises(Failure, match=r"of the split 'test'; the file has \['dev', 'train'\]"):
        questions([("f.json, row 0", QUERY)], "test")
    with pytest.raises(Failure, match=r"line 3: expected a query of text2sql-data.*\['prompt'\]"):
        questions([("f.jsonl, line 3", {"prompt": "a"})], "train")
    with pytest.raises(Failure, match="line 4: expected"):
        questions([("f.jsonl, line 4", {"sql": [], "sentences": []})], "train")
