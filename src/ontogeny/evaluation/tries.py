"""Sequences laid out so that what they share is computed once: rows of tokens that are trees.

What a model has to read to score some sequences, all but their last tokens, forms a trie: options
of an item share its context, items may share a header. A row is such a trie with parents before
children, one branch after another, so that a token sees those before it whose subtree it lies in.
What all sequences of a call begin with is kept apart, as a past that is read once. Rows depend on
the sequences, not on the order they come in. Not here: arithmetic (`score.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

TOKENS_PER_BATCH = 2048  # read at once; more multiplies no faster, and pads attention more
TOKENS_PER_ROW = 1024  # of several sequences: attention grows with the square
NO_END = 2**31  # as long as a subtree is open
SHORTEST_PAST = 32  # tokens that all sequences share and that are worth reading beforehand


@dataclass(slots=True)
class Row:
    """Tokens of some sequences; those of the past are left out, and count in depths only.

    The subtree of token i ends before place `ends[i]`, that of the last path with the row. Of every
    token to score `scored` has the sequence's number, the place of the token before it, and itself.
    """

    past: int
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)  # to the last token, by places
    scored: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, number: int, sequence: Sequence[int], first: int, shared: int) -> None:
        """Add a sequence, scored from place `first` on; the path has its `shared` first tokens."""
        for place in self.path[shared - self.past :]:
            self.ends[place] = len(self.tokens)
        del self.path[shared - self.past :]
        for depth in range(shared, len(sequence) - 1):
            self.path.append(len(self.tokens))
            self.tokens.append(sequence[depth])
            self.depths.append(depth)
            self.ends.append(NO_END)
        places = self.path[first - 1 - self.past :]
        pairs = zip(places, sequence[first:], strict=True)
        self.scored += [(number, *pair) for pair in pairs]

    @property
    def stem(self) -> int:
        """How many tokens come before the first one that does not follow the one before it."""
        for place, depth in enumerate(self.depths):
            if depth != place + self.past:
                return place
        return len(self.depths)


def lay_out(
    sequences: Sequence[tuple[int, ...]], firsts: Sequence[int], width: int
) -> tuple[tuple[int, ...], list[Row]]:
    """The past of all sequences, and their rows, longest first, for a model of a width.

    Sequence i is scored from place `firsts[i]` on. It joins the row of its neighbour in sorted
    order where that saves more in products than it costs in attention.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    past = _past([sequences[number] for number in order], min(firsts, default=1) - 1)
    rows: list[Row] = []
    before: tuple[int, ...] = ()
    for number in order:
        inputs = sequences[number][:-1]
        shared = common(before, inputs)
        if not rows or not _joins(rows[-1], shared, len(inputs), width):
            rows.append(Row(len(past)))
            shared = len(past)
        rows[-1].add(number, sequences[number], firsts[number], shared)
        before = inputs
    rows.sort(key=lambda row: -len(row.tokens))  # stable: otherwise by their tokens
    return past, rows


def batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows of near length, up to the tokens a batch may hold."""
    start, tokens = 0, 0
    for stop, row in enumerate(rows):
        if stop > start and tokens + len(row.tokens) > TOKENS_PER_BATCH:
            yield rows[start:stop]
            start, tokens = stop, 0
        tokens += len(row.tokens)
    if rows:
        yield rows[start:]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike, by halves: slices compare fast."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _past(ordered: Sequence[tuple[int, ...]], limit: int) -> tuple[int, ...]:
    """What all sorted sequences begin with, up to a limit, if that is long and saves anything."""
    if not ordered:
        return ()
    first, last = ordered[0][:-1], ordered[-1][:-1]  # the rest lies between
    length = min(common(first, last), limit)
    return first[:length] if length >= SHORTEST_PAST and first != last else ()


def _joins(row: Row, shared: int, length: int, width: int) -> bool:
    """Whether inputs of a length, that share so many with the last ones, are best added to a row.

    A block's products cost 24 W^2 operations a token, attention 4 W a pair of tokens in a row, by
    slower code.
    """
    shared, length, size = shared - row.past, length - row.past, len(row.tokens)
    both = size + length - shared
    pairs = both**2 - size**2 - length**2
    return both == size or (both <= TOKENS_PER_ROW and 2 * shared * width >= pairs)
