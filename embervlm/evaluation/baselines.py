"""Baselines: what simple methods reach that read the task's text alone, trained on the tasks that a model had.

Each is a function from training tasks and tasks to answer to ``Predictions``, which are then measured like a model's.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embervlm.data.sample import RobotSample
from embervlm.evaluation import sentence_encoder
from embervlm.evaluation.folds import folds
from embervlm.evaluation.metrics import exact_set, leader_accuracy, leader_shares
from embervlm.evaluation.predictions import Predictions
from embervlm.evaluation.sentence_encoder import mean_states, minilm_folder
from embervlm.fleet import Fleet

Numbers = NDArray[np.float64]
#: From training tasks and task texts to answers over a fleet.
Baseline = Callable[[Sequence[RobotSample], Sequence[str], Fleet], Predictions]
#: From training texts and further texts to the features of both.
Features = Callable[[Sequence[str], Sequence[str]], tuple[Any, Any]]

MAJORITY = "majority"
KEY_WORDS = "key words"
N_GRAMS = "n-grams + logistic regression"
MINILM = "MiniLM + logistic regression"

#: Of the n-grams' regressions; sentence embeddings have theirs chosen, see `_regression`.
N_GRAM_C = 30.0
EMBEDDING_CS = (1.0, 3.0, 10.0, 30.0, 100.0)
#: What all-MiniLM-L6-v2 reads of a text.
MINILM_TOKENS = 256
#: Settings are chosen on so many held-out training tasks, or on all of them.
JUDGED_TASKS = 400

#: For words of a fleet's descriptions, words of tasks that speak of the same. Written down before anything was
#: measured, and not changed since.
SYNONYMS = {
    "aerial": "air above overhead sky fly flight roof rooftop tower height bird tree chimney mast turbine",
    "surveillance": "survey watch monitor scan search spot patrol film photograph map",
    "fastest": "urgent quick hurry immediately fast",
    "lightweight": "light small parcel packet",
    "underwater": "dive diving submerged seabed sunken sink hull wreck reef below depth",
    "marine": "sea ship boat harbour harbor fish coral dock",
    "ocean": "sea seabed",
    "water": "lake river pond tank reservoir",
    "pools": "pool basin",
    "pipes": "pipe pipeline sewer drain",
    "manipulation": "grasp hold open close turn press pour assemble button switch door fold",
    "interaction": "guest visitor patient child talk greet help explain elderly",
    "human": "person people kitchen office bedroom hospital school",
    "tool": "screwdriver hammer wrench drill knife repair fix screw bolt",
    "stairs": "stair staircase steps floor upstairs",
    "payload": "heavy load cargo pallet crate haul kilo tonne",
    "roads": "road street pavement asphalt",
    "warehouse": "aisle shelf storage depot factory",
    "flat": "smooth paved level hall corridor",
    "rough": "rocky rubble debris mud steep gravel boulder",
    "terrain": "hill slope mountain forest trail ground path",
    "rescue": "collapsed earthquake missing survivor avalanche",
    "carrying": "carry bring",
}
_COMMON_WORDS = frozenset(
    ("a", "and", "area", "areas", "for", "good", "large", "of", "robot", "search", "to", "use", "with")
)


def majority(train: Sequence[RobotSample], tasks: Sequence[str], fleet: Fleet) -> Predictions:
    """The robot that leads most training tasks, alone, whatever is asked."""
    leading = leader_shares(train, fleet).mean(0)
    best = fleet.names[int(leading.argmax())]
    return Predictions(fleet.names, np.tile(leading, (len(tasks), 1)), [[best] for _ in tasks])


def key_words(train: Sequence[RobotSample], tasks: Sequence[str], fleet: Fleet) -> Predictions:
    """A rule: the robot whose description, with ``SYNONYMS``, shares most words with the task; those even with it too.

    Nothing is learnt. A confidence is the robot's share of the words found, one added to each.
    """
    vocabularies = []
    for robot in fleet:
        phrases = " ".join([robot.name, *robot.capabilities, *robot.environments])
        words = set(re.findall(r"\w+", phrases.casefold())) - _COMMON_WORDS
        synonyms = {other for word in words for other in SYNONYMS.get(word, "").split()}
        vocabularies.append({_stem(word) for word in words | synonyms})
    found = [{_stem(word) for word in re.findall(r"\w+", task.casefold())} for task in tasks]
    counts = np.array([[len(words & vocabulary) for vocabulary in vocabularies] for words in found], dtype=np.float64)
    leading = (counts + 1) / (counts + 1).sum(1, keepdims=True)
    # Without a single word found there is no reason to send everybody.
    members = (counts == counts.max(1, keepdims=True)) & (counts > 0)
    return Predictions(fleet.names, leading, _selected(leading, members.astype(np.float64), 0.5, fleet))


def n_grams(train: Sequence[RobotSample], tasks: Sequence[str], fleet: Fleet) -> Predictions:
    """TF-IDF of words and pairs of words, and of 2 to 5 letters within words; logistic regression on both."""
    return _regression(_n_gram_features, (N_GRAM_C,), train, tasks, fleet)


class MiniLM:
    """Sentence embeddings of a pretrained transformer (all-MiniLM-L6-v2) and logistic regression.

    As its card says: the mean over the tokens' last states, normalised to length 1. Each text is embedded once.
    """

    def __init__(self) -> None:
        folder = minilm_folder()
        if folder is None:
            raise ModuleNotFoundError(f"{sentence_encoder.MINILM_PACKAGE} is not installed")
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self._known: dict[str, Numbers] = {}

    @staticmethod
    def is_installed() -> bool:
        """Whether the package with the weights is there."""
        return minilm_folder() is not None

    def __call__(self, train: Sequence[RobotSample], tasks: Sequence[str], fleet: Fleet) -> Predictions:
        """The answers of a regression on the embeddings."""
        return _regression(lambda a, b: (self.embed(a), self.embed(b)), EMBEDDING_CS, train, tasks, fleet)

    def embed(self, texts: Sequence[str]) -> Numbers:
        """The embeddings of texts, (texts, 384), of length 1."""
        import torch

        # Those of like length together: less padding.
        new = sorted({text for text in texts if text not in self._known}, key=len)
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            with torch.inference_mode():
                states = mean_states(self._model, self._tokenizer, part, MINILM_TOKENS)  # (texts, 384)
                vectors = torch.nn.functional.normalize(states, dim=-1)
            self._known.update(zip(part, vectors.double().numpy(), strict=True))
        return np.stack([self._known[text] for text in texts])


def available() -> tuple[dict[str, Baseline], list[str]]:
    """The baselines by name, and a line for each that cannot run here."""
    found: dict[str, Baseline] = {MAJORITY: majority, KEY_WORDS: key_words}
    missing = []
    learns = importlib.util.find_spec("sklearn") is not None
    if learns:
        found[N_GRAMS] = n_grams
    else:
        missing.append(f"{N_GRAMS}: not measured without scikit-learn; pip install 'embervlm[evaluate]' brings it")
    if learns and MiniLM.is_installed():
        found[MINILM] = MiniLM()
    else:
        package = sentence_encoder.MINILM_PACKAGE.replace("_", "-")
        missing.append(f"{MINILM}: not measured without {package}; pip install 'embervlm[evaluate,teacher]' brings it")
    return found, missing


def _n_gram_features(train: Sequence[str], tasks: Sequence[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # What occurs once says little; in a handful of texts nearly everything does.
    rarest = 2 if len(train) >= 100 else 1
    union = FeatureUnion(
        [
            # The pattern keeps words of one letter, so that a text of nothing else is no error.
            (
                "words",
                TfidfVectorizer(ngram_range=(1, 2), min_df=rarest, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
            ),
            ("letters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=rarest, sublinear_tf=True)),
        ]
    )
    return union.fit_transform(train), union.transform(tasks)


def _regression(
    features: Features, cs: Sequence[float], train: Sequence[RobotSample], tasks: Sequence[str], fleet: Fleet
) -> Predictions:
    """Logistic regression for the leader, and one for each robot's going along.

    The inverse regularisation (of ``cs``, by leader accuracy) and the threshold of going along (by exact sets) are
    chosen on tenths of the training tasks that were held out for it: as many tenths as make ``JUDGED_TASKS`` tasks.
    """
    parts = folds(train, 10, 0) if len(train) >= 20 else []
    judged: list[int] = []
    outputs: dict[float, list[tuple[Numbers, Numbers]]] = {c: [] for c in cs}
    for part in parts:
        if len(judged) >= JUDGED_TASKS:
            break
        held_out = set(part)
        fitted = [sample for place, sample in enumerate(train) if place not in held_out]
        known, asked = features([sample.task for sample in fitted], [train[place].task for place in part])
        for c in cs:
            outputs[c].append(_fit(known, fitted, asked, c, fleet))
        judged += part
    best_c, threshold = cs[len(cs) // 2], 0.5
    if judged:
        samples = [train[place] for place in judged]
        leaders, expected = [s.leaders for s in samples], [s.selected for s in samples]
        joined = {c: _joined(outputs[c]) for c in cs}
        best_c = max(cs, key=lambda c: leader_accuracy([fleet.names[i] for i in joined[c][0].argmax(1)], leaders))
        best = joined[best_c]
        # Ties go to the threshold nearest to a half.
        thresholds = sorted((step / 20 for step in range(2, 19)), key=lambda candidate: abs(candidate - 0.5))
        threshold = max(thresholds, key=lambda each: exact_set(_selected(*best, each, fleet), expected))
    known, asked = features([sample.task for sample in train], tasks)
    leading, members = _fit(known, train, asked, best_c, fleet)
    return Predictions(fleet.names, leading, _selected(leading, members, threshold, fleet))


def _joined(parts: Sequence[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    leading, members = zip(*parts, strict=True)
    return np.concatenate(leading), np.concatenate(members)


def _fit(known: Any, train: Sequence[RobotSample], asked: Any, c: float, fleet: Fleet) -> tuple[Numbers, Numbers]:
    """The probabilities of leading and of going along, each (tasks, robots)."""
    from sklearn.linear_model import LogisticRegression

    shares = leader_shares(train, fleet)
    rows, classes = shares.nonzero()
    leading = np.zeros((asked.shape[0], len(fleet)))
    if len(set(classes)) == 1:
        leading[:, classes[0]] = 1.0
    else:
        # A task that several may lead stands there once for each, with its share as weight.
        model = LogisticRegression(C=c, max_iter=1000).fit(known[rows], classes, sample_weight=shares[rows, classes])
        leading[:, model.classes_] = model.predict_proba(asked)
    members = np.zeros_like(leading)
    for place, name in enumerate(fleet.names):
        goes = np.array([name in sample.selected for sample in train])
        if goes.all() or not goes.any():
            members[:, place] = float(goes[0])
        else:
            binary = LogisticRegression(C=c, solver="liblinear", max_iter=1000).fit(known, goes)
            members[:, place] = binary.predict_proba(asked)[:, 1]
    return leading, members


def _selected(leading: Numbers, members: Numbers, threshold: float, fleet: Fleet) -> list[list[str]]:
    """The leader, and behind it those whose probability of going along reaches the threshold, likeliest first."""
    selected = []
    for row, going in zip(leading, members, strict=True):
        leader = int(row.argmax())
        others = [i for i in np.argsort(-row, kind="stable") if i != leader and going[i] >= threshold]
        selected.append([fleet.names[i] for i in (leader, *others)])
    return selected


def _stem(word: str) -> str:
    """A word without its commonest endings: ``inspecting``, ``inspects`` and ``inspection`` become ``inspect``."""
    for ending in ("ation", "ing", "ion", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
