"""CIDEr-D of captions (Vedantam et al. 2015, section 3 and the -D variant of section 7), as COCO's server scores it.

For n = 1..4, a caption is a vector of n-gram counts weighted by how rare each n-gram is among the reference sets. The
score is the cosine with each reference, counts clipped to the reference's, damped by a Gaussian of the difference in
length (sigma 6), averaged over references and n, times 10.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Grams = Counter[tuple[str, ...]]
ORDERS, SIGMA = 4, 6.0


def cider_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score per picture, 0..10; their mean is the corpus score. Words are those of `caption_words`.

    `references`: one or more captions per picture; the rarity of n-grams is counted over all of them.
    """
    if len(hypotheses) != len(references) or not all(references):
        raise ValueError("CIDEr needs one hypothesis and at least one reference a picture")
    counted = [[ngrams(text) for text in texts] for texts in references]
    documents = Counter(gram for grams in counted for gram in set().union(*grams))
    logarithm = math.log(len(references))
    return [sum(_similarity(ngrams(text), grams, documents, logarithm) for grams in truth) / len(truth)
            for text, truth in zip(hypotheses, counted)]


def caption_words(text: str) -> list[str]:
    """Lower-case words without punctuation, which COCO's server drops: a full stop is no error.

    Nearly the words of its tokenizer (Penn Treebank): "man's" is two words, "black-and-white" one; but "don't" is
    "don" and "'t" here, "do" and "n't" there.
    """
    return re.findall(r"\w+(?:-\w+)*|(?<=\w)'\w+", text.lower())


def ngrams(text: str) -> Grams:
    """Counts of all n-grams up to order `ORDERS`."""
    words = caption_words(text)
    return Counter(tuple(words[i:i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


def _similarity(hypothesis: Grams, reference: Grams, documents: Counter, logarithm: float) -> float:
    total = 0.0
    for n in range(1, ORDERS + 1):
        a, b = (_weighted(grams, n, documents, logarithm) for grams in (hypothesis, reference))
        overlap = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
        norm = _norm(a) * _norm(b)
        total += overlap / norm if norm else 0.0
    return 10 * total / ORDERS * math.exp(-(_words(hypothesis) - _words(reference)) ** 2 / (2 * SIGMA ** 2))


def _weighted(grams: Grams, n: int, documents: Counter, logarithm: float) -> dict[tuple[str, ...], float]:
    return {gram: count * (logarithm - math.log(max(1, documents[gram])))
            for gram, count in grams.items() if len(gram) == n}


def _norm(weights: dict[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(weight ** 2 for weight in weights.values()))


def _words(grams: Grams) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)
