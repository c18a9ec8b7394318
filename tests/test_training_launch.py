"""Trainings of several processes and hosts: they meet, name the rank that fails, resume to the same bits."""

import os
import re
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from toy import files_of, rows, train_options, write_options, write_pairs

from diffir_sr.cli import basicsr_main
from diffir_sr.errors import InputError
from diffir_sr.models import distributed
from diffir_sr.models.validation import joined
from diffir_sr.training import loop, run

REPO = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, signal, sys
import diffir_sr
from diffir_sr.models.restoration_model import RestorationModel
steps = RestorationModel.optimize_parameters

def step(self, iteration):
    if iteration == 3 and self.opt["rank"] == 1 and "FAULT" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    steps(self, iteration)

RestorationModel.optimize_parameters = step
if __name__ == "__main__":
    from diffir_sr.cli import basicsr_main
    sys.exit(basicsr_main(["train", "-opt", sys.argv[1], "--launcher", "pytorch", "--auto_resume"]))
"""


def options(name):
    made = train_options("s1", name=name, iterations=4)
    made["logger"]["save_checkpoint_freq"] = 2
    made["val"]["val_freq"] = 2
    return made


def launch(file, *words, **faults):
    """torchrun, as one host would start it."""
    around = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | faults
    command = [sys.executable, "-m", "torch.distributed.run", *words, "launched.py", file]
    return subprocess.Popen(command, env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(*processes):
    """Exit codes and outputs."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def two_hosts(file, **how):
    """Two agents with a process each, which meet over a port of this machine as two machines would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=job"]
    words += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    return ended(*(launch(file, *words, **how) for _ in range(2)))


@pytest.mark.slow
def test_two_hosts_name_the_rank_that_died_and_resume_to_the_same_bits():
    write_pairs("data", lmdb=False)
    Path("launched.py").write_text(SCRIPT)
    whole = write_options(options("whole"), "whole.yml")
    codes, outputs = ended(launch(whole, "--standalone", "--nproc-per-node=2"))
    assert codes == [0], outputs
    assert "ranks: 2" in outputs[0]

    parts = write_options(options("parts"), "parts.yml")
    codes, outputs = two_hosts(parts, FAULT="kill")
    output = "".join(outputs)
    assert all(codes), output
    assert re.search(r"rank +: 1 .*?exitcode +: -9 .*?Signal 9 \(SIGKILL\) received by PID", output, re.DOTALL), output
    assert sorted(file.name for file in Path("experiments/parts/training_states").glob("*.state")) == ["2.state"]

    codes, outputs = two_hosts(parts)
    assert codes == [0, 0], outputs
    assert "Resuming after iteration 2" in "".join(outputs)
    for file in ("training.jsonl", "validation.jsonl"):
        assert rows("parts", file) == rows("whole", file)
    assert files_of("parts") == files_of("whole")


def test_torchrun_shows_the_sentence_of_the_rank_that_failed(monkeypatch, tmp_path, capsys):
    file = tmp_path / "error.json"
    for name, value in {"TORCHELASTIC_ERROR_FILE": str(file), "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert basicsr_main(["train", "-opt", "absent.yml"]) == 1
    output = capsys.readouterr().err
    assert re.fullmatch(r"error: rank 1: .*absent\.yml.*\n", output)
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(file))
    assert (
        ChildFailedError("train", {1: failure}).format_msg().count(f"traceback : {output.removeprefix('error: ')}") == 1
    )


def test_means_are_over_all_pictures_however_ranks_share_them():
    values = {index: (f"p{index}", {"psnr": 20 + index**2}) for index in range(7)}
    whole = joined([values])
    for ranks in (2, 3, 7, 8):
        parts = [{index: values[index] for index in range(rank, 7, ranks)} for rank in range(ranks)]
        shared = joined(parts)
        assert shared.names == whole.names == [f"p{index}" for index in range(7)]
        assert shared.mean("psnr") == whole.mean("psnr") == 20 + 91 / 7


def test_nodes_that_do_not_share_their_folder_are_reported(monkeypatch):
    monkeypatch.setattr(loop, "gathered", lambda value: [value, ("node7", 3000)])
    monkeypatch.setattr(loop.socket, "gethostname", lambda: "node1")
    with pytest.raises(InputError, match="rank 0 on node1 goes on after iteration 0, rank 1 on node7 after 3000: all"):
        loop._check_shared(None)


def test_a_rank_that_does_not_come_is_one_sentence(monkeypatch, capsys):
    for name, value in dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0").items():
        monkeypatch.setenv(name, value)
    # As BasicSR starts it, with less patience.
    start = partial(torch.distributed.init_process_group, "gloo", timeout=timedelta(seconds=1))
    monkeypatch.setattr(run, "init_dist", lambda launcher: start())
    write_pairs("data", lmdb=False)
    file = write_options(options("alone"), "alone.yml")
    assert basicsr_main(["train", "-opt", file, "--launcher", "pytorch"]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"error: .*rank 0 did not meet all 2 ranks \(.*1/2 clients joined.*\); check that every node", said
    )
    assert not Path("experiments").exists()


def test_errors_of_a_lost_connection_are_known():
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3311"
    assert distributed.lost_a_rank(RuntimeError(gloo))
    assert distributed.lost_a_rank(torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."))
    assert not distributed.lost_a_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_starts_one_agent_per_node(tmp_path):
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "scontrol").write_text("#!/bin/bash\nprintf 'node3\\nnode4\\n'\n")
    (fake / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    for file in fake.iterdir():
        file.chmod(0o755)
    script = REPO / "examples" / "slurm" / "train.sbatch"
    around = {"PATH": f"{fake}:{os.environ['PATH']}", "SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "2"}
    around |= {"SLURM_JOB_NODELIST": "node[3-4]", "SLURM_GPUS_ON_NODE": "8"}
    done = subprocess.run(["bash", script, "mine.yml"], env=around, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node3:21234", "--rdzv-id=41234"} <= set(words)
    assert words[-6:] == ["train", "-opt", "mine.yml", "--launcher", "pytorch", "--auto_resume"]
    assert subprocess.run(["bash", script], env=around, capture_output=True, text=True).returncode != 0
