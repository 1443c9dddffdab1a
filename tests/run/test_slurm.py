"""The batch script of docs/slurm.md, run with stand-ins for Slurm's commands and for torchrun."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import ROOT

SCRIPT = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(), re.S)[1]
STAND_INS = {
    "scontrol": 'echo "$@" >> scontrol.txt; [ "$1" = show ] && printf "node1\\nnode2\\n"; exit 0',
    "srun": 'shift; exec "$@"',
    # Ends by itself with $CODE, or a second after SIGUSR1, as a run that saves first.
    "torchrun": (
        'trap "sleep 1; touch saved; exit 138" USR1; echo "$@" > torchrun.txt\n'
        'for _ in $(seq "$TENTHS"); do sleep 0.1; done; exit "$CODE"'
    ),
}


def _submit(folder, code, tenths, **more):
    (folder / "job.sh").write_text(SCRIPT)
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        **{"CODE": str(code), "TENTHS": str(tenths)},
        **more,
    }
    return subprocess.Popen(["bash", "job.sh"], cwd=folder, env=environment)


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_ends_by_itself_is_not_requeued(tmp_path, code):
    assert _submit(tmp_path, code, 0).wait(60) == code
    assert "requeue" not in (tmp_path / "scontrol.txt").read_text()


def test_a_warned_run_saves_and_is_requeued(tmp_path):
    job = _submit(tmp_path, 0, 600)
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "torchrun.txt").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert (tmp_path / "saved").exists()
    assert "requeue 17" in (tmp_path / "scontrol.txt").read_text()


def test_the_launcher_and_the_tasks_of_an_array(tmp_path):
    _submit(tmp_path, 0, 0, SLURM_ARRAY_JOB_ID="16", SLURM_ARRAY_TASK_ID="3").wait(60)
    words = (tmp_path / "torchrun.txt").read_text().split()
    assert "--rdzv_endpoint=node1:29500" in words
    assert {"run.dir=runs/a3-16-3", "run.seed=3", "--nproc_per_node=8", "--nnodes=2"} <= set(words)
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words)  # torchrun knows each of its options
    assert arguments.training_script == "dali_rsb.train"
    assert arguments.signals_to_handle == "SIGTERM,SIGINT,SIGUSR1"
