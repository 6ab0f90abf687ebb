"""The longest strings of a text that a run saw.

What is inside a string that was seen was seen too. So from every token on the longest string is
looked for, beginning where the last one ended; a string that ends there too is part of that one.
After OLMoTrace (https://arxiv.org/abs/2504.07096), with the updates that saw each. Not here: text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ontogeny.errors import ConfigError
from ontogeny.order.seen import History, Sighting


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of a text from `start` to `stop`, and when they were seen."""

    start: int
    stop: int
    sighting: Sighting


def trace(
    history: History, tokens: Sequence[int], *, least: int, before: int | None = None
) -> list[Span]:
    """The strings of a text that were seen before a step and are inside of no longer such string.

    Of `least` tokens or more, in the order of the text.
    """
    if least < 1:
        raise ConfigError("a span needs a token", expected="1 or more", found=least)
    spans, reached = [], 0
    for start in range(len(tokens) - least + 1):
        if reached == len(tokens):
            break
        stop = max(reached, start + least)
        if stop > reached and not history.has(tokens[start:stop], before):
            continue
        stop = _longest(history, tokens, start, stop, before)
        if stop > reached:
            spans.append(Span(start, stop, history.sighting(tokens[start:stop], before)))
            reached = stop
    return spans


def _longest(
    history: History, tokens: Sequence[int], start: int, stop: int, before: int | None
) -> int:
    """Where the longest string from `start` on ends that was seen, as that up to `stop` was.

    Tries twice as much further each time, then halves the steps again.
    """
    step = 1
    while stop + step <= len(tokens) and history.has(tokens[start : stop + step], before):
        stop, step = stop + step, 2 * step
    while step > 1:
        step //= 2
        if stop + step <= len(tokens) and history.has(tokens[start : stop + step], before):
            stop += step
    return stop
