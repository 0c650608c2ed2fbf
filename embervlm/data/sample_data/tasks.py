"""Robot tasks with a known right answer for the sample scenes: a table says who goes, by what is asked and seen.

Between ``scenes``, which names the kinds of places, and ``write``, which saves the records. The same wording occurs
with many places and has different right robots there; no wording names a place or a robot.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from embervlm.data.sample import PlanStep, Reasoning, normalise_task
from embervlm.fleet import Fleet

from .scenes import KINDS

ROBOTS = {
    "D": "Drone",
    "U": "Underwater Robot",
    "H": "Humanoid",
    "W": "Robot with Wheels",
    "L": "Robot with Legs",
}

# Who goes, by intent (row) and kind of place (column); a dot: it does not occur there, or no robot is clearly best.
# - Under water only the underwater robot works; at a harbour and in a flood it takes what lies below the water line.
# - On flat floors and paved ground the wheeled robot drives what is heavy, long or repetitive, and looks under things.
# - The humanoid does what needs hands, tools, doors, or dealing with people, and looks into what furniture hides.
# - Stairs and rough ground are for legs; where a tool or a handle is the point, the humanoid climbs, too.
# - The drone takes heights, wide open areas, small urgent parcels and first overviews, where there is room to fly:
#   outdoors and in a warehouse. It does not stay up for hours and carries little, so guarding and heavy loads stay on
#   the ground. Readings over a slope or over debris are taken from the air: nothing is stepped on.
# - Below a forest's canopy nothing is seen from the air, so all but an overview and the treetops is done on foot.
_TABLE = """
          pipe reef ware corr kitc offi stai road fiel high powe moun fore rubb floo harb
inspect    U    U    W    W    H    H    L    W    D    D    D    L    L    L    D    U
top        U    U    D    .    H    H    L    D    .    D    D    D    D    D    D    D
bottom     U    U    W    W    W    W    L    W    .    W    L    L    L    L    U    U
heavy      U    U    W    W    W    W    L    W    W    W    L    L    L    L    .    W
urgent     U    U    W    W    W    W    L    D    D    D    D    D    L    D    D    D
overview   U    U    D    W    .    .    L    D    D    D    D    D    D    D    D    D
patrol     U    U    W    W    W    W    L    W    W    W    L    L    L    L    .    W
measure    U    U    W    W    W    W    L    W    D    D    D    D    L    D    D    .
hand_over  U    U    W    H    H    H    H    H    D    H    .    L    L    L    D    H
search     U    U    .    H    .    H    L    D    D    .    .    D    L    L    D    D
operate    U    U    H    H    H    H    H    .    .    H    .    .    .    H    U    H
guide      U    U    H    H    H    H    H    H    D    H    .    L    L    L    D    H
sample     U    U    H    .    H    .    .    .    W    .    .    L    L    L    U    U
repair     U    U    H    H    H    H    H    H    .    H    .    .    .    H    U    H
"""


_COLUMNS = {
    "pipe": "underwater_pipeline",
    "reef": "coral_reef",
    "ware": "warehouse",
    "corr": "corridor",
    "kitc": "kitchen",
    "offi": "office",
    "stai": "staircase",
    "road": "road",
    "fiel": "field_from_air",
    "high": "high_rise_facade",
    "powe": "power_line",
    "moun": "mountain_trail",
    "fore": "forest",
    "rubb": "rubble",
    "floo": "flooded_street",
    "harb": "harbour",
}


def _read_table(table: str) -> dict[str, dict[str, str]]:
    """By intent and kind: the robot's name; dots are left out."""
    head, *rows = (line.split() for line in table.strip().splitlines())
    return {
        intent: {_COLUMNS[short]: ROBOTS[key] for short, key in zip(head, keys, strict=True) if key != "."}
        for intent, *keys in rows
    }


@dataclass(frozen=True, slots=True)
class Intent:
    """What can be asked for.

    Attributes:
        verbs, objects: any verb goes with any object; together they make a clause such as ``check the lowest parts``.
        requirement: what the task needs, a few words.
        subtask: how a plan's phase says it.
        capabilities: by robot, which of its capabilities meet the need.
    """

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    requirement: str
    subtask: str
    capabilities: dict[str, tuple[str, ...]]


INTENTS: dict[str, Intent] = {
    "inspect": Intent(
        ("inspect", "check", "examine", "look over"),
        (
            "this place for damage",
            "everything in view for cracks",
            "the site for broken parts",
            "the scene for faults",
            "all that can be seen here for signs of wear",
        ),
        "a close look for damage",
        "Inspect the place for damage",
        {
            "Drone": ("aerial inspection",),
            "Underwater Robot": ("marine inspection",),
            "Humanoid": ("manipulation", "complex tasks"),
            "Robot with Wheels": ("stable platform", "efficient"),
            "Robot with Legs": ("inspection", "rough terrain navigation"),
        },
    ),
    "top": Intent(
        ("look at", "check", "take pictures of", "film"),
        (
            "the highest parts in view",
            "what is far above head height",
            "the topmost parts",
            "the upper parts that nobody can see well",
            "the spots high up",
        ),
        "a view of the highest parts",
        "Look at the highest parts",
        {
            "Drone": ("aerial navigation", "aerial inspection"),
            "Underwater Robot": ("underwater navigation",),
            "Humanoid": ("manipulation", "walking"),
            "Robot with Legs": ("inspection", "stability"),
        },
    ),
    "bottom": Intent(
        ("look at", "check", "examine", "take pictures of"),
        (
            "the lowest parts",
            "the foot of everything in view",
            "the places where things meet the ground",
            "the base and the footing",
            "the spots low down",
        ),
        "a close look at the lowest parts",
        "Check the lowest parts",
        {
            "Underwater Robot": ("marine inspection", "underwater navigation"),
            "Robot with Wheels": ("stable platform",),
            "Robot with Legs": ("inspection", "stability"),
        },
    ),
    "heavy": Intent(
        ("carry", "move", "haul", "bring"),
        (
            "the heavy crate to the far side",
            "a load of forty kilos to the other end",
            "the heavy equipment across",
            "the spare parts, too heavy for one person, over there",
            "the heavy batteries to the far end",
        ),
        "moving a heavy load",
        "Move the heavy load across",
        {
            "Underwater Robot": ("underwater manipulation",),
            "Robot with Wheels": ("good payload",),
            "Robot with Legs": ("load carrying",),
        },
    ),
    "urgent": Intent(
        ("rush", "get", "bring", "deliver"),
        (
            "the small first-aid kit to the far side at once",
            "a light packet across as fast as possible",
            "the spare radio to the other end without delay",
            "this little sensor over there in a hurry",
            "the medicine to the far end right away",
        ),
        "a small item delivered fast",
        "Deliver the small item fast",
        {
            "Drone": ("fastest", "lightweight transport"),
            "Underwater Robot": ("underwater navigation",),
            "Robot with Wheels": ("fast movement",),
            "Robot with Legs": ("rough terrain navigation",),
        },
    ),
    "overview": Intent(
        ("get", "give us", "make", "bring back"),
        (
            "a first overview of the whole place",
            "a quick picture of the entire area",
            "a rapid survey of everything in sight",
            "an overall view in a few minutes",
            "a fast map of the full extent",
        ),
        "a fast overview of the area",
        "Get a fast overview of the area",
        {
            "Drone": ("surveillance", "fastest"),
            "Underwater Robot": ("underwater navigation",),
            "Robot with Wheels": ("fast movement",),
            "Robot with Legs": ("rough terrain navigation",),
        },
    ),
    "patrol": Intent(
        ("patrol", "guard", "watch", "secure"),
        (
            "the area all night long",
            "this place for the next ten hours",
            "the site until tomorrow morning",
            "everything here for a full shift",
            "the surroundings hour after hour",
        ),
        "staying on duty for hours",
        "Patrol the area for hours",
        {
            "Underwater Robot": ("underwater navigation",),
            "Robot with Wheels": ("efficient",),
            "Robot with Legs": ("rough terrain navigation", "stability"),
        },
    ),
    "measure": Intent(
        ("measure", "record", "log", "take readings of"),
        (
            "the temperature in many spots",
            "the gas level all over this place",
            "the radiation at twenty points",
            "the dimensions of everything in view",
            "the noise from one side to the other",
        ),
        "readings at many spots",
        "Take readings at many spots",
        {
            "Drone": ("aerial inspection", "aerial navigation"),
            "Underwater Robot": ("marine inspection",),
            "Robot with Wheels": ("stable platform",),
            "Robot with Legs": ("inspection", "rough terrain navigation"),
        },
    ),
    "hand_over": Intent(
        ("hand", "give", "pass", "take"),
        (
            "the tool bag to the person who is waiting",
            "a bottle of oxygen to the colleague over there",
            "this letter to the woman in charge",
            "the fresh gloves to the one who asked for them",
            "the lamp to the man at work there",
        ),
        "handing an item to a person",
        "Hand the item over",
        {
            "Drone": ("lightweight transport", "aerial navigation"),
            "Underwater Robot": ("underwater manipulation",),
            "Humanoid": ("human interaction", "manipulation"),
            "Robot with Wheels": ("good payload",),
            "Robot with Legs": ("load carrying", "rough terrain navigation"),
        },
    ),
    "search": Intent(
        ("search for", "look for", "find", "locate"),
        (
            "the missing colleague",
            "the person who has not come back",
            "anybody who may be hurt",
            "the lost child",
            "people who need help",
        ),
        "finding a missing person",
        "Find the missing person",
        {
            "Drone": ("surveillance", "aerial navigation"),
            "Underwater Robot": ("underwater navigation",),
            "Humanoid": ("human interaction", "walking"),
            "Robot with Legs": ("rough terrain navigation",),
        },
    ),
    "operate": Intent(
        ("turn", "open", "close", "release"),
        ("the valve", "the handle as far as it goes", "the latch", "the lid", "the shut-off lever"),
        "hands for a handle or valve",
        "Work the handle or valve",
        {"Underwater Robot": ("underwater manipulation",), "Humanoid": ("manipulation",)},
    ),
    "guide": Intent(
        ("guide", "lead", "escort", "accompany"),
        (
            "the stranded people to safety",
            "the visitors on the safe way out",
            "the group back to the others",
            "those who are lost to the meeting point",
            "the frightened crew away from here",
        ),
        "leading people to safety",
        "Lead the people to safety",
        {
            "Drone": ("aerial navigation", "surveillance"),
            "Underwater Robot": ("underwater navigation",),
            "Humanoid": ("human interaction", "walking"),
            "Robot with Legs": ("rough terrain navigation", "stability"),
        },
    ),
    "sample": Intent(
        ("collect", "take", "gather", "bring back"),
        (
            "samples of the material",
            "a few specimens from three spots",
            "some loose bits for the laboratory",
            "small samples of what lies there",
            "a piece of the surface",
        ),
        "picking up samples",
        "Collect the samples",
        {
            "Underwater Robot": ("underwater manipulation", "deep sea exploration"),
            "Humanoid": ("manipulation",),
            "Robot with Wheels": ("stable platform",),
            "Robot with Legs": ("rough terrain navigation",),
        },
    ),
    "repair": Intent(
        ("fix", "repair", "mend", "replace"),
        (
            "the broken part with tools",
            "the damaged bracket",
            "the loose fastening",
            "the torn cover",
            "the cracked piece",
        ),
        "a repair with tools",
        "Repair the broken part",
        {"Underwater Robot": ("underwater manipulation",), "Humanoid": ("tool use", "complex tasks")},
    ),
}

RULES = _read_table(_TABLE)

# Tasks in phases: the intents in order; ``together`` runs the first two side by side. Who does the first phase leads.
# A combination is used where the rule sends at least two different robots.
COMBINATIONS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("inspect", "repair"), False),
    (("inspect", "guide"), False),
    (("inspect", "heavy"), False),
    (("search", "urgent"), False),
    (("inspect", "urgent"), True),
    (("bottom", "urgent"), True),
    (("inspect", "repair", "heavy"), False),
)

# How often a kind of place is drawn; places for which few robots qualify make up for the many that suit the others.
_WEIGHTS = {
    "underwater_pipeline": 1.35,
    "coral_reef": 1.3,
    "staircase": 1.4,
    "power_line": 1.3,
    "mountain_trail": 1.3,
    "forest": 1.4,
    "rubble": 1.2,
    "flooded_street": 1.0,
    "harbour": 1.2,
    "road": 0.9,
    "field_from_air": 0.9,
    "high_rise_facade": 0.9,
}

_FRAMES = (
    "{C}.",
    "Please {c}.",
    "We need someone to {c}.",
    "Your job is to {c}.",
    "Can you {c}?",
    "Somebody has to {c}.",
    "The next task is to {c}.",
    "{C} and report back.",
    "It is time to {c}.",
    "Could somebody {c}, please?",
)
_IN_ORDER = (
    "First {c}, then {d}.",
    "{C}. After that, {d}.",
    "{C}; once that is done, {d}.",
    "Please {c} and then {d}.",
)
_TOGETHER = ("{C}, and at the same time {d}.", "{C}; meanwhile, {d}.", "Please {c} and, in parallel, {d}.")
_THREE = (
    "First {c}, then {d}, and finally {e}.",
    "{C}, then {d}. At the end, {e}.",
    "Please {c}, after that {d}, and last {e}.",
)

MULTI_SHARE = 0.13
_TASKS_UNDER_WATER = 4


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task for one scene.

    Attributes:
        scene: number of the scene.
        task: the text.
        leader: the robot that leads.
        selected: all robots that go, in the fleet's order.
        plan: the phases; empty for a task of one phase.
        reasoning: the written grounds.
        group: the intents, joined with ``+``.
    """

    scene: int
    task: str
    leader: str
    selected: tuple[str, ...]
    plan: tuple[PlanStep, ...]
    reasoning: Reasoning
    group: str


def robot_for(intent: str, kind: str) -> str | None:
    """The right robot for an intent at a kind of place, or None where the task does not occur."""
    return RULES[intent].get(kind)


def clauses(intent: str, held_out: bool) -> list[str]:
    """The intent's clauses for training or for the held-out set; each verb and object occurs in both, no pair does."""
    spec = INTENTS[intent]
    return [
        f"{verb} {thing}"
        for (i, verb), (j, thing) in product(enumerate(spec.verbs), enumerate(spec.objects))
        if ((i + j) % 4 == 3) == held_out
    ]


def wordings(group: str, held_out: bool, rng: np.random.Generator, limit: int = 400) -> list[str]:
    """At most ``limit`` shuffled texts for a group of intents: ``a``, ``a+b``, ``a|b`` (side by side) or ``a+b+c``."""
    together = "|" in group
    intents = group.replace("|", "+").split("+")
    if len(intents) == 1:
        frames: Sequence[str] = _FRAMES
    elif len(intents) == 2:
        frames = _TOGETHER if together else _IN_ORDER
    else:
        frames = _THREE
    pools = [clauses(intent, held_out) for intent in intents]
    texts: dict[str, str] = {}
    attempts = 0
    everything = len(frames) * int(np.prod([len(pool) for pool in pools]))
    wanted = min(limit, everything)
    if wanted == everything:
        for frame in frames:
            for chosen in product(*pools):
                texts.setdefault(normalise_task(text := _fill(frame, chosen)), text)
    while len(texts) < wanted and attempts < 20 * wanted and wanted < everything:
        attempts += 1
        frame = frames[int(rng.integers(len(frames)))]
        text = _fill(frame, tuple(pool[int(rng.integers(len(pool)))] for pool in pools))
        texts.setdefault(normalise_task(text), text)
    result = list(texts.values())
    return [result[int(k)] for k in rng.permutation(len(result))]


def _fill(frame: str, chosen: Sequence[str]) -> str:
    c, d, e = (*chosen, "", "")[:3]
    return frame.format(c=c, C=c[0].upper() + c[1:], d=d, e=e)


def draw_kinds(count: int, rng: np.random.Generator) -> list[str]:
    """The kinds of ``count`` scenes, each as often as its weight says to within one, in random order."""
    weights = np.array([_WEIGHTS.get(kind, 0.8) for kind in KINDS])
    ends = np.floor(np.cumsum(weights) / weights.sum() * count + 0.5).astype(int)
    order = [kind for kind, number in zip(KINDS, np.diff(ends, prepend=0), strict=True) for _ in range(number)]
    return [order[int(k)] for k in rng.permutation(count)]


def make_records(kinds: Sequence[str], seed: int, held_out: bool, first: int = 0) -> list[TaskRecord]:
    """Draw the tasks of a set of scenes, four or five a scene, with leaders and wordings balanced.

    Args:
        kinds: the scenes' kinds in order; scene ``k`` gets the number ``first + k``.
        seed: of everything random here.
        held_out: which half of the wordings to use.

    Returns:
        the records in the order of their scenes.
    """
    rng = np.random.default_rng([seed, int(held_out), 77])
    drawn = _draw_groups(kinds, rng)
    texts = _assign_texts(drawn, held_out, rng)
    return [
        _record(first + scene, kinds[scene], group, text) for (scene, group, _), text in zip(drawn, texts, strict=True)
    ]


def _groups(kind: str) -> dict[str, list[tuple[str, bool]]]:
    """By leader: the groups of intents that occur at a kind of place, and whether they take several robots."""
    groups: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for intent, rule in RULES.items():
        if kind in rule:
            groups[rule[kind]].append((intent, False))
    for intents, together in COMBINATIONS:
        robots = [RULES[intent].get(kind) for intent in intents]
        if None not in robots and len(set(robots)) > 1:
            lead = robots[0]
            assert lead is not None
            groups[lead].append((("|" if together else "+").join(intents), True))
    return groups


def _draw_groups(kinds: Sequence[str], rng: np.random.Generator) -> list[tuple[int, str, str]]:
    """Choose each scene's tasks as (scene, group, leader).

    Starts at random and then exchanges single tasks while that improves the balance: of leaders in all, of groups, and
    of the leaders within each group (what a guess from the text alone lives on). In a picture no robot leads more than
    two tasks, except under water, where there is only one.
    """
    options = {
        kind: [(group, lead, multi) for lead, groups in _groups(kind).items() for group, multi in groups]
        for kind in set(kinds)
    }
    scenes: list[list[tuple[str, str, bool]]] = []
    for kind in kinds:
        alone = KINDS[kind].setting == "under water"
        leaders = len({lead for _, lead, _ in options[kind]})
        count = 4 if alone or leaders == 2 else 5 if leaders == 3 else 6
        chosen: list[tuple[str, str, bool]] = []
        for k in rng.permutation(len(options[kind])):
            option = options[kind][int(k)]
            if len(chosen) < count and (alone or sum(lead == option[1] for _, lead, _ in chosen) < 2):
                chosen.append(option)
        scenes.append(chosen)
    total = sum(len(chosen) for chosen in scenes)
    led = Counter(lead for chosen in scenes for _, lead, _ in chosen)
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for group, lead, _ in (option for chosen in scenes for option in chosen):
        used[group][lead] += 1
    combined = sum(multi for chosen in scenes for _, _, multi in chosen)
    target = {False: total * (1 - MULTI_SHARE) / len(RULES), True: total * MULTI_SHARE / len(COMBINATIONS)}

    def gain(option: tuple[str, str, bool], sign: int) -> float:
        """By how much the balance gets worse if the option is added (sign 1) or taken away (-1)."""
        group, lead, multi = option
        counts = used[group]
        before = _leak(counts)
        counts[lead] += sign
        after = _leak(counts)
        counts[lead] -= sign
        mass = counts.total() - target[multi]
        spread = led[lead] - total / len(ROBOTS)
        cost = 3 * (2 * sign * spread + 1) + (6 if multi else 0.3) * (2 * sign * mass + 1)
        if multi:
            cost += 8 * (2 * sign * (combined - MULTI_SHARE * total) + 1)
        return (after - before) + cost / total

    def put(option: tuple[str, str, bool], sign: int) -> None:
        nonlocal combined
        combined += sign * option[2]
        used[option[0]][option[1]] += sign
        led[option[1]] += sign

    for _ in range(8):
        for scene in rng.permutation(len(kinds)):
            chosen = scenes[scene]
            kind = kinds[scene]
            alone = KINDS[kind].setting == "under water"
            for place, old in enumerate(chosen):
                saved = gain(old, -1)
                put(old, -1)
                here = Counter(lead for k, (_, lead, _) in enumerate(chosen) if k != place)
                others = {group for k, (group, _, _) in enumerate(chosen) if k != place}
                best, lowest = old, -saved
                for option in options[kind]:
                    if option[0] in others or (here[option[1]] >= 2 and not alone):
                        continue
                    cost = gain(option, 1)
                    if cost < lowest - 1e-9:
                        best, lowest = option, cost
                put(best, 1)
                chosen[place] = best
    return [(scene, group, lead) for scene, chosen in enumerate(scenes) for group, lead, _ in chosen]


def _leak(leaders: Counter[str]) -> float:
    """What the best guess from a text gets right of a group's records, plus what a guess by the shares does."""
    total = leaders.total()
    return max(leaders.values()) + sum(count * count for count in leaders.values()) / total if total else 0.0


def _assign_texts(drawn: Sequence[tuple[int, str, str]], held_out: bool, rng: np.random.Generator) -> list[str]:
    """Deal the wordings of each group evenly to its leaders, so that a text says little about who leads."""
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (_, group, leader) in enumerate(drawn):
        places[group][leader].append(index)
    texts = [""] * len(drawn)
    for group in sorted(places):
        size = sum(len(indices) for indices in places[group].values())
        # A held-out text meets at least about ten pictures; training texts are more varied.
        count = max(1, size // (12 if held_out else 7))
        choice = wordings(group, held_out, rng, count)
        step = 0
        for leader in sorted(places[group]):
            for index in places[group][leader]:
                texts[index] = choice[step % len(choice)]
                step += 1
    return texts


def _record(scene: int, kind: str, group: str, text: str) -> TaskRecord:
    together = "|" in group
    intents = group.replace("|", "+").split("+")
    robots = [RULES[intent][kind] for intent in intents]
    order = [1, 1] if together else list(range(1, len(intents) + 1))
    plan = tuple(
        PlanStep(step, robot, INTENTS[intent].subtask)
        for step, robot, intent in zip(order, robots, intents, strict=True)
    )
    joint = " and " if together else ", then "
    names = Fleet.default().names
    return TaskRecord(
        scene=scene,
        task=text,
        leader=robots[0],
        selected=tuple(name for name in names if name in robots),
        plan=plan if len(intents) > 1 else (),
        reasoning=Reasoning(
            requirements=joint.join(INTENTS[intent].requirement for intent in intents),
            environment=KINDS[kind].phrase,
            capabilities=INTENTS[intents[0]].capabilities[robots[0]],
        ),
        group=group,
    )


def text_only_bound(records: Iterable[TaskRecord]) -> float:
    """The share of leaders that the best guess from the text alone gets right on these very records."""
    return _bound((normalise_task(record.task), record.leader) for record in records)


def picture_only_bound(records: Iterable[TaskRecord]) -> float:
    """The share of leaders that the best guess from the picture alone gets right on these very records."""
    return _bound((str(record.scene), record.leader) for record in records)


def _bound(pairs: Iterable[tuple[str, str]]) -> float:
    leaders: dict[str, Counter[str]] = defaultdict(Counter)
    for key, leader in pairs:
        leaders[key][leader] += 1
    total = sum(sum(counts.values()) for counts in leaders.values())
    return sum(max(counts.values()) for counts in leaders.values()) / total if total else 0.0
