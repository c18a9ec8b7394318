"""Write docs/tasks.md and its pictures from the results of `diffir quickstart`: python scripts/tasks_page.py.

Run it in the root of the checkout, after `diffir quickstart --task TASK` for every task. The whole page is generated; a
task without results is an error.
"""

import sys
from pathlib import Path

from PIL import Image

from diffir_sr.quickstart.tasks import QUICKSTARTS

HEAD = """# Small recipes for every task

```
diffir quickstart
diffir quickstart --task realsr
diffir quickstart --task deblur
diffir quickstart --task inpaint
```

Each command prepares data, trains, tests, and writes a table and pictures to `results/quickstart/` or
`results/quickstart_<task>/`. It uses the option files of `options/small/<task>/`: photographs of scikit-image, networks
with about two million parameters, and some hundreds to thousands of iterations of stage 1 and stage 2 on a CPU (the
times are from a machine with two cores that was also doing other work). The results show that each recipe learns its
task, measured on held-out photographs; they do not show what the published networks reach. Stage 1 sees the ground
truth, through the 256 numbers of the prior. Stage 2 starts from stage 1, has trained longer, and sees only the degraded
image.

This page is generated from those results by `python scripts/tasks_page.py`.
"""
LARGEST = 200_000  # bytes of a picture


def main() -> int:
    docs = Path("docs")
    parts = [HEAD]
    (docs / "tasks").mkdir(parents=True, exist_ok=True)
    for task in QUICKSTARTS.values():
        report = task.results / "report.md"
        if not report.is_file():
            sys.stderr.write(f"no {report}; run: diffir quickstart --task {task.name}\n")
            return 1
        text = report.read_text()
        parts.append(
            text[text.index(f"## {task.title}\n") :].replace(f"]({task.name}.jpg)", f"](tasks/{task.name}.jpg)")
        )
        copy_picture(task.results / f"{task.name}.jpg", docs / "tasks" / f"{task.name}.jpg")
    (docs / "tasks.md").write_text("\n".join(parts))
    return 0


def copy_picture(source: Path, target: Path) -> None:
    """Copy the file, or encode it with decreasing quality until it is small enough."""
    target.write_bytes(source.read_bytes())
    for quality in range(75, 30, -5):
        if target.stat().st_size <= LARGEST:
            return
        Image.open(source).save(target, quality=quality, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
