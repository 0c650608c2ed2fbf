"""``embervlm mcp``: selections as tools of the Model Context Protocol, for agents, on standard input and output."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from embervlm import __version__
from embervlm.behaviour_tree import behaviour_tree
from embervlm.data.images import MAX_PIXELS, decode_image
from embervlm.fleet import Fleet
from embervlm.selection import RobotSelector, Selection
from embervlm.serving.limits import check_picture
from embervlm.serving.schemas import FleetIn, PlanFormat, RequestError, decode_base64, own_fleet
from embervlm.serving.settings import Settings

Task = Annotated[str, Field(description="what is to be done, in plain words")]
ImagePath = Annotated[str | None, Field(description="the scene: a picture's file on this machine")]
ImageData = Annotated[str | None, Field(description="the scene: a picture's bytes in base64, or as a data URL")]
OwnFleet = Annotated[FleetIn | None, Field(description="who can be sent; the model's own fleet without it")]


def make_server(selector: RobotSelector) -> MCPServer[Any]:
    """The tool server over a selector.

    Args:
        selector: what answers, one question at a time.
    """
    server: MCPServer[Any] = MCPServer(
        "embervlm",
        version=__version__,
        instructions="Selects robots of a fleet for a task and a picture of the scene. Confidences are calibrated;"
        " where ask_a_person is true, ask a person which of prediction_set to send.",
        log_level="WARNING",
    )
    one_at_a_time = threading.Lock()

    def answer(
        task: str,
        image_path: str | None,
        image_base64: str | None,
        fleet: FleetIn | None,
        coverage: float | None = None,
        reason: bool = True,
    ) -> Selection:
        try:
            if image_path is not None and image_base64 is not None:
                raise RequestError("give image_path or image_base64, not both")
            picture = None
            if image_base64 is not None:
                data = decode_base64(image_base64)
                check_picture(data, MAX_PIXELS)
                picture = decode_image(data, name="image")
            elif image_path is not None:
                picture = decode_image(Path(image_path))
            own = None if fleet is None else own_fleet(fleet.model_dump(exclude_none=True), Settings.max_robots)
            with one_at_a_time:
                return selector.select(task, picture, reason=reason, fleet=own, coverage=coverage)
        except ValueError as error:
            # The agent is told what was found, what was expected and the cure; that is no fault of the server.
            raise ToolError(str(error)) from None

    @server.tool()
    def select_robot(
        task: Task,
        image_path: ImagePath = None,
        image_base64: ImageData = None,
        fleet: OwnFleet = None,
        coverage: Annotated[
            float | None,
            Field(description="0.5 to 0.99: also name the robots among which the right leader is this often"),
        ] = None,
        reason: Annotated[bool, Field(description="write the grounds too")] = True,
    ) -> dict[str, Any]:
        """Select which robot of the fleet leads a task and which go along, with calibrated confidences and a plan."""
        return answer(task, image_path, image_base64, fleet, coverage, reason).to_dict()

    @server.tool()
    def plan_mission(
        task: Task,
        image_path: ImagePath = None,
        image_base64: ImageData = None,
        fleet: OwnFleet = None,
        plan_format: Annotated[
            PlanFormat, Field(description="behaviortree adds the plan as XML of BehaviorTree.CPP 4")
        ] = "json",
    ) -> dict[str, Any]:
        """Lay out a task as phases: which robot does what, after which phases."""
        found = answer(task, image_path, image_base64, fleet, reason=False)
        plan: dict[str, Any] = {"task": found.task, "selected": found.selected, "plan": found.to_dict()["plan"]}
        if plan_format == "behaviortree":
            plan["behaviortree"] = behaviour_tree(found.plan, found.task)
        return plan

    @server.tool()
    def describe_fleet() -> dict[str, Any]:
        """Who can be sent: each robot's name, capabilities, limitations and environments."""
        return selector.fleet.to_dict()

    return server


def run(model: str, fleet: Path | None = None) -> None:
    """Serve the tools until standard input ends.

    Args:
        model: a model folder, or the name of the model in the box.
        fleet: a fleet file in place of the model's own fleet.

    Raises:
        WeightsError, FleetError: the model or the fleet cannot be read.
    """
    selector = RobotSelector.from_pretrained(model)
    if fleet is not None:
        selector.fleet = Fleet.from_yaml(fleet)
    make_server(selector).run("stdio")
