"""Fleets: the default five word for word, fleet files there and back, and everything that is refused."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest

from embervlm.fleet import MAX_FLEET_FILE_BYTES, MAX_ROBOTS, Fleet, FleetError, Robot

ROBOT = "name: Drone, capabilities: [flying], limitations: [], environments: []"


def refused(tmp_path: Path, text: str) -> str:
    """The message with which a fleet file of ``text`` is refused."""
    file = tmp_path / "fleet.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        Fleet.from_yaml(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize("name", ["single_robot_selection.json", "multi_robot_selection_dataset.json"])
def test_the_default_robots_are_those_of_the_public_files(shared: Path, name: str) -> None:
    records = json.loads((shared / "robot-selection-dataset" / name).read_text(encoding="utf-8"))
    (instruction,) = {record["instruction"] for record in records}
    names = re.match(r"Robots: (.*?)\. ", instruction)
    assert names is not None and names[1].split(", ") == list(Fleet.default().names)
    described = re.findall(r"^(.+):\ncapabilities: (.+),\nlimitations: (.+),\nenvironments: (.+)$", instruction, re.M)
    assert len(described) == 5
    assert {robot.name: robot for robot in Fleet.default()} == {
        name: Robot(name, *(tuple(phrases.split(", ")) for phrases in lists)) for name, *lists in described
    }


def test_the_default_order_is_the_contract_s() -> None:
    expected = ("Drone", "Underwater Robot", "Humanoid", "Robot with Wheels", "Robot with Legs")
    assert Fleet.default().names == expected


def test_there_and_back(tmp_path: Path) -> None:
    fleet = Fleet(
        [
            Robot("Drone", ("flying",)),
            Robot("Тягач №5: «на»", ("yes", "1.5", "- dash", "null"), ("no #1",), ("café 電車",), 3, 12.5, "arm.urdf"),
            Robot("Kite", ("flying",), same_as="Drone", overlaps=("Glider", "Buoy"), outdoes=("Boat",)),
        ]
    )
    for each in (fleet, Fleet.default()):
        each.to_yaml(tmp_path / "fleet.yaml")
        assert Fleet.from_yaml(tmp_path / "fleet.yaml") == each
        assert Fleet.from_dict(each.to_dict()) == each
    assert list(Fleet.default().to_dict()["robots"][0]) == ["name", "capabilities", "limitations", "environments"]


def test_a_file_as_the_contract_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        "robots:\n"
        "  - name: Drone\n"
        "    capabilities: [fastest, aerial navigation, surveillance, lightweight transport, aerial inspection]\n"
        "    limitations: [limited payload, loud, weather dependent, battery life]\n"
        "    environments: [outdoor, large indoor spaces, hard to reach areas]\n"
        "  - {name: Lifter, capabilities: [lifting], limitations: [], environments: [], count: 2, payload_kg: 80}\n",
        encoding="utf-8-sig",
    )
    fleet = Fleet.from_yaml(file)
    assert fleet["Drone"] == Fleet.default()["Drone"]
    assert fleet["Lifter"] == Robot("Lifter", ("lifting",), count=2, payload_kg=80.0)


def test_names_are_found_whatever_their_case() -> None:
    fleet = Fleet.default()
    assert fleet.index(" robot  WITH legs ") == 4 and "drone" in fleet and "Boat" not in fleet and 3 not in fleet
    expected = "unknown robot 'Boat'; the fleet has: Drone, Underwater Robot, Humanoid, Robot with Wheels, "
    with pytest.raises(FleetError, match=re.escape(expected)):
        fleet.index("Boat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robots: []", "the fleet has no robots; list at least one under 'robots:'"),
        ("", "expected one key 'robots' with a list of robots"),
        ("- Drone", "expected one key 'robots' with a list of robots"),
        ("robots: {name: Drone}", "expected one key 'robots' with a list of robots"),
        (f"robots: [{{{ROBOT}}}]\nowner: me", "expected one key 'robots' with a list of robots"),
        ("robots: [Drone]", "robot 1: expected keys name, capabilities, limitations, environments, found str"),
        (
            f"robots: [{{{ROBOT}}}, {{{ROBOT.replace('Drone', 'dRONE')}}}]",
            "two robots of the fleet are called 'dRONE' (case is ignored); names must be distinct",
        ),
        (
            f"robots: [{{{ROBOT}, speed: 3}}]",
            "robot 1: unknown keys: speed; expected name, capabilities, limitations, environments, "
            "optional count, payload_kg, urdf, same_as, overlaps, outdoes",
        ),
        (
            "robots: [{name: Drone, capabilities: [flying]}]",
            "robot 1: missing keys: limitations, environments; expected name, capabilities, limitations, environments, "
            "optional count, payload_kg, urdf, same_as, overlaps, outdoes",
        ),
        (f"robots: [{{{ROBOT.replace('Drone', '7')}}}]", "robot 1: name must be text, found 7"),
        (
            f"robots: [{{{ROBOT.replace('Drone', chr(34) + ' ' + chr(34))}}}]",
            "robot 1: name must have 1 to 80 characters, found 0",
        ),
        (
            f"robots: [{{{ROBOT.replace('Drone', chr(34) + 'A, B' + chr(34))}}}]",
            "robot 1: name 'A, B' holds a comma, which separates names in the data",
        ),
        (
            f"robots: [{{{ROBOT.replace('[flying]', 'flying')}}}]",
            "robot 1 (Drone): capabilities must be a list of phrases, found str",
        ),
        (
            f"robots: [{{{ROBOT.replace('[flying]', '[]')}}}]",
            "robot 1 (Drone): capabilities is empty; a robot is chosen by what it can do",
        ),
        (f"robots: [{{{ROBOT}, count: 0}}]", "robot 1 (Drone): count must be a whole number from 1, found 0"),
        (f"robots: [{{{ROBOT}, count: true}}]", "robot 1 (Drone): count must be a whole number from 1, found True"),
        (f"robots: [{{{ROBOT}, payload_kg: -1}}]", "robot 1 (Drone): payload_kg must be a number from 0, found -1"),
        (f"robots: [{{{ROBOT}, payload_kg: .nan}}]", "robot 1 (Drone): payload_kg must be a number from 0, found nan"),
        (f"robots: [{{{ROBOT}, payload_kg: .inf}}]", "robot 1 (Drone): payload_kg must be a number from 0, found inf"),
        (f"robots: [{{{ROBOT}, same_as: 3}}]", "robot 1 (Drone): same_as must be text, found 3"),
        (f"robots: [{{{ROBOT}, overlaps: Boat}}]", "robot 1 (Drone): overlaps must be a list of names, found str"),
        (f"robots: [{{{ROBOT}, outdoes: [1]}}]", "robot 1 (Drone): outdoes must be text, found 1"),
    ],
)
def test_what_is_no_fleet_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == message


def test_which_robots_may_do_for_which() -> None:
    drone, boat = Robot("Drone", ("flying",)), Robot("Boat", ("floating",))
    kite, glider = Robot("Kite", ("soaring",), same_as="drone"), Robot("Glider", ("gliding",), same_as="Drone")
    buoy = Robot("Buoy", ("floating", "sensing"), overlaps=("BOAT",))
    mast = Robot("Mast", ("watching",), outdoes=("Drone",))
    robots = [drone, boat, kite, glider, buoy, mast]
    family = {"Drone", "Kite", "Glider"}
    expected = {(a, b) for a in family for b in family} | {("Boat", "Buoy"), ("Buoy", "Boat")}
    expected |= {(name, name) for name in ("Boat", "Buoy", "Mast")}
    assert {(a.name, b.name) for a in robots for b in robots if a.overlapping(b)} == expected
    better = {("Mast", name) for name in family}
    assert {(a.name, b.name) for a in robots for b in robots if a.may_do_for(b)} == expected | better
    # One name is one robot, however it is described.
    assert Robot("drone", ("digging",)).overlapping(drone) and Robot("Boat", ("x",), same_as="Crane").overlapping(boat)


def test_a_long_name_and_too_many_phrases_are_refused(tmp_path: Path) -> None:
    long = ROBOT.replace("Drone", "D" * 81)
    assert refused(tmp_path, f"robots: [{{{long}}}]") == "robot 1: name must have 1 to 80 characters, found 81"
    many = ROBOT.replace("[flying]", f"[{', '.join(['fly'] * 51)}]")
    assert refused(tmp_path, f"robots: [{{{many}}}]") == (
        "robot 1 (Drone): capabilities has 51 phrases; at most 50 are supported"
    )


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    found = refused(tmp_path, "\n".join(lines))
    assert found.startswith("not valid YAML (aliases (*name) are not supported in fleet files")


def test_yaml_that_makes_objects_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, "robots: !!python/object/apply:os.getcwd []").startswith("not valid YAML (")
    assert refused(tmp_path, "robots: [").startswith("not valid YAML (")
    for value in ("timestamp x", "int ''", "float x", "bool x", "binary é", "int 1:", "set [a]", "omap {a: b}"):
        assert refused(tmp_path, f"robots: !!{value}").startswith(("not valid YAML (", "expected one key 'robots'"))
    assert refused(tmp_path, "[" * 20_000).startswith("not valid YAML (")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    found = refused(tmp_path, "#" * (MAX_FLEET_FILE_BYTES + 1))
    assert found == f"more than {MAX_FLEET_FILE_BYTES:,} bytes, the most that a fleet file has"


def test_a_pipe_is_read_up_to_the_limit(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Opened for both, so that neither end waits for the other.
    with open(os.open(tmp_path / "pipe", os.O_RDWR), "r+b", buffering=0) as pipe:  # noqa: PTH123 (no path)
        writer = threading.Thread(target=pipe.write, args=(b"#" * (MAX_FLEET_FILE_BYTES + 1),))
        writer.start()
        with pytest.raises(FleetError, match="more than 1,000,000 bytes"):
            Fleet.from_yaml(tmp_path / "pipe")
        writer.join()


def test_too_many_robots_are_refused(tmp_path: Path) -> None:
    entries = ", ".join(["{" + ROBOT + "}"] * (MAX_ROBOTS + 1))
    assert refused(tmp_path, f"robots: [{entries}]") == f"{MAX_ROBOTS + 1} robots; at most {MAX_ROBOTS} are supported"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"nothing\.yaml: cannot read the fleet file \(No such file or directory\)"):
        Fleet.from_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(FleetError, match="cannot read the fleet file"):
        Fleet.from_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"robots: \xff")
    with pytest.raises(FleetError, match="cannot read the fleet file"):
        Fleet.from_yaml(tmp_path / "latin.yaml")


def test_a_fleet_needs_robots_with_distinct_names() -> None:
    with pytest.raises(FleetError, match="the fleet has no robots"):
        Fleet([])
    with pytest.raises(FleetError, match="two robots of the fleet are called 'A  b'"):
        Fleet([Robot("a B", ("x",)), Robot("A  b", ("y",))])
