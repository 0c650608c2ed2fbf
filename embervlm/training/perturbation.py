"""Training tasks in altered words, for a teacher to judge: parts of tasks, joined parts, neighbouring words.

Unlike the rewordings of ``robot_rewording`` these need not mean what the task meant, so that its label does not hold;
they reach words and turns that no training task has (Jiao et al., TinyBERT, arXiv 1909.10351, section 3.2).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from embervlm.data.sample import RobotSample, normalise_task

#: How often a text keeps only some of its sentences; how often it takes in a sentence of another task; which shares of
#: its words are replaced, each as often.
PART_SHARE = 0.5
JOINED_SHARE = 0.15
REPLACED_SHARES = (0.0, 0.15, 0.3, 0.4)
#: Characters of the shortest text; the longest is that of the longest task, which is known to fit.
_SHORTEST = 16

_WORD = re.compile(r"[A-Za-z]{3,}")
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+")
#: Words that are not replaced: what they say is mostly grammar, negation, time and place.
_KEPT = frozenset(
    re.findall(
        "[a-z]+",
        """
        the and for that this with from have has are was were will would can could should our your his her their its not
        but you they she him them all any into out off over under about what when who how which than then there here
        been being did does just only also very more most some such each own same too don isn wasn one two without until
        while because before after between through
        """,
    )
)


def replaceable_words(samples: Sequence[RobotSample]) -> list[str]:
    """The words of the tasks that may be replaced, lower case, in alphabetical order."""
    words = {word.lower() for sample in samples for word in _WORD.findall(sample.task)}
    return sorted(words - _KEPT)


def perturbed_tasks(
    samples: Sequence[RobotSample], neighbours: Mapping[str, Sequence[str]], count: int, seed: int
) -> list[tuple[str, RobotSample]]:
    """Draw ``count`` distinct texts, each with the task that it was made of.

    Args:
        samples: the training tasks.
        neighbours: by word, lower case, those that may stand in its place.
        count: how many; fewer come back where the tasks do not give so many. None is longer than the longest task.
        seed: of the draw.
    """
    rng = random.Random(f"perturbation/{seed}")
    parts = [_SENTENCE_END.split(sample.task.strip()) for sample in samples]
    longest = max(len(sample.task) for sample in samples)
    made: dict[str, tuple[str, RobotSample]] = {}
    for _ in range(4 * count):
        if len(made) == count:
            break
        index = rng.randrange(len(samples))
        sentences = parts[index]
        if len(sentences) > 1 and rng.random() < PART_SHARE:
            kept = rng.randint(1, len(sentences) - 1)
            first = rng.randint(0, len(sentences) - kept)
            sentences = sentences[first : first + kept]
        if rng.random() < JOINED_SHARE:
            place = rng.randint(0, len(sentences))
            sentences = [*sentences[:place], rng.choice(rng.choice(parts)), *sentences[place:]]
        share = rng.choice(REPLACED_SHARES)

        def replaced(match: re.Match[str], share: float = share) -> str:
            word = match.group()
            others = neighbours.get(word.lower())
            if not others or rng.random() >= share:
                return word
            other = rng.choice(others)
            return other.capitalize() if word[0].isupper() else other

        text = _WORD.sub(replaced, " ".join(sentences))
        if _SHORTEST <= len(text) <= longest:
            made.setdefault(normalise_task(text), (text, samples[index]))
    return list(made.values())
