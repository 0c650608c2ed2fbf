"""Training tasks said in other words: what ``robot_loader`` adds to an epoch beside each task as it is written.

A rewording is a function of seed and text alone. It changes the manner (courteous, as an order, radio-terse), swaps a
few synonyms, moves a clause, writes contractions out; it never touches negations, numbers, names or words of place,
which is checked for each. With seed 0, ``Survey coastal cliffs for signs of erosion after a storm.`` gives first::

    Can you survey coastal cliffs for any signs of erosion after a storm?
    New job: survey coastal cliffs for any signs of erosion after a storm.
    After a storm, survey coastal cliffs for any signs of erosion.
    You are asked to survey coastal cliffs for any signs of erosion after a storm.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from embervlm.data.robot_fields import MAX_TASK_CHARACTERS
from embervlm.data.sample import RobotSample, normalise_task

#: How often a training task stands in an epoch unless the run says otherwise, and how often at most.
DEFAULT_VARIANTS = 3
MAX_VARIANTS = 10
#: What stands between a task's id and a rewording's number.
REWORDED = ", reworded "

_ATTEMPTS = 60


def is_reworded(sample: RobotSample) -> bool:
    """Whether a sample is a rewording and not as its file has it."""
    return REWORDED in sample.id


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Verbs that begin an order. Those of the second set are nouns or adjectives as often; see _is_order.
_VERBS = _words(
    """
    accompany add adjust administer align analyse analyze apply approach arrange ascend assemble assess assist
    attach attend avoid bring build bury calibrate capture carry catch choose clear climb collect compare conduct
    confirm connect construct count cross cut deliver descend detach detect determine dig disconnect dispose dive
    document drain drive dry empty enter ensure erect escort establish evaluate evacuate examine excavate exchange
    explore extinguish feed fetch fill find fit fix fly follow gather get give go grab guide hand harvest haul
    help hoist hold identify insert inspect install investigate keep lay lead let lift listen load locate loosen
    lower make map mark measure mend mount move navigate observe obtain open operate paint perform pick pilot
    place plug position prepare press prevent prune pull push put raise read record recover relocate remove repair
    repaint replace replant rescue restock retrieve return rinse roll run scan scrape scrub seal search secure
    seek send serve set shut sort sow spread stack stay stop supply swap sweep swim take tell throw tie tighten
    tow transfer transport traverse trim unload unlock unscrew use vacuum verify visit wade walk warn wash wipe
    allow be break disturb drag drop forget frighten interrupt leave step touch try wait wake
    """
)
_NOUN_VERBS = _words(
    """
    beam check clean close cover film guard heat iron light log look mail monitor mow order pack pass patrol
    photograph plant plough pump report rush sample screw shelve shovel show sketch spray stock study survey sweep
    target test track trawl turn warm watch water weigh weld release free provide
    """
)
_FOLLOWERS = _words(
    """
    a an the this that these those all any every each both some my your his her its our their it them him us me up
    down for at in on into onto through across over under around along after before by to from with out off back
    whether if how what where which who
    """
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|does|did|will|would|must|may|might|seems?|looks?|keeps?|isn['’]t|aren['’]t"
    r"|wasn['’]t|won['’]t|can['’]t|cannot|needs?)\b"
)
_ORDER_START = re.compile(
    r"(?P<adverb>(?:first|then|next|now|carefully|safely|slowly|quickly|immediately|urgently),? )?"
    r"(?P<negation>(?:do not|don['’]t|never) )?(?P<verb>[a-z]+)\b(?: (?P<follower>[a-z]+))?",
    re.IGNORECASE,
)

# How tasks are often introduced; what is left behind is the order itself.
_OPENINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:please|kindly),? (.+)",
        r"(?:can|could|would|will) (?:you|somebody|someone) (?:please |kindly )?(.+)",
        r"(?:we|i) (?:need|want|would like) (?:you|somebody|someone) to (.+)",
        r"(?:your|the|the next) (?:job|task|mission) is to (.+)",
        r"(?:somebody|someone|you) (?:has|have|needs?) to (.+)",
        r"it is (?:time|necessary) to (.+)",
    )
)
_PLEASE_AT_END = re.compile(r",? please$", re.IGNORECASE)

# {c} and {C}: the order, small and with a capital; {t} and {T}: the same without articles.
_POLITE = (
    "Please {c}.",
    "Could you please {c}?",
    "Can you {c}?",
    "Would you {c}, please?",
    "Kindly {c}.",
    "I would like you to {c}.",
    "{C}. Thank you.",
)
_ORDERS = (
    "We need you to {c}.",
    "Your task is to {c}.",
    "Your job is to {c}.",
    "Somebody has to {c}.",
    "We need someone to {c}.",
    "It is necessary to {c}.",
    "The next task is to {c}.",
    "You are asked to {c}.",
)
_TERSE = ("Tasking: {t}.", "Request: {t}.", "Order: {t}.", "{T}. How copy?", "{T}. Please confirm.", "New job: {t}.")
_PRIORITY = ("Priority task: {c}.", "Important: {c}.", "High priority: {c}.", "{C}. This has priority.")
_PLAIN = ("{C}.",)
# Those that suit an order that forbids something, and one that is long or has several parts.
_FOR_BANS = frozenset({"Please {c}.", "Important: {c}.", "{C}. Thank you.", "Tasking: {t}.", "Order: {t}.", "{C}."})
_NOT_FOR_PARTS = frozenset({"Could you please {c}?", "Can you {c}?", "Would you {c}, please?"})
# Those that read well behind a purpose or a time that has been moved to the front.
_BEHIND_A_CLAUSE = frozenset({"{C}.", "Please {c}.", "We need you to {c}.", "We need someone to {c}."})
_LONG = 90
# For texts that are no order: a statement, a question, a cry for help.
_BEFORE_TEXT = ("New task: {}", "Request: {}", "For your attention: {}", "Incoming request: {}", "Here is the job: {}")
_AFTER_TEXT = ("{} Please take care of this.", "{} Please see to it.", "{} Thank you.", "{} Please handle this.")
_RADIO_END = re.compile(r"\b(?:over|out|copy|roger)[.!?]*$", re.IGNORECASE)

# What the order's verb may be swapped for, by the order's beginning.
_VERB_SWAPS = tuple(
    (re.compile(rf"^{pattern}"), words)
    for pattern, words in (
        (r"inspect (?!for\b|and\b)", "examine "),
        (r"examine (?!for\b|and\b)", "inspect "),
        (r"investigate (?=an? |the )", "examine "),
        (r"check (?=the |this |these |an? )", "examine "),
        (r"check for (?=any |signs |damage\b|leaks\b|cracks\b|obstructions\b)", "look for "),
        (r"look for ", "search for "),
        (r"search for ", "look for "),
        (r"perform ", "conduct "),
        (r"conduct ", "perform "),
        (r"assess ", "evaluate "),
        (r"evaluate ", "assess "),
        (r"analyze ", "analyse "),
        (r"analyse ", "analyze "),
        (r"collect ", "gather "),
        (r"gather ", "collect "),
        (r"traverse ", "cross "),
        (r"repair ", "fix "),
        (r"(?:fix|mend) ", "repair "),
        (r"locate ", "find "),
        (r"find (?!out\b)", "locate "),
        (r"escort ", "accompany "),
        (r"accompany ", "escort "),
        (r"take pictures of ", "photograph "),
    )
)
_SWAPS = tuple(
    (re.compile(rf"\b{pattern}"), words)
    for pattern, words in (
        (r"for any signs of\b", "for signs of"),
        (r"for signs of\b", "for any signs of"),
        (r"for any (?=\w+s\b)(?!signs\b)", "for "),
        (r"potential (?=\w)", "possible "),
        (r"large (?=[a-z])", "big "),
        (r"entire\b", "whole"),
        (r"the whole (?=[a-z])", "the entire "),
        (r"in order to\b", "to"),
        (r"to assess\b", "to evaluate"),
        (r"to evaluate\b", "to assess"),
        (r"at once\b", "immediately"),
        (r"right away\b", "at once"),
        (r"immediately\b", "at once"),
        (r"as fast as possible\b", "as quickly as possible"),
        (r"anybody\b", "anyone"),
        (r"anyone\b", "anybody"),
    )
)
_NEGATED = "do|does|did|is|are|was|were|has|have|had|would|should|could|must"
_WRITE_OUT = (
    (re.compile(r"\b([Cc])an['’]t\b"), r"\1annot"),
    (re.compile(r"\b([Ww])on['’]t\b"), r"\1ill not"),
    (re.compile(rf"\b({_NEGATED})n['’]t\b", re.IGNORECASE), r"\1 not"),
    (re.compile(r"\b([Ww]e|[Yy]ou|[Tt]hey)['’](re|ve|ll)\b"), r"\1 \2"),
    (re.compile(r"\bI['’](ve|ll)\b"), r"I \1"),
    (re.compile(r"\bI['’]m\b"), "I am"),
)
_WRITTEN_OUT = {" re": " are", " ve": " have", " ll": " will"}
_CONTRACT = (
    (re.compile(r"\b([Cc])annot\b"), r"\1an't"),
    (re.compile(rf"\b({_NEGATED}) not\b", re.IGNORECASE), r"\1n't"),
    (re.compile(r"\b([Ww])ill not\b"), r"\1on't"),
)

# Clauses that can stand at either end of an order: a purpose, and a time or condition.
_PURPOSE_VERBS = (
    "assess|assist|check|collect|deliver|detect|determine|ensure|enhance|evaluate|find|gather|identify|improve|inspect"
    "|locate|maintain|map|measure|monitor|optimize|predict|prevent|provide|reach|rescue|restore|retrieve|search|track|update"
)
_PURPOSE_AT_END = re.compile(rf"(?P<main>.+?) (?:in order )?to (?P<clause>(?:{_PURPOSE_VERBS}) \S+ .*\S|reach \S+.*)")
_PURPOSE_FIRST = re.compile(
    rf"(?:in order )?to (?P<clause>(?:{_PURPOSE_VERBS}) [^,;:]+), (?P<main>[^,;:]+)", re.IGNORECASE
)
_TIME_AT_END = re.compile(r"(?P<main>.+) (?P<clause>(?:after|before) .+)")
_TIME_FIRST = re.compile(
    r"(?P<clause>(?:after|before|during|once|when|if|as soon as|while) [^,;:]+), (?P<main>[^,;:]+)", re.IGNORECASE
)
# Verbs whose purpose or time may be moved without a change of meaning, and words that a moved clause might lean on.
_MOVABLE = _words(
    """
    analyze ascend assess capture carry check climb collect conduct cross descend dive drive examine explore fly
    gather inspect investigate monitor move navigate observe perform scan search survey swim transport traverse
    use walk
    """
)
_LEANING = re.compile(
    r"\b(?:it|its|they|them|their|he|him|his|she|her|there|one|ones|this|these|those|that|which|who|whose|where|whether|how"
    r"|what|why|if|when|then|because|until|so|not|no|never|without|unless|but|able|needs?|ready|prone|ways?|[a-z]+n['’]t)\b",
    re.IGNORECASE,
)
_LEANING_TIME = re.compile(r"\b(?:soon|just|shortly|long|right|days?|hours?|minutes?|to|from)$", re.IGNORECASE)

# Articles that terse speech drops: not behind a preposition, and not where they carry meaning.
_PREPOSITIONS = _words(
    """
    about above across after against along among around as at before behind below beneath beside between beyond by
    during for from in inside into near of off on onto out outside over past through throughout to toward towards
    under underneath until up upon with within without all both half what such than quite and or
    """
)
_NEEDS_ARTICLE = _words(
    """
    few little lot bit number couple pair hundred thousand million dozen half quarter third single second minute
    one ones other others same rest first next last only more most less least way only very piece load
    """
)

# What a rewording must keep as often as the text has it.
_KEPT = _words(
    """
    not no never none nobody nothing nowhere neither nor without except unless only avoid cannot zero one two
    three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half dozen twice first
    second third last every all each both some few many several above across against along alongside amid among
    around at atop away behind below beneath beside between beyond bottom by down downstairs east forward from
    front high higher highest in indoors inside into low lower lowest near nearby north off on onto opposite out
    outdoors outside over overhead past side south through throughout top toward towards under underground
    underneath underwater up upstairs upper west with within air ground sky sea before after while until during
    once when if then meanwhile because
    """
)
_SAME_MEANING = (
    (re.compile(r"\bin order to\b"), "to"),
    (re.compile(r"\b(?:at once|right away)\b"), "immediately"),
    (re.compile(r"\bcannot\b|\bcan['’]t\b"), "can not"),
    (re.compile(r"\bwon['’]t\b"), "will not"),
    (re.compile(r"n['’]t\b"), " not"),
)
_ABBREVIATIONS = re.compile(r"\b(?:dr|mr|mrs|ms|prof|st|no|nr|approx|e\.g|i\.e|vs|etc|max|min|ca)\.$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Parts:
    """A task taken apart.

    Attributes:
        order: the first sentence as an order without its introduction, beginning small; empty where it is none.
        verb: the order's verb.
        ban: whether the order forbids something.
        rest: the sentences behind the first, as they are.
        text: the whole text, where there is no order.
    """

    order: str
    verb: str
    ban: bool
    rest: str
    text: str


def add_rewordings(
    samples: Sequence[RobotSample], held_out: Collection[str], *, variants: int, seed: int
) -> list[RobotSample]:
    """Training tasks, each followed by its rewordings; label, plan, picture and grounds are the task's own.

    A wording that some task has already, or that is held out, is passed over for the next one, so that a task may get
    fewer. Tasks of one text get the same wordings.

    Args:
        samples: the tasks to train on.
        held_out: normalised texts that must not come out.
        variants: how often each task is to stand in the result; 1 gives the tasks as they are.
        seed: of the wording.

    Returns:
        the tasks and their rewordings, which are called ``<id>, reworded 1`` and so on.
    """
    written = {normalise_task(sample.task): sample.task for sample in reversed(samples)}
    taken = {*written, *held_out}
    wordings: dict[str, list[str]] = {}
    # In the order of the texts, so that who gets a wording that two could have does not depend on the files' order.
    for key in sorted(written):
        chosen: list[str] = []
        for wording in rewordings(written[key], seed) if variants > 1 else ():
            if normalise_task(wording) not in taken:
                taken.add(normalise_task(wording))
                chosen.append(wording)
            if len(chosen) == variants - 1:
                break
        wordings[key] = chosen
    result = []
    for sample in samples:
        result.append(sample)
        for number, wording in enumerate(wordings[normalise_task(sample.task)], 1):
            result.append(replace(sample, id=f"{sample.id}{REWORDED}{number}", task=wording))
    return result


def rewordings(task: str, seed: int) -> Iterator[str]:
    """Other wordings of a task in seeded order, no two of the same normalised text and none of the task's own.

    There are none for texts that are not mainly in Latin letters, and none that are too long for a task.
    """
    task = " ".join(task.split())
    letters = [character for character in task if character.isalpha()]
    if sum(character < "\u0250" for character in letters) <= len(letters) / 2:
        return
    rng = random.Random(f"{seed}/{task}")
    parts, kept, seen = _take_apart(task), _kept(task), {normalise_task(task)}
    manners: list[Sequence[str]] = []
    for _ in range(_ATTEMPTS):
        if not manners:
            manners = [_POLITE, _ORDERS, _TERSE, _PLAIN, _PRIORITY] if parts.order else [_BEFORE_TEXT, _AFTER_TEXT]
            rng.shuffle(manners)
        manner = manners.pop()
        wording = _order_in(parts, manner, rng) if parts.order else _text_in(parts, manner, rng)
        key = normalise_task(wording)
        if key not in seen and _kept(wording) == kept and len(wording) <= MAX_TASK_CHARACTERS:
            seen.add(key)
            yield wording


def _take_apart(task: str) -> _Parts:
    first, rest = _first_sentence(task)
    sentence = first.rstrip(" .!?")
    order = sentence
    for opening in _OPENINGS:
        match = opening.fullmatch(order)
        if match:
            order = _PLEASE_AT_END.sub("", match.group(1))
            break
    else:
        order = _PLEASE_AT_END.sub("", order)
    order = _with_clause_last(order)
    start = _ORDER_START.match(order)
    if start is None or not _is_order(order, start):
        return _Parts("", "", False, "", task)
    return _Parts(order[0].lower() + order[1:], start["verb"].lower(), start["negation"] is not None, rest, "")


def _with_clause_last(sentence: str) -> str:
    """A sentence that begins with a purpose or a time, with that at its end, where nothing in it leans on the order."""
    match = _PURPOSE_FIRST.fullmatch(sentence) or _TIME_FIRST.fullmatch(sentence)
    if match is None or _LEANING.search(match["main"]):
        return sentence
    start = _ORDER_START.match(match["main"])
    if start is None or start["negation"] or start["verb"].lower() not in _MOVABLE:
        return sentence
    introduction = "to " if match.re is _PURPOSE_FIRST else ""
    return f"{match['main']} {introduction}{match['clause'][0].lower()}{match['clause'][1:]}"


def _first_sentence(task: str) -> tuple[str, str]:
    for end in re.finditer(r"[.!?]+ (?=[\"'“A-Z0-9])", task):
        if not _ABBREVIATIONS.search(task[: end.end() - 1]):
            return task[: end.end() - 1], task[end.end() :]
    return task, ""


def _is_order(text: str, start: re.Match[str]) -> bool:
    verb, follower = start["verb"].lower(), (start["follower"] or "").lower()
    if verb in _VERBS:
        return True
    if verb not in _NOUN_VERBS:
        return False
    return start["negation"] is not None or follower in _FOLLOWERS or not _FINITE.search(text)


def _order_in(parts: _Parts, manner: Sequence[str], rng: random.Random) -> str:
    order, introduction = parts.order, ""
    several = any(sign in order for sign in ";:?") or len(order) > _LONG
    frames = [
        frame for frame in manner if (not parts.ban or frame in _FOR_BANS) and not (several and frame in _NOT_FOR_PARTS)
    ] or list(_PLAIN)
    frame = rng.choice(frames)
    moved = _moved(parts) if frame in _BEHIND_A_CLAUSE and rng.random() < 0.75 else None
    if moved is not None:
        introduction, order = moved
    order = _swapped(order, (*_VERB_SWAPS, *_SWAPS), rng)
    order = _contracted(order, rng)
    terse = _without_articles(order) if frame in _TERSE else order
    frame, dot, closing = frame.partition(". ")
    text = frame.format(c=order, C=_capital(order), t=terse, T=_capital(terse)) + dot.strip()
    if introduction:
        text = f"{_capital(introduction)}, {text[0].lower()}{text[1:]}"
    behind = " ".join(part for part in (_ended(parts.rest), closing) if part)
    if behind:
        return f"{text} {behind}"
    if manner is _PRIORITY and rng.random() < 0.4:
        return f"{text.removesuffix('.')}!"
    if manner in (_TERSE, _PLAIN) and not introduction and rng.random() < 0.3:
        return f"{text[0].lower()}{text[1:].removesuffix('.')}"
    return text


def _text_in(parts: _Parts, manner: Sequence[str], rng: random.Random) -> str:
    text = _contracted(_swapped(parts.text, _SWAPS, rng), rng)
    if manner is _AFTER_TEXT and not _RADIO_END.search(text):
        return rng.choice(manner).format(_ended(text))
    return rng.choice(_BEFORE_TEXT).format(text)


def _swapped(text: str, swaps: Sequence[tuple[re.Pattern[str], str]], rng: random.Random) -> str:
    """At most two swaps of those that fit, each only where its words stand."""
    fitting = [swap for swap in swaps if swap[0].search(text)]
    for pattern, words in rng.sample(fitting, rng.randint(0, min(2, len(fitting)))):
        text = pattern.sub(words, text, count=1)
    return text


def _contracted(text: str, rng: random.Random) -> str:
    """Contractions written out, or the other way round, in half of the cases."""
    if rng.random() < 0.5:
        return text
    out = text
    for pattern, words in _WRITE_OUT:
        out = pattern.sub(words, out)
    if out != text:
        return re.sub(r"(?<=\w) (?:re|ve|ll)\b", lambda match: _WRITTEN_OUT[match.group()], out)
    for pattern, words in _CONTRACT:
        out = pattern.sub(words, out)
    return out


def _moved(parts: _Parts) -> tuple[str, str] | None:
    """What is to stand first and the order behind it, its purpose or time taken from its end or brought there."""
    order = parts.order
    if parts.ban or parts.rest or parts.verb not in _MOVABLE or any(sign in order for sign in ",;:?"):
        return None
    match = _PURPOSE_AT_END.fullmatch(order)
    if match and not _LEANING.search(order) and len(re.findall(r"\bto (?!the |an? )", order)) == 1:
        return f"to {match['clause']}", match["main"]
    match = _TIME_AT_END.fullmatch(order)
    if match is None or _LEANING.search(order) or " to " in match["clause"]:
        return None
    if not _LEANING_TIME.search(match["main"]):
        return match["clause"], match["main"]
    return None


def _without_articles(order: str) -> str:
    words = order.split(" ")
    result = []
    for place, word in enumerate(words):
        before = words[place - 1].lower() if place else ""
        after = re.sub(r"\W.*", "", words[place + 1].lower()) if place + 1 < len(words) else ""
        if word in ("a", "an", "the") and before not in _PREPOSITIONS and after and after not in _NEEDS_ARTICLE:
            continue
        result.append(word)
    return " ".join(result)


def _kept(text: str) -> Counter[str]:
    """Negations, numbers, names and words of place, time and order, each as often as it occurs."""
    for pattern, words in _SAME_MEANING:
        text = pattern.sub(words, text)
    found: Counter[str] = Counter()
    for match in re.finditer(r"\w[\w'’-]*", text):
        word = match.group()
        before = text[: match.start()].rstrip(" \"'“(")
        starts = not before or (before[-1] in ".!?:" and not _ABBREVIATIONS.search(before))
        is_number = any(character.isdigit() for character in word)
        is_name = word != "I" and (sum(map(str.isupper, word)) > 1 or (word[0].isupper() and not starts))
        if word.lower() in _KEPT:
            found[word.lower()] += 1
        elif is_number or is_name:
            found[word] += 1
    return found


def _ended(text: str) -> str:
    return text if not text or text[-1] in ".!?" else f"{text}."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
