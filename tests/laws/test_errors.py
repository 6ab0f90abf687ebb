"""Errors a user can act on: every part shown, in order, on one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny import errors
from ontogeny.errors import DataError, OntogenyError

CHILDREN = ("Config", "Data", "Order", "Checkpoint", "Evaluation", "Training")


def test_every_part_in_order() -> None:
    error = DataError("bad", where="a/b", expected=3, found=4, fix="ontogeny run")
    assert str(error) == "a/b: bad; expected 3; found 4; try: ontogeny run"


def test_parts_left_out_leave_no_trace() -> None:
    assert str(DataError("bad")) == "bad"
    assert str(DataError("bad", found=0)) == "bad; found 0"
    assert str(DataError("bad", where="here", fix="that")) == "here: bad; try: that"


@pytest.mark.parametrize("name", CHILDREN)
def test_one_root(name: str) -> None:
    child = getattr(errors, f"{name}Error")
    assert child.__mro__[1] is OntogenyError


@given(st.text(), st.text(), st.text())
def test_always_one_line(problem: str, where: str, found: str) -> None:
    said = str(DataError(problem, where=where, found=found))
    assert len(said.splitlines()) <= 1
    for part in (problem, where, found):
        assert all(word in said for word in part.split())
