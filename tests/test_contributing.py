"""The worked example of CONTRIBUTING.md, executed: a family from new files and one line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from toy import train_options, write_pairs

ROOT = Path(__file__).resolve().parents[1]


def steps():
    """(file, code) of each Python block of the example."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, flags=re.DOTALL)


def test_the_example_of_a_family_works_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "diffir_sr", tmp_path / "diffir_sr", ignore=shutil.ignore_patterns("__pycache__"))
    assert [file for file, _ in steps()] == [
        "archs/sharpen_arch.py",
        "models/sharpen_model.py",
        "families/sharpen.py",
    ]
    for file, code in steps():
        assert not (tmp_path / "diffir_sr" / file).exists()
        (tmp_path / "diffir_sr" / file).write_text(code)
    families = tmp_path / "diffir_sr/families/__init__.py"
    text = families.read_text()
    line = next(line for line in text.splitlines() if line.startswith("FAMILIES"))
    more = "from diffir_sr.families.sharpen import SHARPEN\n" + line.replace("(DIFFIR,", "(DIFFIR, SHARPEN,")
    families.write_text(text.replace(line, more))

    write_pairs("data", scale=1)
    options = train_options("s1", name="sharpen", iterations=2)
    options |= dict(model_type="SharpenModel", scale=1, network_g=dict(type="Sharpen", width=4))
    options["train"] |= dict(noise=0.02)
    Path("train.yml").write_text(yaml.safe_dump(options))
    options["train"] |= dict(noise=0.6, ema_decay=0)
    Path("rule.yml").write_text(yaml.safe_dump(options))
    options["train"] |= dict(noise=2)
    Path("bound.yml").write_text(yaml.safe_dump(options))
    weights = "experiments/sharpen/models/net_g_latest.safetensors"
    for command, message in (
        (["basicsr", "train", "-opt", "train.yml"], ""),
        (["describe", weights], "Sharpen x1"),
        (["restore", "data/lq", "-o", "out", "-w", weights], "4 restored"),
        (["options", "check", "rule.yml"], "so much noise needs a moving average"),
        (["options", "check", "bound.yml"], "train.noise: expected"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "diffir_sr", *command],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (1 if command[0] == "options" else 0), done.stdout + done.stderr
        assert message in done.stdout
    assert len(list(Path("out").glob("*.png"))) == 4
