"""The verb `plan`: tables, JSON, and one line for every mistake."""

from __future__ import annotations

import json

import pytest

from spoken import Type


@pytest.mark.slow
def test_a_suite_is_planned(say: Type) -> None:
    said = say("plan", "pythia", "--gpus", 64, "--gpu", "h200", "--gpu-hour-price", 2)
    assert said.code == 0
    times, sizes, last = said.out.split("\n\n")
    assert len(times.splitlines()) == len(sizes.splitlines()) == 11
    assert times.splitlines()[3].split()[:4] == ["70m,", "70m-deduped", "64", "1"]
    twice = sum(int(line.split()[-1].replace(",", "")) for line in times.splitlines()[3:])
    small = sum(int(line.split()[-1]) for line in times.splitlines()[1:3])
    hours = int(last.split()[5].replace(",", ""))
    assert hours == pytest.approx(2 * twice + small, abs=12)
    assert f"{2 * hours:,}"[:4] in last


def test_one_member_shows_what_does_not_fit_last(say: Type) -> None:
    said = say("plan", "pythia", "--member", "410m-deduped", "--gpus", 1)
    assert said.code == 0
    _, sizes, last = said.out.split("\n\n")
    fits = [line.split()[-3] for line in sizes.splitlines()[1:]]
    assert fits == sorted(fits, reverse=True)
    assert set(fits) == {"yes", "no"}
    best = json.loads(say("plan", "pythia", "--member", "410m", "--gpus", 1, "--json").out)
    (plan,) = best["plans"]
    assert f"{best['gpu_hours']:,.0f} GPU-hours" in last
    assert plan["parameters"] * 4 == plan["layouts"][0]["memory"]["parameters"]
    assert [one["fits"] for one in plan["layouts"]] == [word == "yes" for word in fits]


def test_published_hours_are_beside_the_planned(say: Type) -> None:
    said = say("plan", "pythia", "--against-paper")
    assert said.code == 0
    lines = {line.split()[0]: line.split() for line in said.out.split("\n\n")[0].splitlines()}
    assert lines["12b"][1:3] == ["64", "4"]
    assert lines["12b"][-2] == "72,300"
    planned, share = float(lines["12b"][-3].replace(",", "")), float(lines["12b"][-1])
    assert planned / 72_300 == pytest.approx(share, abs=0.01)
    last = json.loads(say("plan", "pythia", "--against-paper", "--json").out)[-1]
    assert (last["member"], last["published_gpu_hours"]) == ("12b", 72_300)
    assert f"{last['gpu_hours']:.0f}" == f"{planned:.0f}"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--gpu", "h20"], ["unknown GPU 'h20'", "a100-40gb, a100-80gb", "did you mean 'h200'?"]),
        (["--gpus", 12], ["12 GPUs cannot share 1024 rows", "1, 2, 4, 8, 16,", "--gpus 8"]),
        (["--gpus", 1, "--gpu", "a100-40gb"], ["1b: no layout fits on 1 x a100-40gb", "36 GB",
                                               "too much", "more GPUs"]),
        (["--member", "12"], ["no member '12'", "did you mean '12b'?"]),
        (["--set", "training.precision=fp32"], ["half precision", "training.precision=bf16"]),
        (["--against-paper", "--set", "members=[{size=['14m']}]"], ["no member is in the paper"]),
        (["--against-paper", "--gpus", 8], ["--gpus: counts for nothing with --against-paper"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_planned(say: Type, words: list[object], parts: list[str]) -> None:
    assert say("plan", "pythia", *words).refused(*parts)


def test_an_unknown_suite(say: Type) -> None:
    assert say("plan", "pythiaa").refused("pythiaa: no such file")
