"""Published result files, of every style there is: what they say, and what is no such file."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import DataError, EvaluationError
from ontogeny.evaluation.published import (
    import_scores,
    member_place,
    read_result_file,
)
from ontogeny.results import SCORES, read_scores
from ontogeny.scores import ScoreStore

PIQA = {"acc": 0.75, "acc_stderr": 0.25, "acc_norm": 0.5}


def put(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def of_2023(model: str, results: dict[str, Any], shots: int = 0) -> dict[str, Any]:
    config = {"model": "hf-causal", "model_args": f"pretrained=EleutherAI/{model}",
              "num_fewshot": shots}  # fmt: skip
    return {"results": results, "versions": dict.fromkeys(results, 0), "config": config}


def of_neox(iteration: int, **settings: object) -> dict[str, Any]:
    arguments = {"iteration": iteration, **settings}
    return {"results": {"piqa": PIQA}, "config": {"model_args": arguments, "num_fewshot": 0}}


@pytest.mark.parametrize(
    ("name", "member", "size", "corpus"),
    [
        ("pythia-v1.1-70m", "70m", "70m", "standard"),
        ("pythia-1.4b-deduped", "1.4b-deduped", "1.4b", "deduped"),
        ("pythia-v1.1-1b-bf16", "1b-bf16", "1b", "standard"),
        ("intervention-pythia-v1.1-1.4b-deduped-long", "1.4b-deduped-long-intervention", "1.4b",
         "deduped"),
        ("pythia-19m-deduped-v0", "70m-deduped-v0", "70m", "deduped"),
        ("410m_dedup", "410m-deduped", "410m", "deduped"),
        ("pythia-160m-seed3", "160m-seed3", "160m", "standard"),
        ("pythia-v1.1-70m-0.25MtokBS", "70m-0.25MtokBS", "70m", "standard"),
    ],
)  # fmt: skip
def test_any_name_a_model_went_by_is_one_member(
    name: str, member: str, size: str, corpus: str
) -> None:
    place = member_place(name, 1000)
    assert (place.member, place.size, place.corpus) == (member, size, corpus)
    assert place.init_seed == (3 if "seed3" in name else 1234)


def test_a_step_is_as_many_tokens_as_the_name_or_the_settings_say() -> None:
    assert member_place("pythia-v1.1-70m", 1).tokens == 1024 * 2048
    assert member_place("pythia-70m-0.25MtokBS", 8).tokens == 1024 * 2048
    assert member_place("pythia-1.3b-v0", 1, 71_500).tokens == 2048 * 2048
    last = member_place("pythia-160m-0.5MtokBS", None)
    assert (last.step, last.tokens) == (572_000, 143_000 * 1024 * 2048)


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("gpt2", 1, "not a name of the Pythia suite; found 'gpt2' ('gpt2')"),
        ("pythia-deduped", 1, "a name without a size"),
        ("pythia-71m", 1, "a name without a size"),
        ("pythia-70m-3MtokBS", 1, "('3mtokbs')"),
        ("pythia-70m", 143_001, "a step after the run's last; expected 143000"),
    ],
)
def test_a_name_that_is_not_understood_is_named(name: str, step: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=r"suite|step") as caught:
        member_place(name, step)
    assert message in str(caught.value)


def test_a_run_of_another_length_is_not_taken_for_the_suites() -> None:
    with pytest.raises(EvaluationError, match="another number of updates; found 71501"):
        member_place("pythia-70m", 1, 71_501)


@settings(max_examples=50)
@given(data=st.data(), n=st.integers(2, 3000))
def test_the_number_of_items_is_recovered_from_share_and_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n: int
) -> None:
    right = data.draw(st.integers(1, n - 1))
    answers = [1.0] * right + [0.0] * (n - right)
    measures = {"acc": right / n, "acc_stderr": statistics.stdev(answers) / math.sqrt(n)}
    folder = tmp_path_factory.mktemp("recovered")
    path = put(folder / "a.json", of_2023("pythia-70m,revision=step1", {"piqa": measures}))
    assert read_result_file(path).tasks[0].num_items == n


def test_a_file_of_2023_becomes_rows(tmp_path: Path) -> None:
    lambada = {"ppl": 142.4, "ppl_stderr": 6.0, "acc": 0.5, "acc_stderr": math.sqrt(0.25 / 99)}
    data = of_2023("pythia-v1.1-70m,revision=step512", {"wsc": {"acc": 0.0, "acc_stderr": 0.0},
                                                        "lambada_openai": lambada}, 5)  # fmt: skip
    put(tmp_path / "in" / "70m_step512.json", data)
    known = {"wsc": {"acc": 0.5, "acc_stderr": math.sqrt(0.25 / 103)}}
    put(tmp_path / "in" / "70m_step1.json", of_2023("pythia-v1.1-70m,revision=step1", known))
    assert import_scores(tmp_path / "in", tmp_path / "out") == []
    store = ScoreStore(tmp_path / "out")
    assert store.places() == [("70m", 1), ("70m", 512)]
    assert store.place("70m", 512).tokens == 512 * 1024 * 2048
    assert store.place("70m", 512).num_parameters == 18_915_328
    rows = {(r.task, r.metric): r for r in read_scores(store.path("70m", 512) / SCORES)}
    perplexity, wsc = rows["lambada_openai", "perplexity"], rows["wsc", "acc"]
    assert (perplexity.n, perplexity.shots, perplexity.chance) == (100, 5, None)
    assert (perplexity.low, perplexity.high) == pytest.approx((142.4 - 11.76, 142.4 + 11.76))
    # No error tells how many items a share of 0 is of: another file's does.
    assert (wsc.n, wsc.chance, wsc.majority) == (104, 0.5, 66 / 104)
    assert wsc.low == 0 < wsc.high < 0.05  # Wilson's
    cell = next(cell for cell in store.cells("70m", 512) if cell.task == "wsc")
    assert cell.harness == "lm-eval unknown, task version 0"
    assert cell.weights == "" != cell.data


@pytest.mark.parametrize("value", [1.7, -0.5, math.inf])
def test_a_share_that_is_none_is_refused(tmp_path: Path, value: float) -> None:
    told = of_2023("pythia-70m,revision=step1", {"piqa": {"acc": value}, "copa": {"acc": 0.5}})
    path = put(tmp_path / "a.json", told | {"n-samples": {"piqa": {"effective": 9}}})
    message = f"a.json: acc of piqa is no share of items; expected 0 to 1; found {value}"
    with pytest.raises(EvaluationError, match=message):
        read_result_file(path)


def test_what_is_no_number_is_no_score_and_no_interval(tmp_path: Path) -> None:
    values = {"acc": math.nan, "ppl": math.inf, "ppl_stderr": math.inf}
    told = of_2023("pythia-70m,revision=step1", {"lambada_openai": values})
    (task,) = read_result_file(put(tmp_path / "a.json", told)).tasks
    (row,) = task.scores(member_place("pythia-70m", 1), 0)
    assert (row.metric, row.value) == ("perplexity", math.inf)
    assert math.isnan(row.low)
    assert math.isnan(row.high)


def test_the_harness_of_today_is_read_too(tmp_path: Path) -> None:
    piqa = {"alias": "piqa", "sample_len": 100, "acc,none": 0.5, "acc_stderr,none": 0.05,
            "acc_norm,none": 0.25, "acc_norm_stderr,none": "N/A"}  # fmt: skip
    data = {"results": {"piqa": piqa, "group": {"alias": "group", " ": " "}},
            "n-shot": {"piqa": 5}, "n-samples": {"piqa": {"original": 1838, "effective": 100}},
            "versions": {"piqa": 1.0}, "lm_eval_version": "0.4.13",
            "config": {"model_args": {"pretrained": "EleutherAI/pythia-70m"}}}  # fmt: skip
    file = read_result_file(put(tmp_path / "results_2026.json", data))
    assert (file.place.member, file.place.step) == ("70m", 143_000)
    (told,) = file.tasks
    assert (told.cell.shots, told.num_items) == (5, 100)
    assert told.cell.harness == "lm-eval 0.4.13, task version 1"
    assert told.measures["acc"] == (0.5, 0.05)
    assert [told.measures["acc_norm"][0], *told.measures] == [0.25, "acc", "acc_norm"]


@pytest.mark.parametrize(
    ("path", "data", "member", "step"),
    [
        ("baseline/baseline-1.4b-deduped_step9.json",
         of_2023("pythia-v1.1-1.4b-deduped,revision=step9", {"piqa": PIQA}),
         "1.4b-deduped-baseline", 9),
        ("zero-shot/1b-bf16-5shot_step9.json",
         of_2023("pythia-v1.1-1b-bf16,revision=step9", {"piqa": PIQA}), "1b-bf16", 9),
        ("long-intervention-1.3b-deduped-step9_eval_results_01-23-2023-14-05-01.json",
         of_neox(9, train_iters=71_500, load="/x/1.3B_dedup_56500start"),
         "1.4b-deduped-long-intervention-v0", 9),
        ("1.4B/eval_results_02-15-2023-21-59-54.json",
         of_neox(9, train_iters=143_000, load="/x/ckpts/1.4b_deduped"), "1.4b-deduped", 9),
        ("intervene_7/410M/eval_results_410m-deduped_9.json",
         {"table_results": {"a+b c": {"task_name": "a", "prompt_name": "b c", "em": 0.5}},
          "model_args": {"iteration": 9}}, "410m-deduped-intervention", 9),
    ],
)  # fmt: skip
def test_every_style_of_file_names_its_checkpoint(
    tmp_path: Path, path: str, data: dict[str, Any], member: str, step: int
) -> None:
    file = read_result_file(put(tmp_path / path, data))
    assert (file.place.member, file.place.step) == (member, step)
    assert {told.cell.shots for told in file.tasks} == {0}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a", [], "holds no scores"),
        ("a", {"results": {"piqa": {"acc": "high"}}}, "holds no scores"),
        ("a", {"results": {"piqa": PIQA}}, "does not say which checkpoint was asked"),
        ("a", of_2023("pythia-70m,revision=best", {"piqa": PIQA}), "a revision that is no step"),
        ("a_step2", of_2023("pythia-70m,revision=step1", {"piqa": PIQA}), "found step 1 inside"),
        ("a", of_2023("gpt2,revision=step1", {"piqa": PIQA}), "not a name of the Pythia suite"),
        ("a", of_2023("pythia-70m", {"a/b": PIQA}), "names of tasks or metrics"),
        ("a", of_2023("pythia-70m", {"\ud800": PIQA}), "names of tasks or metrics"),
    ],
)
def test_what_is_no_result_file_is_named(
    tmp_path: Path, name: str, data: object, message: str
) -> None:
    path = put(tmp_path / f"{name}.json", data)
    with pytest.raises(EvaluationError) as caught:
        read_result_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"{}" * 2])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "70m_step1.json"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"70m_step1\.json: cannot be read; found"):
        read_result_file(path)


KEYS = st.sampled_from(["acc", "piqa", "\ud800"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=4,
)


@settings(max_examples=30)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "results": JSON, "versions": JSON, "n-shot": JSON, "n-samples": JSON,
            "lm_eval_version": JSON, "table_results": JSON,
            "config": st.fixed_dictionaries({}, optional={"model_args": st.dictionaries(
                st.sampled_from(["pretrained", "revision", "iteration", "load"]), JSON)}),
        },
    )
)  # fmt: skip
def test_no_json_at_all_makes_more_than_a_named_fault(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    path = put(tmp_path_factory.mktemp("any") / "a.json", data)
    try:
        named = str(read_result_file(path).path)
    except EvaluationError as error:
        named = error.where
    assert named == str(path)


def test_two_files_of_a_checkpoint_agree_or_neither_is_taken(tmp_path: Path) -> None:
    model = "pythia-70m,revision=step1"
    sciq, other = {"acc": 0.5}, {"acc": 0.25}
    put(tmp_path / "in" / "a.json", of_2023(model, {"piqa": PIQA, "sciq": sciq}))
    put(tmp_path / "in" / "b.json", of_2023(model, {"piqa": PIQA, "sciq": other}))
    put(tmp_path / "in" / "c.json", of_2023(model, {"sciq": sciq}, 5))
    (fault,) = import_scores(tmp_path / "in", tmp_path / "out")
    assert "b.json: tells otherwise than another file of 70m at step 1" in str(fault)
    assert "found 1 tasks, such as sciq, of which none is taken" in str(fault)
    cells = ScoreStore(tmp_path / "out").cells("70m", 1)
    assert [(cell.task, cell.shots) for cell in cells] == [("piqa", 0), ("sciq", 5)]


def test_two_files_that_count_steps_otherwise_are_not_of_one_run(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.json", of_2023("pythia-410m-v0,revision=step500", {"piqa": PIQA}))
    name = "pythia-350m-step500_eval_results_1.json"
    put(tmp_path / "in" / name, of_neox(500, train_iters=71_500))
    leftover = tmp_path / ".out.new" / "member=70m" / "step=1"
    leftover.mkdir(parents=True)  # of an import that was killed
    (fault,) = import_scores(tmp_path / "in", tmp_path / "out")
    assert f"{name}: other tokens by that step; found" in str(fault)
    assert ScoreStore(tmp_path / "out").members() == ["410m-v0"]


def test_nothing_readable_and_a_place_that_is_taken_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(EvaluationError, match=r"no scores that can be read; .* found none"):
        import_scores(tmp_path / "in", tmp_path / "out")
    put(tmp_path / "in" / "a.json", {})
    with pytest.raises(EvaluationError, match=r"found .*a\.json: holds no scores"):
        import_scores(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="already exists"):
        import_scores(tmp_path / "in", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
