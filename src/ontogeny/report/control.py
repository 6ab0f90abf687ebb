"""The proof of control: did the members of one corpus see the same rows in the same order?

The rolling digest a run logs depends on every row so far, so two runs that agree on it at equal
tokens saw equal rows. Here the digests are compared and the finding is put in words that follow
from the comparison. Not here: how a digest rolls (the order's room says so).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm

from ontogeny.report.evidence import History


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rolling row digests of one corpus's members after equal numbers of tokens."""

    tokens: int
    digests: Mapping[str, str]  # by member

    @property
    def is_equal(self) -> bool:
        return len(set(self.digests.values())) == 1

    @property
    def odd_members(self) -> list[str]:
        """The members that do not hold the commonest digest; the first of a tie counts as it."""
        commonest = Counter(self.digests.values()).most_common(1)[0][0]
        return [member for member, digest in self.digests.items() if digest != commonest]


def common_tokens(histories: Sequence[History]) -> list[int]:
    """Token counts that every member passed between two updates: the first, 1/4, 1/2, the last."""
    unit = lcm(*(history.run.tokens_per_update for history in histories))
    num_units = min(history.tokens for history in histories) // unit
    if num_units == 0:
        return []
    return sorted({unit * max(1, num_units * part // 4) for part in (0, 1, 2, 4)})


def compare(histories: Sequence[History]) -> list[Comparison]:
    """The comparisons of the members of one corpus at their common token counts."""
    return [
        Comparison(
            tokens, {history.member.name: _digest_at(history, tokens) for history in histories}
        )
        for tokens in common_tokens(histories)
    ]


def statement(corpus: str, histories: Sequence[History], comparisons: Sequence[Comparison]) -> str:
    """What the comparisons show, in one or two sentences."""
    num_members = len(histories)
    if num_members == 1:
        return f"Only {histories[0].member.name} grew on the {corpus} corpus: nothing to compare."
    if not comparisons:
        return (
            f"The {num_members} members on the {corpus} corpus cannot be compared: there is no "
            "token count at which all of them stood between two updates."
        )
    unequal = [comparison for comparison in comparisons if not comparison.is_equal]
    if unequal:
        first = unequal[0]
        return (
            f"The members on the {corpus} corpus did NOT see the same rows: they differ at "
            f"{len(unequal)} of {len(comparisons)} token counts, first at {first.tokens:,} tokens, "
            f"where {', '.join(first.odd_members)} left the others."
        )
    last = comparisons[-1].tokens
    return (
        f"All {num_members} members on the {corpus} corpus agree at each of {len(comparisons)} "
        f"token counts: through their first {last:,} tokens they saw equal rows in equal order."
    )


def _digest_at(history: History, tokens: int) -> str:
    return history.updates[tokens // history.run.tokens_per_update - 1].rows_digest
