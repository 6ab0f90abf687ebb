"""Named normalisations of text, for corpora of many origins.

In: a text. Out: the text a suite trains on. `none` keeps every character. `nfc` composes letters
and marks, as Pythia's vocabulary does before it splits. `clean-1` also makes every line end `\\n`,
drops white space that ends a line or the text, byte order marks and control characters but tab,
line end and form feed. A name stands for one behaviour: another one gets another name. Characters
that the running Python does not know yet are left as they are.

The Pile's makers had ftfy at hand, which guesses wrongly decoded text; its guesses change with its
version, and it cannot be said what it did to a text. It is not used here. Not here: what makes two
texts equal (`dedup.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from ontogeny.text.dedup import normalised

_DROPPED = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff]")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _clean(text: str) -> str:
    return normalised(_DROPPED.sub("", text))


NORMALISATIONS: Mapping[str, Callable[[str], str]] = {"none": str, "nfc": _nfc, "clean-1": _clean}
