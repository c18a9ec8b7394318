"""What the doctor is pointed at: option files of any dataset type, folders, and sources that cannot be used."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import yaml
from doctor_cases import PARTS, TEST_PARTS, change_lmdb, clean_world, part, prepare, put, put_pairs, truncate

from diffir_sr.cli import main
from diffir_sr.doctor.targets import targets_of_options
from diffir_sr.errors import OptionError


def doctor(*words):
    """(exit code, findings) of one run."""
    code = main(["doctor", "data", *words, "--json", "report.json", "--jobs", "1"])
    return code, json.loads(Path("report.json").read_text())["findings"]


def checks(findings):
    return sorted(finding["check"] for finding in findings)


def write(datasets, **top):
    Path("some.yml").write_text(yaml.safe_dump(dict(name="x", model_type="DiffIRS2Model", datasets=datasets) | top))
    return Path("some.yml")


def test_a_source_that_cannot_be_used_hides_no_other_fault():
    options = clean_world()
    shutil.rmtree("grey/gt")
    Path("some.txt").unlink()
    data = Path("test_raw/gt.lmdb/data.mdb")
    data.write_bytes(data.read_bytes()[: 2**12])
    truncate("train/lq/cat.png")
    code, findings = doctor(options)
    assert code == 1
    assert checks(findings) == ["source", "source", "source", "unreadable"]
    output = "".join(finding["where"] for finding in findings)
    for place in ("grey/gt", "some.txt", "test_raw/gt.lmdb", "train/lq/cat.png"):
        assert place in output


def test_faults_of_the_option_file_are_reported_beside_those_of_the_data():
    options = Path(clean_world())
    options.write_text(options.read_text().replace("gt_size: 64", "gt_size: 64\n    gt_siez: 64"))
    truncate("train/gt/cat.png")
    code, findings = doctor(str(options))
    assert (code, checks(findings)) == (1, ["options", "unreadable"])
    assert "gt_siez" in findings[0]["found"]


def test_option_files_without_data_are_refused():
    write({})
    assert main(["doctor", "data", "some.yml"]) == 1
    write({"val": {"name": "x", "type": "Made"}})
    with pytest.raises(OptionError, match="no dataset has an option dataroot_gt"):
        targets_of_options(Path("some.yml"))


@pytest.mark.parametrize("words", [[], ["--scale", "0", "x"], ["no_such.yml"]])
def test_a_call_that_names_nothing_usable_ends_with_one_message(words, capsys):
    assert main(["doctor", "data", *words]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_any_dataset_type_is_read_by_its_roots():
    one = dict(name="a", type="OfSomebodyElse", dataroot_gt="g", dataroot_lq="l", gt_size=96, filename_tmpl="{}x4")
    many = dict(name="b", type="Mixed", dataroot_gt=["g1", "g2"], dataroot_lq=["l1", "l2"])
    nested = dict(name="c", type="Mixed", sources=[dict(dataroot_gt="a", weight=2), dict(dataroot_gt="b", scale=2)])
    masked = dict(name="d", type="Inpaint", dataroot_gt="g", dataroot_mask="m")
    datasets = dict(train=one, val_1=many, val_2=nested, val_3=masked)
    found = targets_of_options(write(datasets, scale=4)).targets
    assert [(target.name, target.roots) for target in found] == [
        ("train", {"gt": "g", "lq": "l"}),
        ("val_1 #1", {"gt": "g1", "lq": "l1"}),
        ("val_1 #2", {"gt": "g2", "lq": "l2"}),
        ("val_2 #1", {"gt": "a"}),
        ("val_2 #2", {"gt": "b"}),
        ("val_3", {"gt": "g", "mask": "m"}),
    ]
    assert [target.training for target in found] == [True, False, False, False, False, False]
    assert (found[0].scale, found[0].gt_size, found[0].template) == (4, 96, "{}x4")
    assert found[1].scale == 4
    assert found[4].scale == 2


def test_sources_that_do_not_match_are_reported():
    datasets = dict(train=dict(name="b", type="Mixed", dataroot_gt=["g1", "g2"], dataroot_lq=["l1"]))
    findings = targets_of_options(write(datasets)).findings
    assert "lists of roots differ in length" in findings[-1].found


def test_pictures_in_two_sources_of_one_dataset_are_duplicates():
    put_pairs("one", PARTS)
    put("two/gt/cat_again.png", part(*PARTS["cat"]))
    put("two/gt/face.png", part(*TEST_PARTS["face"]))
    write(dict(train=dict(name="b", type="Mixed", dataroot_gt=["one/gt", "two/gt"], gt_size=64)))
    findings = [finding for finding in doctor("some.yml")[1] if finding["check"] != "options"]
    assert [(finding["check"], finding["where"]) for finding in findings] == [("duplicate", "two/gt/cat_again.png")]


def test_cuts_of_a_test_photograph_are_found_among_training_images():
    put("test/cat.png", np.ascontiguousarray(skimage.data.chelsea()))
    put("test/cup.png", np.ascontiguousarray(skimage.data.coffee()))
    put("photos/cat.png", np.ascontiguousarray(skimage.data.chelsea()))
    put("photos/face.png", np.ascontiguousarray(skimage.data.astronaut()))
    prepare("subimages", "photos", "-o", "cuts", "--size", "200", "--step", "100")
    code, findings = doctor("cuts", "--against", "test")
    assert (code, checks(findings)) == (1, ["leak"])
    assert findings[0]["where"] == "test/cat.png"
    assert "cuts/cat_s0" in findings[0]["found"]


def test_black_pictures_are_neither_duplicates_nor_leaks():
    for file in ("train/a.png", "train/b.png", "test/c.png"):
        put(file, np.zeros((100, 100, 3), np.uint8))
    assert checks(doctor("train", "--against", "test")[1]) == ["constant"] * 3


def test_names_of_degraded_images_may_differ_by_a_template():
    put_pairs("x", TEST_PARTS)
    for file in list(Path("x/lq").iterdir()):
        file.rename(file.with_name(f"{file.stem}x4.png"))
    pair = ("--lq", "x/lq", "--gt", "x/gt", "--scale", "4")
    assert doctor(*pair, "--template", "{}x4") == (0, [])
    code, findings = doctor(*pair)
    assert (code, checks(findings)) == (1, ["partner"] * 4)
    assert checks(doctor(*pair, "--template", "x4")[1]) == ["options"]


def test_masks_under_other_names_are_a_stock():
    put("gt/face.png", part(*TEST_PARTS["face"]))
    mask = np.zeros((99, 80, 1), np.uint8)
    mask[20:40] = 255
    put("masks/thick_01.png", mask)
    assert doctor("--gt", "gt", "--mask", "masks") == (0, [])
    put("masks/face.png", mask)
    findings = doctor("--gt", "gt", "--mask", "masks")[1]
    assert checks(findings) == ["partner", "scale"]


def test_an_lmdb_is_compared_with_its_list():
    put_pairs("x", TEST_PARTS)
    for codec in ("png", "raw"):
        prepare("lmdb", "x/gt", "-o", f"{codec}.lmdb", "--codec", codec)
        change_lmdb(f"{codec}.lmdb", lambda transaction: transaction.put(b"unlisted", b"1"))
        change_lmdb(f"{codec}.lmdb", lambda transaction: transaction.put(b"face", b"no picture"))
        meta = Path(f"{codec}.lmdb/meta_info.txt")
        meta.write_text(meta.read_text().replace("suit.png (144,144", "suit.png (140,144"))
    assert checks(doctor("png.lmdb")[1]) == ["lmdb", "lmdb", "unreadable"]
    assert checks(doctor("raw.lmdb")[1]) == ["lmdb", "unreadable", "unreadable"]


def test_a_manifest_is_compared_in_both_directions():
    put_pairs("x", TEST_PARTS)
    lines = [{"diffir_manifest": 1}, {"name": "gone.png", "sha256": "0"}, {"name": "face.png", "sha256": "0"}]
    Path("x/gt.manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [finding["found"] for finding in doctor("x/gt")[1]]
    assert len(found) == 3
    for part_of in ("gone: in the manifest, but missing", "added later", "the file has changed since it was made"):
        assert any(part_of in text for text in found)
    Path("x/gt.manifest.jsonl").write_text("{}\n")
    assert "cannot be read" in doctor("x/gt")[1][0]["found"]


def test_a_manifest_of_an_lmdb_names_keys_or_paths():
    for name in ("100% b", "sub/c.d"):
        put(f"x/{name}.png", part(*TEST_PARTS["face" if "/" in name else "suit"]))
    prepare("lmdb", "x", "-o", "x.lmdb")
    digests = {}
    change_lmdb("x.lmdb", lambda transaction: digests.update(transaction.cursor().iternext()))
    digests = {bytes(key).decode(): hashlib.sha256(value).hexdigest() for key, value in digests.items()}
    assert sorted(digests) == ["100%25%20b", "sub/c%2Ed"]
    for names in (digests, ["100% b.png", "sub/c.d.png"]):
        for wrong, expected in ((False, []), (True, ["manifest", "manifest"])):
            lines = [{"diffir_manifest": 1}]
            for name, digest in zip(names, digests.values(), strict=True):
                lines.append({"name": name, "sha256": digest[::-1] if wrong else digest})
            Path("x.lmdb.manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            assert checks(doctor("x.lmdb")[1]) == expected


def test_json_may_go_to_the_terminal(capsys):
    put_pairs("x", TEST_PARTS)
    capsys.readouterr()
    assert main(["doctor", "data", "x/gt", "--json", "--jobs", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checked"]["images"] == 2
    assert report["counts"] == {"error": 0, "warning": 0, "note": 0}


def test_the_table_shows_ten_of_many_and_the_rest_as_a_number(capsys):
    for index in range(13):
        put(f"many/{index:02d}.png", np.full((40, 40, 3), 10 * index, np.uint8))
    assert main(["doctor", "data", "many", "--jobs", "1"]) == 3
    table = capsys.readouterr().out
    assert "many/09.png" in table
    assert "many/10.png" not in table
    assert "... 3 more" in table
    assert "0 errors, 13 warnings, 0 notes; checked 13 images" in table
