"""`diffir doctor data` finds every fault that is put into a clean set of photographs, and nothing else."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from doctor_cases import SCALE, change_lmdb, clean_world, part, put, truncate
from PIL import Image

from diffir_sr.cli import main
from diffir_sr.doctor.findings import KINDS, Severity
from diffir_sr.files.images import decode
from diffir_sr.files.metadata import with_png_chunks
from diffir_sr.prepare.downscale import smaller

MASKED = ("--gt", "inpaint/gt", "--mask", "inpaint/mask")


def doctor(*words, jobs=1):
    """(exit code, findings as a set of (check, where), the whole report)."""
    code = main(["doctor", "data", *words, "--json", "report.json", "--jobs", str(jobs)])
    report = json.loads(Path("report.json").read_text())
    return code, sorted((finding["check"], finding["where"]) for finding in report["findings"]), report


def put_pair(name, gt, lq=None):
    put(f"train/gt/{name}.png", gt)
    put(f"train/lq/{name}.png", smaller(gt, scale=SCALE) if lq is None else lq)


def write_manifest(root, sha256=None):
    """A manifest of the files of a folder; `sha256` replaces the digests of some."""
    entries = [
        {
            "name": file.name,
            "from": file.name,
            "size": list(decode(file.read_bytes(), where=str(file)).shape),
            "bytes": file.stat().st_size,
            "sha256": (sha256 or {}).get(file.name, hashlib.sha256(file.read_bytes()).hexdigest()),
        }
        for file in sorted(Path(root).iterdir())
    ]
    lines = [{"diffir_manifest": 1, "job": "downscale"}, *entries]
    Path(f"{root}.manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def turned_jpeg(path):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(cv2.imread(path)[::-1, ::-1, ::-1])).save(data, "JPEG", quality=95, exif=exif)
    Path(path).write_bytes(data.getvalue())


def damaged():
    truncate("train/gt/cup.png")
    return "unreadable", "train/gt/cup.png"


def without_partner():
    Path("train/lq/ear.png").unlink()
    return "partner", "train/gt/ear.png"


def of_another_scale():
    put("train/lq/spoon.png", part(skimage.data.coffee, 230, 330)[::3, ::3])
    return "scale", "train/gt/spoon.png"


def of_another_picture():
    put_pair("swapped", part(skimage.data.chelsea, 150, 300), lq=part(skimage.data.retina, 900, 500)[::SCALE, ::SCALE])
    return "content", "train/gt/swapped.png"


def shifted():
    put("train/lq/cells.png", part(skimage.data.immunohistochemistry, 0, 0)[::SCALE, ::SCALE])
    return "shift", "train/lq/cells.png"


def twin():
    for kind in ("gt", "lq"):
        shutil.copy(f"train/{kind}/cat.png", f"train/{kind}/twin.png")
    return "duplicate", "train/gt/twin.png"


def near_twin():
    image = part(skimage.data.immunohistochemistry, 150, 100)
    put_pair("one", image)
    put_pair("other", np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8))
    return "near duplicate", "train/gt/other.png"


def leaked():
    """Another size and JPEG, then PNG again."""
    small = cv2.resize(cv2.imread("jpeg/gt/gland.jpg"), (100, 100), interpolation=cv2.INTER_AREA)
    put_pair("leak", cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], -1)[..., ::-1])
    return "leak", "jpeg/gt/gland.jpg"


def too_small():
    put_pair("small", part(skimage.data.coffee, 60, 20, side=48))
    return "small", "train/gt/small.png"


def of_16_bits():
    image = part(skimage.data.chelsea, 150, 10)
    put_pair("deep", image.astype(np.uint16) * 257, lq=smaller(image, scale=SCALE))
    return "bit depth", "train/gt/deep.png"


def grey_as_rgb():
    put_pair("grass", np.repeat(part(skimage.data.grass, 0, 0), 3, axis=2))
    return "grey", "train/gt/grass.png"


def with_alpha():
    image = part(skimage.data.immunohistochemistry, 300, 260)
    put("train/gt/tissue.png", np.dstack([image, np.full(image.shape[:2], 128, np.uint8)]))
    return "alpha", "train/gt/tissue.png"


def one_colour():
    put_pair("black", np.zeros((96, 96, 3), np.uint8))
    return "constant", "train/gt/black.png"


def was_jpeg():
    image = part(skimage.data.astronaut, 150, 0)
    ugly = cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])[1], -1)[..., ::-1]
    put_pair("ugly", ugly)
    return "jpeg traces", "train/gt/ugly.png"


def turned():
    turned_jpeg("jpeg/gt/table.jpg")
    return "turned", "jpeg/gt/table.jpg"


def made_for_print():
    photo = Image.open("jpeg/gt/gland.jpg")
    photo.convert("CMYK").save("jpeg/gt/gland.jpg", quality=95)
    return "converted", "jpeg/gt/gland.jpg"


def not_read():
    Path("train/gt/cat.jxl").write_bytes(b"x")
    return "left out", "train/gt/cat.jxl"


def with_odd_exif():
    data = Path("train/gt/tissue.png").read_bytes()
    Path("train/gt/tissue.png").write_bytes(with_png_chunks(data, [(b"eXIf", b"nothing")]))
    return "metadata", "train/gt/tissue.png"


def listed_in_vain():
    with Path("some.txt").open("a") as file:
        file.write("ghost.png (144,144,3)\n")
    return "meta_info", "some.txt"


def lmdb_without_a_value():
    change_lmdb("test_png/gt.lmdb", lambda transaction: transaction.delete(b"suit"))
    return "lmdb", "test_png/gt.lmdb[suit]"


def shard_of_another_index():
    index = Path("test_shards/gt/00000.tar.index.jsonl")
    lines = index.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if '"suit.png"' in line)
    changed = json.loads(lines[place]) | {"sha256": "0" * 64}
    index.write_text("\n".join([*lines[:place], json.dumps(changed), *lines[place + 1 :]]) + "\n")
    return "shards", "test_shards/gt/00000.tar[suit.png]"


def other_bytes_than_made():
    write_manifest("grey/gt", {"man.png": "0" * 64})
    return "manifest", "grey/gt/man.png"


def mask_of_many_levels():
    mask = cv2.imread("inpaint/mask/eye.png", cv2.IMREAD_UNCHANGED)
    put("inpaint/mask/eye.png", cv2.GaussianBlur(mask, (0, 0), 2)[..., None])
    return "mask levels", "inpaint/mask/eye.png"


def empty_mask():
    put("inpaint/mask/vein.png", np.zeros((144, 144, 1), np.uint8))
    return "mask share", "inpaint/mask/vein.png"


FAULTS = (
    damaged,
    without_partner,
    of_another_scale,
    of_another_picture,
    shifted,
    twin,
    near_twin,
    leaked,
    too_small,
    of_16_bits,
    grey_as_rgb,
    with_alpha,
    one_colour,
    was_jpeg,
    made_for_print,
    not_read,
    with_odd_exif,
    turned,
    listed_in_vain,
    lmdb_without_a_value,
    shard_of_another_index,
    other_bytes_than_made,
    mask_of_many_levels,
    empty_mask,
)


def test_a_clean_set_has_no_findings():
    options = clean_world()
    write_manifest("train/gt")
    code, found, report = doctor(options, *MASKED)
    assert (code, found) == (0, [])
    assert report["checked"]["images"] == 7 * 2 + (2 + 1 + 2 + 2 + 2 + 2 + 2) * 2 + 4
    assert report["checked"]["shifts_measured"] == report["checked"]["pairs"] == 20


def test_every_kind_of_fault_is_found_once_and_nothing_else(capsys):
    options = clean_world()
    expected = sorted(seed() for seed in FAULTS)
    assert {check for check, _ in expected} == set(KINDS) - {
        "options",
        "source",
        "degraded",
    }  # the last one needs an assessor
    code, found, report = doctor(options, *MASKED, jobs=2)
    assert found == expected
    assert code == 1
    table = capsys.readouterr().out
    for check, where in expected:
        assert check in table
        assert where in table
    assert sum(report["counts"].values()) == len(FAULTS)


@pytest.mark.parametrize("seed", FAULTS, ids=lambda seed: seed.__name__)
def test_the_exit_code_follows_the_worst_finding(seed):
    options = clean_world()
    check, where = seed()
    code, found, _ = doctor(options, *MASKED)
    assert found == [(check, where)]
    assert code == {Severity.ERROR: 1, Severity.WARNING: 3, Severity.NOTE: 0}[KINDS[check].severity]


def test_the_document_explains_every_kind_in_the_words_of_the_report():
    document = (Path(__file__).parents[1] / "docs/doctor.md").read_text()
    for check, kind in KINDS.items():
        assert f"| {kind.severity.value} | {check} | {kind.meaning} | {kind.remedy} |\n" in document
