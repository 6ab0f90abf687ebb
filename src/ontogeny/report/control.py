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
from typing import Literal

from ontogeny.report.evidence import History

Verdict = Literal["equal", "different", "unproven"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rolling row digests of one corpus's members after equal numbers of tokens."""

    tokens: int
    digests: Mapping[str, str]  # by member

    @property
    def odd_members(self) -> list[str]:
        """The members that do not hold the commonest digest; the first of a tie counts as it."""
        commonest = Counter(self.digests.values()).most_common(1)[0][0]
        return [member for member, digest in self.digests.items() if digest != commonest]


def compare(histories: Sequence[History]) -> list[Comparison]:
    """The members of one corpus where all stood between two updates: first, 1/4, 1/2, last."""
    unit = lcm(*(history.run.tokens_per_update for history in histories))
    num_units = min(history.tokens for history in histories) // unit
    parts = (0, 1, 2, 4) if num_units else ()
    found = []
    for tokens in sorted({unit * max(1, num_units * part // 4) for part in parts}):
        digests = {}
        for history in histories:
            update = history.updates[tokens // history.run.tokens_per_update - 1]
            digests[history.member.name] = update.rows_digest
        found.append(Comparison(tokens, digests))
    return found


def finding(
    corpus: str, histories: Sequence[History], comparisons: Sequence[Comparison]
) -> tuple[Verdict, str]:
    """What the comparisons show, in a word and in one or two sentences."""
    num_members = len(histories)
    if num_members == 1:
        name = histories[0].member.name
        return "unproven", f"Only {name} grew on the {corpus} corpus: nothing to compare."
    if not comparisons:
        return "unproven", (
            f"The {num_members} members on the {corpus} corpus cannot be compared: there is no "
            "token count at which all of them stood between two updates."
        )
    unequal = [comparison for comparison in comparisons if comparison.odd_members]
    if unequal:
        first = unequal[0]
        return "different", (
            f"The members on the {corpus} corpus did NOT see the same rows: they differ at "
            f"{len(unequal)} of {len(comparisons)} token counts, first at {first.tokens:,} tokens, "
            f"where {', '.join(first.odd_members)} left the others."
        )
    last = comparisons[-1].tokens
    return "equal", (
        f"All {num_members} members on the {corpus} corpus agree at each of {len(comparisons)} "
        f"token counts: through their first {last:,} tokens they saw equal rows in equal order."
    )
