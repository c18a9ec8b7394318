"""Write docs/tasks.md and its pictures from what `diffir quickstart` left in results/: python scripts/tasks_page.py.

Run it in the root of the checkout, after `diffir quickstart --task TASK` of every task; nothing in the page is typed
by hand. A task without results is an error.
"""

import sys
from pathlib import Path

from PIL import Image

from diffir_sr.quickstart.tasks import TASKS

HEAD = """# Every task learns: the small recipes

```
diffir quickstart
diffir quickstart --task realsr
diffir quickstart --task deblur
diffir quickstart --task inpaint
```

Each command goes from nothing to a table and pictures in `results/quickstart/` or `results/quickstart_<task>/`, with
the option files of `options/small/<task>/`: photographs of scikit-image, networks of about two million parameters,
some hundred to some thousand iterations of stage 1 and stage 2 on a CPU (minutes are those of a machine with two cores
that had other work, too). They show that a recipe learns what it should, on photographs
that it has not seen; they are no measure of what the published networks reach. Stage 1 sees the ground truth, through
256 numbers; stage 2 starts where stage 1 ends, has trained longer, and sees the degraded picture alone.

`python scripts/tasks_page.py` puts this page together from those results.
"""
LARGEST = 200_000  # bytes of a picture


def main() -> int:
    docs = Path("docs")
    parts = [HEAD]
    (docs / "tasks").mkdir(parents=True, exist_ok=True)
    for task in TASKS.values():
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
    """The bytes as they are, or encoded with less quality until they are few enough."""
    target.write_bytes(source.read_bytes())
    for quality in range(75, 30, -5):
        if target.stat().st_size <= LARGEST:
            return
        Image.open(source).save(target, quality=quality, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
