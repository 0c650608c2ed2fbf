"""The tool server, asked by the protocol's own client over standard input and output."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("mcp", reason="the extra 'mcp' is not installed")

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from embervlm.fleet import Fleet


def test_agents_can_select_plan_and_ask_who_there_is(tiny_folder: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    Image.new("RGB", (40, 30), (90, 60, 30)).save(scene)
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    tiny = base64.b64encode(buffer.getvalue()).decode()
    fleet = {"robots": [{"name": "Crane", "capabilities": ["lifting"], "limitations": [], "environments": []}]}

    async def ask() -> None:
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "embervlm.cli", "mcp", "--model", str(tiny_folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        async with Client(stdio_client(parameters)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"select_robot", "plan_mission", "describe_fleet"}
            assert all(tool.description for tool in tools.values())

            async def call(name: str, **values: Any) -> Any:
                return await client.call_tool(name, values)

            def content(result: Any) -> Any:
                assert not result.is_error, result.content
                return json.loads(result.content[0].text)

            found = content(await call("select_robot", task="Film the roof", image_path=str(scene)))
            assert found["primary"] in Fleet.default() and len(found["reasoning"]) == 4
            own = content(await call("select_robot", task="Lift it", fleet=fleet, reason=False))
            assert own["primary"] == "Crane"
            plan = content(await call("plan_mission", task="Film the roof", plan_format="behaviortree"))
            assert plan["plan"][0]["step"] == 1 and 'BTCPP_format="4"' in plan["behaviortree"]
            assert content(await call("describe_fleet")) == Fleet.default().to_dict()
            for values, said in (
                ({"task": " "}, "the task is empty"),
                ({"task": "x", "image_base64": tiny}, "2x2 pixels show no scene"),
                ({"task": "x", "image_path": "/nowhere.png"}, "cannot read the file"),
                ({"task": "x", "image_path": str(scene), "image_base64": tiny}, "not both"),
                ({"task": "x", "coverage": 0.9}, "no coverage can be promised"),
            ):
                result = await call("select_robot", **values)
                assert result.is_error and said in result.content[0].text

    asyncio.run(asyncio.wait_for(ask(), 120))
