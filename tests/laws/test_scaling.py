"""The loss scale as a state: what it comes to, and that it can be put down and taken up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grown import settings
from ontogeny.errors import ConfigError
from ontogeny.training.scaling import LossScale, loss_scale

rules = st.fixed_dictionaries(
    {
        "initial": st.sampled_from([1.0, 48.0, 4096.0]),
        "window": st.integers(1, 6),
        "hysteresis": st.integers(1, 4),
        "floor": st.sampled_from([0.25, 1.0]),
    }
)


def naive(rule: dict[str, float], overflows: list[bool]) -> list[float | None]:
    """The scale of every update, from the whole history each time; None from where it gives up."""
    found: list[float | None] = []
    for now in range(len(overflows)):
        scale, hits, quiet = rule["initial"], 0, 0
        for hit in overflows[:now]:
            quiet = 0 if hit else quiet + 1
            if hit and hits < rule["hysteresis"] - 1:
                hits += 1
            elif hit and scale == rule["floor"]:
                return found + [None] * (len(overflows) - now)
            elif hit:
                scale = max(scale / 2, rule["floor"])
            elif quiet % rule["window"] == 0:
                scale, hits = scale * 2, 0
        found.append(scale)
    return found


@given(rules, st.lists(st.booleans(), max_size=60), st.integers(0, 60))
def test_it_is_a_function_of_the_overflows_wherever_it_was_put_down(
    rule: dict[str, float], overflows: list[bool], stop: int
) -> None:
    run = settings(precision="fp16", loss_scale=rule)
    scale, found = loss_scale(run, 0, {}), list[float | None]()
    for update, hit in enumerate(overflows):
        if update == stop:
            scale = loss_scale(run, update, scale.named_state())
        found.append(scale.value)
        if hit and not scale.can_fall:
            break
        scale = scale.after(update, overflows=hit)
    assert found + [None] * (len(overflows) - len(found)) == naive(rule, overflows)
    if stop and None not in naive(rule, [*overflows, False]):
        assert scale.num_skipped == sum(overflows)


def test_there_is_none_but_in_fp16() -> None:
    scale = loss_scale(settings(precision="bf16"), 0, {})
    assert scale == LossScale()
    assert (scale.value, scale.can_fall, scale.named_state()) == (1.0, False, {})
    assert scale.after(999, overflows=False) is scale


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"initial": 0.5}, "initial 0.5 is below the floor 1"),
        ({"window": 0}, "loss_scale.window: "),
        ({"hysteresis": 0}, "loss_scale.hysteresis: "),
        ({"initial": 2.0**70}, "loss_scale.initial: "),
        ({"floor": 0}, "loss_scale.floor: "),
        ({"minimum": 1}, "unknown key 'training.loss_scale.minimum'"),
    ],
)
def test_rules_that_cannot_be(rule: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(precision="fp16", loss_scale=rule)
