"""A process of `--jobs` whose training is a stand-in: the way of jobs, lines, errors and signals, without torch."""

import os
import signal
import sys
import time

import cairn.verbs.finetuning.side_by_side as side_by_side
from cairn.errors import ConfigError


def fake_training(job, model, tokenizer, identity):
    """Does what the job's name says."""
    kind = job.name.split("_")[0]
    print(f"{job.name}: step 1/1", file=sys.stderr)
    print("    sample: 'x'", file=sys.stderr)
    job.run.mkdir(parents=True, exist_ok=True)
    (job.run / "pid").write_text(str(os.getpid()))
    if kind == "fails":
        raise ConfigError("lora.targets", ["'x': no such layer", "'y': no such layer"], next="use all-linear")
    if kind == "odd":
        raise ValueError("three of\nfour")
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(60 if kind == "slow" else 0.05)
    except KeyboardInterrupt:
        time.sleep(0.1)
        (job.run / "checkpoint").write_text("whole")
        raise
    return {"name": job.name, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "base": model}


def main():
    side_by_side._load = lambda base: (base.place, None)
    side_by_side.train_job = fake_training
    side_by_side.worker()
