"""Prompts with keys: what may be given, what comes back, and that a batch resumes by them."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import pandas
import pytest

from berlin_chat import InvalidRequest, Provider, ask_many, keyed, stream_many
from berlin_chat.batch.questions import SENT
from test_pool import prompt_of, prompts, repeating
from wire import YLOKH, Wire

Make = Callable[..., Provider]


@pytest.fixture
def provider(provider_for: Make) -> Provider:
    return provider_for(YLOKH, repeating(YLOKH))


def asked(wire: Wire) -> list[str]:
    found = sorted(prompt_of(request) for request in wire.requests)
    wire.requests.clear()
    return found


ROWS = {f"row-{n}": f"q{n}" for n in range(20)}


class Table:
    """Has ``items()``, and nothing else."""

    def items(self) -> Iterator[tuple[str, str]]:
        return iter(ROWS.items())


@pytest.mark.parametrize(
    "given",
    [
        lambda: ROWS,
        lambda: MappingProxyType(ROWS),
        lambda: Table(),
        lambda: pandas.Series(ROWS),
        lambda: keyed(ROWS.items()),
        lambda: keyed(iter(ROWS.items())),
        lambda: keyed(zip([*ROWS], [*ROWS.values()], strict=True)),
        lambda: keyed([[key, prompt] for key, prompt in ROWS.items()]),
    ],
    ids=["dict", "mapping", "items()", "Series", "keyed items", "keyed iterator", "keyed zip", "keyed lists"],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_each_answer_has_the_key_of_its_prompt(given: Any, with_file: bool, provider: Provider, path: Path) -> None:
    answers = list(ask_many(provider, given(), checkpoint=path if with_file else None))
    assert [(answer.key, answer.prompt, answer.reply) for answer in answers] == [
        (key, prompt, prompt) for key, prompt in ROWS.items()
    ]
    assert [answer.index for answer in answers] == list(range(20))


def test_without_keys_the_key_is_none(provider: Provider) -> None:
    assert [answer.key for answer in ask_many(provider, prompts(3))] == [None] * 3


def test_an_error_has_its_key_too(provider: Provider) -> None:
    (answer,) = ask_many(provider, {"empty": ""})
    assert answer.key == "empty"
    assert isinstance(answer.error, InvalidRequest)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_batch_resumes_by_key_whatever_the_order(ordered: bool, provider: Provider, path: Path, wire: Wire) -> None:
    list(ask_many(provider, dict(list(ROWS.items())[:12]), checkpoint=path))
    wire.requests.clear()
    shuffled = list(ROWS.items())
    random.Random(8).shuffle(shuffled)
    answers = list(ask_many(provider, keyed(shuffled), checkpoint=path, ordered=ordered))
    assert {answer.key: answer.reply for answer in answers} == ROWS
    if ordered:
        assert [(answer.key, answer.prompt) for answer in answers] == shuffled
    assert asked(wire) == sorted(f"q{n}" for n in range(12, 20))
    answers = list(ask_many(provider, pandas.Series(ROWS).sample(7, random_state=8), checkpoint=path))
    assert {answer.key: answer.reply for answer in answers}.items() <= ROWS.items()
    assert asked(wire) == []


@pytest.mark.parametrize(
    "keys",
    [
        [1, 2, 3],
        [1.5, -2, 10**30],
        ["", " ", 'ы\n"\', "prompt": \\'],
        [("a", 1), ("a", 2), ("b", ("c", 1))],
        [date(2024, 2, 29), date(2024, 3, 1), datetime(2024, 3, 1, 12)],
        [True, False, 2],
        list(numpy.arange(3)),
        list(numpy.array(["a", "b", "c"])),
        list(pandas.date_range("2024-02-28", periods=3)),
        list(pandas.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])),
    ],
    ids=str,
)
def test_keys_of_many_kinds_are_found_again(keys: list[Any], provider: Provider, path: Path, wire: Wire) -> None:
    pairs = list(zip(keys, prompts(3), strict=True))
    answers = list(ask_many(provider, keyed(pairs), checkpoint=path))
    assert [answer.key for answer in answers] == keys
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
    wire.requests.clear()
    answers = list(ask_many(provider, keyed(pairs[::-1]), checkpoint=path))
    assert [answer.key for answer in answers] == keys[::-1]
    assert [type(answer.key) for answer in answers] == [type(key) for key in keys[::-1]]
    assert asked(wire) == []


def test_another_prompt_for_a_key_is_refused_before_anything_is_asked(
    provider: Provider, path: Path, wire: Wire
) -> None:
    list(ask_many(provider, ROWS, checkpoint=path))
    wire.requests.clear()
    changed = {"new": "q98", **ROWS, "row-3": "q99"}
    with pytest.raises(InvalidRequest, match="to the key 'row-3'"):
        list(ask_many(provider, {"row-3": "q99", **ROWS, **changed}, checkpoint=path))
    assert wire.requests == []
    answers = list(ask_many(provider, changed, checkpoint=path, checkpoint_mismatch="ask"))
    assert {answer.key: answer.reply for answer in answers} == changed
    assert asked(wire) == ["q98", "q99"]


@pytest.mark.parametrize("first", [ROWS, list(ROWS.values())], ids=["keys", "no keys"])
def test_a_file_with_keys_and_prompts_without_are_not_mixed_up(
    first: Any, provider: Provider, path: Path, wire: Wire
) -> None:
    second: Any = list(ROWS.values()) if isinstance(first, dict) else ROWS
    list(ask_many(provider, first, checkpoint=path))
    wire.requests.clear()
    with pytest.raises(InvalidRequest, match="keys"):
        list(ask_many(provider, second, checkpoint=path))
    assert wire.requests == []
    for expected in (20, 0):
        assert len(list(ask_many(provider, second, checkpoint=path, checkpoint_mismatch="ask"))) == 20
        assert len(asked(wire)) == expected


def test_a_key_that_comes_twice_ends_the_batch_and_what_was_answered_is_kept(
    provider: Provider, path: Path, wire: Wire
) -> None:
    pairs = [*ROWS.items(), ("row-7", "q99")]
    with pytest.raises(InvalidRequest, match="'row-7' comes twice, again with prompt 20"):
        list(ask_many(provider, keyed(pairs), checkpoint=path, max_workers=1))
    kept = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    assert len(kept) > 3
    wire.requests.clear()
    list(ask_many(provider, ROWS, checkpoint=path))
    assert not set(asked(wire)) & set(kept)


def test_a_series_whose_labels_come_twice_is_refused_at_the_call(provider: Provider, path: Path) -> None:
    series = pandas.Series(["q0", "q1"], index=["a", "a"])
    with pytest.raises(InvalidRequest, match="twice"):
        ask_many(provider, series, checkpoint=path)
    assert len(list(ask_many(provider, series))) == 2


@pytest.mark.parametrize("key", [float("nan"), float("inf"), {"a"}, object(), b"a", "\ud800", ("a", b"b")], ids=repr)
def test_a_key_that_no_file_can_hold_is_refused_with_a_file_only(
    key: Any, provider: Provider, path: Path, wire: Wire
) -> None:
    with pytest.raises(InvalidRequest, match="cannot be kept in a file"):
        list(ask_many(provider, keyed([(key, "q0")]), checkpoint=path))
    assert wire.requests == []
    (answer,) = ask_many(provider, keyed([(key, "q0")]))
    assert answer.key is key


@pytest.mark.parametrize("pairs", [["ab"], ["q0", "q1"], [("a", "b", "c")], [{"a": "q0"}], [None]])
def test_what_is_no_pair_is_named_with_its_place(pairs: list[Any], provider: Provider, wire: Wire) -> None:
    with pytest.raises(InvalidRequest, match=r"prompt 1 is of type .*, not a \(key, prompt\) pair"):
        list(ask_many(provider, keyed([("a", "q0"), *pairs]), max_workers=1))


def test_no_key_is_none(provider: Provider, wire: Wire) -> None:
    with pytest.raises(InvalidRequest, match="prompt 0 has the key None"):
        list(ask_many(provider, keyed([(None, "q0")])))
    assert wire.requests == []


@pytest.mark.parametrize("wrong", ["ab", b"ab", {"a": "q0"}, 5, None])
def test_keyed_takes_pairs_only(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"keyed\(zip\(keys, prompts\)\)"):
        keyed(wrong)


def test_keys_and_prompts_are_read_no_further_ahead_than_needed(provider: Provider) -> None:
    taken = itertools.count()
    for answer in ask_many(provider, keyed((n, f"q{n}") for n in taken), max_workers=2):
        if answer.index == 50:
            break
    assert next(taken) < 70


def test_a_progress_bar_knows_how_many_there_are(provider: Provider, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (ROWS, keyed(list(ROWS.items()))):
        list(ask_many(provider, given, progress=True))
        assert "20/20" in capsys.readouterr().err


# What is not the prompts of a batch

many = pytest.mark.parametrize("many", [ask_many, stream_many], ids=lambda many: many.__name__)


@many
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("Why is the sky blue?", r"\(provider, \[prompt\]"),
        (b"Why", r"\(provider, \[prompt\]"),
        ({"role": "user", "content": "Hi"}, r"\(provider, \[message\]"),
        (pandas.DataFrame({"question": ["q0"]}), r"\(provider, frame\['question'\]"),
        (None, "give a list of prompts"),
        (7, "give a list of prompts"),
    ],
    ids=["str", "bytes", "message", "DataFrame", "None", "int"],
)
def test_what_is_not_several_prompts_is_refused_at_the_call_with_what_to_write(
    many: Any, wrong: Any, told: str, provider: Provider
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        many(provider, wrong)


def test_stream_many_has_no_keys(provider: Provider) -> None:
    with pytest.raises(InvalidRequest, match="as a list"):
        stream_many(provider, ROWS)


@many
@pytest.mark.parametrize(
    ("misspelled", "meant"),
    [
        ("workers", "max_workers"),
        ("worker", "max_workers"),
        ("max_worker", "max_workers"),
        ("n_workers", "max_workers"),
        ("num_workers", "max_workers"),
        ("maxworkers", "max_workers"),
        ("dead_line", "deadline"),
        ("on_errors", "on_error"),
        ("rates", "rate"),
        ("cancels", "cancel"),
    ],
)
def test_an_argument_that_is_misspelled_is_refused_at_the_call(
    many: Any, misspelled: str, meant: str, provider: Provider
) -> None:
    with pytest.raises(InvalidRequest, match=f"no argument '{misspelled}'.* write {meant}=…"):
        many(provider, ["q0"], **{misspelled: 4})


@pytest.mark.parametrize(
    ("misspelled", "meant"),
    [
        ("order", "ordered"),
        ("unordered", "ordered"),
        ("check_point", "checkpoint"),
        ("checkpoints", "checkpoint"),
        ("chunksize", "chunk_size"),
        ("progress_bar", "progress"),
        ("executors", "executor"),
        ("checkpoint_missmatch", "checkpoint_mismatch"),
    ],
)
def test_an_argument_of_ask_many_alone_that_is_misspelled_is_refused_too(
    misspelled: str, meant: str, provider: Provider
) -> None:
    with pytest.raises(InvalidRequest, match=f"write {meant}=…"):
        ask_many(provider, ["q0"], **{misspelled: True})


def test_options_that_servers_know_are_not_taken_for_ours(provider: Provider, wire: Wire) -> None:
    import inspect

    from openai.resources.chat.completions import Completions

    of_openai = set(inspect.signature(Completions.create).parameters) - {"self", "messages", "model", "stream"}
    of_others = (
        "top_k min_p typical_p repeat_penalty num_predict num_ctx keep_alive format think template raw suffix images"
        " best_of length_penalty stop_token_ids ignore_eos min_tokens guided_json guided_choice priority models route"
        " transforms prediction reasoning plugins cache_prompt n_predict samplers mirostat grammar truncate"
        " max_new_tokens max_length repetition_penalty web_search safe_prompt random_seed thinking mode modality"
    )
    options = dict.fromkeys([*of_openai, *of_others.split(), *SENT], 1)
    options.pop("stream_options", None)
    options.pop("timeout", None)
    for many in (ask_many, stream_many):
        many(provider, ["q0"], **options)  # is not refused


# The recipe for a table

RECIPE = """
import sys
import pandas as pd
from berlin_chat import Ylokh, ask_many

frame = pd.read_csv(sys.argv[2], index_col="id")
if len(sys.argv) > 4:
    frame = frame.sample(frac=1, random_state=int(sys.argv[4]))
replies = {}
with Ylokh(base_url=sys.argv[1]) as provider:
    for answer in ask_many(provider, frame["question"], checkpoint=sys.argv[3], ordered=False):
        replies[answer.key] = answer.reply
        if len(sys.argv) <= 4 and len(replies) == 20:
            import os
            os.kill(os.getpid(), 9)
frame["reply"] = pd.Series(replies)
frame.sort_index().to_csv(sys.stdout)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_column_is_added_to_a_table_after_a_restart_with_its_rows_in_another_order(
    provider: Provider, tmp_path: Path, wire: Wire
) -> None:
    table, path = tmp_path / "table.csv", tmp_path / "answers.jsonl"
    frame = pandas.DataFrame({"id": range(1000, 1060), "question": [f"q{n}" for n in range(60)]}).set_index("id")
    frame.to_csv(table)
    command = [sys.executable, "-c", RECIPE, wire.url, str(table), str(path)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    first = {json.loads(line)["prompt"] for line in path.read_text().splitlines()}
    assert 20 <= len(first) < 60
    wire.requests.clear()
    done = subprocess.run([*command, "8"], timeout=60, check=True, capture_output=True, text=True)
    assert set(asked(wire)) == set(frame["question"]) - first
    lines = [line.split(",") for line in done.stdout.split()]
    assert lines == [["id", "question", "reply"], *([str(1000 + n), f"q{n}", f"q{n}"] for n in range(60))]
