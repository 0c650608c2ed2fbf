"""The real command, end to end: two processes over all stages, resume, old weights, a lost process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from embervlm.data.sample_data import write_sample_data

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "train_all.py"
#: What a user's environment may hold beside a run.
SECRETS = {
    name: f"secret-of-{name.lower()}-3f9a"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "EMBERVLM_API_KEY", "AWS_SECRET_ACCESS_KEY")
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(out, scenes=24, seed=3, workers=1, progress=False)
    return out


def _command(output: Path, sample: Path, *more: str, processes: int = 2, stage1: Path | None = None) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            "--standalone",
            str(SCRIPT),
        ),
        *("--output_dir", str(output), "--distributed", "--mixed_precision", "bf16", "--batch_size", "4"),
        *("--learning_rate", "2e-4", "--gradient_accumulation", "1", "--save_steps", "2", "--log_steps", "1"),
        *("--stage1_data", str(stage1 or sample / "base_vlm"), "--stage2_data", str(sample / "base_vlm" / "llava")),
        *("--robot_data", str(sample / "robot-selection-dataset"), "--preset", "spark", "--num_workers", "0"),
        *("--stage1_epochs", "1", "--stage2_epochs", "1", "--stage3_robot_epochs", "1", *more),
    ]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | SECRETS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr + done.stdout


@pytest.fixture(scope="module")
def trained(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("run") / "outputs"
    return output, _run(_command(output, sample, "--stage", "all", "--max_steps", "3"))


def test_all_stages_run_in_order_and_end_in_a_complete_folder(trained: tuple[Path, str], sample: Path) -> None:
    output, log = trained
    titles = [
        "Stage 1: Visual-Language Alignment",
        "Stage 2: Multimodal Instruction Tuning",
        "Stage 3: Robot Fleet Selection Training",
    ]
    assert [log.index(title) for title in titles] == sorted(log.index(title) for title in titles)
    assert log.count("=" * 60) == 6
    assert log.count("✓ Embedding size matches tokenizer: 50262 tokens") == 4
    final = output / "final"
    listed = json.loads((final / "manifest.json").read_text())["files"]
    assert {path.name for path in final.iterdir()} == {*listed, "manifest.json"}
    assert {
        "model.safetensors",
        "tokenizer.json",
        "fleet.yaml",
        "calibration.json",
        "metrics.json",
        "README.md",
    } <= set(listed)
    # Ready for a hub: nothing in it says where it was trained.
    for file in final.iterdir():
        content = file.read_bytes()
        assert not [path for path in (output, sample, REPOSITORY) if os.fsencode(path) in content], file.name
    metrics = json.loads((final / "metrics.json").read_text())
    assert [metrics[f"stage{stage}"]["steps"] for stage in (1, 2, 3)] == [3, 3, 3]
    assert {path.name for path in output.glob("stage3/*")} == {"checkpoint-2", "checkpoint-3", "final"}
    report = (output / "report.html").read_text()
    assert all(f"Losses of stage {stage}" in report for stage in (1, 2, 3)) and report.count("with 2 processes") == 3


def test_no_secret_is_written_and_no_local_path_handed_on(trained: tuple[Path, str], sample: Path) -> None:
    output, log = trained
    written = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    handed_on = [path for path in written if "final" in path.parts or path.parent.name.startswith("checkpoint-")]
    assert len(handed_on) > 60
    for secret in SECRETS.values():
        assert secret not in log
        assert [path for path, content in written.items() if secret.encode() in content] == []
    for place in (output, sample, REPOSITORY, Path.home()):
        assert [path for path in handed_on if f"{place}/".encode() in written[path]] == []


def test_the_result_selects_a_robot_for_a_real_photograph(trained: tuple[Path, str], shared: Path) -> None:
    picture = shared / "fixtures" / "photos" / "underwater" / "funie_11.jpg"
    command = [sys.executable, "-m", "embervlm.cli", "select", "--model", str(trained[0] / "final"), "--json"]
    done = subprocess.run(
        [*command, "--task", "Inspect the pipe", "--image", str(picture)], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["primary"] == answer["robots"][0]["robot"] and len(answer["robots"]) == 5
    assert len(answer["reasoning"]) == 4 and answer["plan"]


def test_resume_skips_what_is_complete_and_goes_on_from_a_checkpoint(
    trained: tuple[Path, str], sample: Path, tmp_path: Path
) -> None:
    import shutil

    output = tmp_path / "outputs"
    shutil.copytree(trained[0], output)
    for gone in ("final", "stage3/final", "stage3/checkpoint-3"):
        shutil.rmtree(output / gone)
    log = _run(_command(output, sample, "--stage", "all", "--max_steps", "3", "--resume", "auto"))
    assert "Stage 1 is complete already" in log and "Stage 2 is complete already" in log
    assert "Stage 3 goes on from" in log and "Stage 3: step 3/3" in log and "Stage 3: step 2/3" not in log
    assert (output / "final" / "manifest.json").is_file()


def test_a_second_run_into_the_same_folder_is_refused(trained: tuple[Path, str], sample: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *_command(trained[0], sample, "--stage", "1")[6:]],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "WORLD_SIZE"},
    )
    assert done.returncode == 1
    assert "a run is already there" in done.stderr and "--distributed, but this process" in done.stderr


def test_old_weights_with_50257_rows_are_resized_and_train(
    sample: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    old = tmp_path / "old"
    model = AutoModelForImageTextToText.from_pretrained(trained[0] / "stage2" / "final")
    model.resize_token_embeddings(50257)
    model.save_pretrained(old)
    more = ("--stage", "3", "--init_from", str(old), "--max_steps", "1")
    log = _run(_command(tmp_path / "outputs", sample, *more))
    lines = [
        "⚠️ CRITICAL: Embedding size mismatch detected!",
        "   Current embedding size: 50257",
        "   Required (tokenizer size): 50262",
        "   Special tokens in use: [",
        "🔧 Resizing embeddings to match tokenizer...",
        "✓ Resized embeddings via resize_token_embeddings()",
        "✅ Embedding resize successful: 50262 tokens",
        "Stage 3: step 1/1",
    ]
    places = [log.index(line) for line in lines]
    assert places == sorted(places)


def test_a_killed_process_ends_the_run_with_an_error(sample: Path, tmp_path: Path) -> None:
    command = _command(tmp_path / "outputs", sample, "--stage", "1", "--max_steps", "10000")
    log = (tmp_path / "log").open("w+")
    launcher = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        deadline = time.monotonic() + 120
        while "Stage 1: step 3/" not in (tmp_path / "log").read_text():
            assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        workers = [child for child in psutil.Process(launcher.pid).children() if str(SCRIPT) in child.cmdline()]
        assert len(workers) == 2
        workers[1].send_signal(signal.SIGKILL)
        assert launcher.wait(timeout=30) != 0
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    finally:
        if launcher.poll() is None:
            launcher.kill()
        log.close()
