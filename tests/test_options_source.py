"""Reading option files: YAML, lines, `base` and `--force_yml`."""

import os
import time
from pathlib import Path

import pytest
from options_cases import FILE, STAGE_1, TEST, changed, line_of, load, refusal

from diffir_sr.errors import OptionError
from diffir_sr.options import load_options
from diffir_sr.options.source import files_read, read_source


def _read(text):
    Path(FILE).write_text(text)
    return read_source(FILE)


def _read_fails(text):
    with pytest.raises(OptionError) as caught:
        _read(text)
    return str(caught.value)


def test_numbers_are_numbers_however_they_are_written():
    values = _read("a: 5e3\nb: 1e-4\nc: !!float 5e3\nd: 2.0e-4\ne: -1E+2\nf: 7\ng: '5e3'\nh: 12.5").values
    assert values == {"a": 5000.0, "b": 1e-4, "c": 5000.0, "d": 2e-4, "e": -100.0, "f": 7, "g": "5e3", "h": 12.5}


def test_text_that_only_looks_like_a_number_stays_text():
    assert _read("a: e5\nb: 5e\nc: 1e5x").values == {"a": "e5", "b": "5e", "c": "1e5x"}


def test_python_objects_are_refused_and_not_made():
    message = _read_fails("name: run\nval: !!python/object/apply:os.mkdir [made]")
    assert message.startswith("run.yml:2: ")
    assert "plain values only" in message
    assert not Path("made").exists()


def test_other_tags_on_sections_are_refused():
    assert "run.yml:1: " in _read_fails("val: !!set {a, b}")


def test_a_key_given_twice_is_an_error_with_both_lines():
    message = _read_fails("train:\n  lr: 1\n  steps: 2\n  lr: 3\n")
    assert message == "run.yml:4: train.lr: given twice, first in line 2"


def test_a_syntax_error_names_file_and_line():
    assert _read_fails("name: run\ntrain: [1, 2\nval: 3").startswith("run.yml:3: not valid YAML: ")


def test_a_tab_is_explained():
    assert "indent with spaces" in _read_fails("train:\n\tlr: 1")


def test_keys_must_be_names():
    assert "run.yml:2: expected the name of an option, found true; quote it" in _read_fails("a: 1\non: 2")


@pytest.mark.parametrize(
    ("text", "seen"), [("", "nothing (~)"), ("- a\n- b", "the list ['a', 'b']"), ("x", "'x' (text)")]
)
def test_a_file_must_hold_options(text, seen):
    assert f"found {seen}" in _read_fails(text)


def test_every_key_and_element_has_its_line():
    places = _read("a:\n  b: 1\n  c:\n  - x\n  - y: 2\n").places
    lines = {keys: place.line for keys, place in places.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "y"): 5,
    }


def test_anchors_and_merge_keys_work():
    text = "g: &net {type: A, dim: 8}\ns: {<<: *net, type: B}\nt: *net\n"
    assert _read(text).values == {
        "g": {"type": "A", "dim": 8},
        "s": {"type": "B", "dim": 8},
        "t": {"type": "A", "dim": 8},
    }


def test_a_merged_section_that_is_used_twice_has_no_duplicates():
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: *b\n"
    assert _read(text).values["c"] == {"x": 2}


def test_an_alias_within_itself_is_refused():
    assert "contains itself" in _read_fails("a: &a [1, *a]")


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("name: run\nlr: 0x_\n", 2, "lr: looks like a whole number and is none, found '0x_' (text); put it in quotes"),
        ("name: run\nlr: !!int foo\n", 2, "lr: looks like a whole number and is none, found 'foo' (text)"),
        ("name: run\nlr: !!float foo\n", 2, "lr: looks like a number and is none"),
        ("a:\n  - !!bool foo\n", 2, "a[0]: looks like true or false and is none"),
        ("name: 2024-99-99\n", 1, "name: looks like a date and is none"),
        ("name: run\nlr: " + "9" * 5000, 2, "lr: looks like a whole number and is none, found '9999"),
        ("name: run\n!!int x: 1\n", 2, "looks like a whole number and is none"),
        ("name: run\n[a, b]: 1\n", 2, "expected the name of an option, found a list or a section"),
        ("name: run\na: " + "[" * 1000 + "]" * 1000, 2, "more than 50 nested sections or lists"),
        ("name: run\na:\n" + "".join(f"{' ' * depth}b:\n" for depth in range(1, 1000)), 51, "more than 50 nested"),
        ("a: &x 1\nb: &x 2\n", 2, "found duplicate anchor 'x'"),
        ("a: 1\nb: *x\n", 2, "found undefined alias 'x'"),
        ("name: run\nb: 'a\x00b'\n", 2, "the character U+0000 must not be in a text file"),
        ("name: run\nb: \x07\n", 2, "the character U+0007 must not be in a text file"),
        ("a: &a {x: 1}\nb: {<<: 3}\n", 2, "'<<' takes the keys of a section"),
        ("a: &a {<<: *a}\n", 1, "contains itself"),
    ],
)
def test_faults_of_yaml_are_reported_with_their_line(text, line, expected):
    message = _read_fails(text)
    assert message.startswith(f"run.yml:{line}: ")
    assert expected in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"name: run\nb: caf\xe9\n", 2, "the byte 0xe9 is not UTF-8"),
        ("name: run\n".encode("utf-16"), 1, "it is in UTF-16; save it as UTF-8"),
    ],
)
def test_other_encodings_are_reported(data, line, message):
    Path(FILE).write_bytes(data)
    with pytest.raises(OptionError) as caught:
        read_source(FILE)
    assert str(caught.value).startswith(f"run.yml:{line}: cannot be read as text: ")
    assert message in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_text():
    Path(FILE).write_bytes(b"\xef\xbb\xbfname: run\n")
    assert read_source(FILE).values == {"name": "run"}


@pytest.mark.parametrize("kind", ["lists", "sections", "merges"])
def test_a_file_that_grows_without_end_is_refused_at_once(kind):
    kinds = {"lists": ("[x,x]", "[{}]"), "sections": ("{x: 1}", "{{{}}}"), "merges": ("{x: 1}", "{{<<: [{}]}}")}
    first, wide = kinds[kind]
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 12):
        names = ", ".join(f"k{index}: *a{level - 1}" if kind == "sections" else f"*a{level - 1}" for index in range(9))
        lines.append(f"a{level}: &a{level} {wide.format(names)}")
    started = time.perf_counter()
    assert "more than 100,000 values (aliases, *name, count each time)" in _read_fails("\n".join(lines))
    assert time.perf_counter() - started < 10


def test_merged_sections_follow_the_order_of_yaml():
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}\nd: {<<: *b, <<2: 1}\n"
    values = _read(text).values
    assert values["c"] == {"x": 1, "y": 1, "z": 3}
    assert values["d"] == {"y": 2, "z": 2, "<<2": 1}


def test_what_is_no_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo("pipe.yml")
    with pytest.raises(OptionError, match="is no file"):
        read_source("pipe.yml")
    with Path(FILE).open("wb") as file:
        file.truncate(10**8)
    with pytest.raises(OptionError, match="100,000,000 bytes are no option file"):
        read_source(FILE)


def test_a_missing_file_names_the_folder_and_similar_files(tmp_path):
    Path("options").mkdir()
    Path("options/train_DiffIRS1_x4.yml").write_text("name: x")
    with pytest.raises(OptionError) as caught:
        load_options("options/train_DiffIR_S1_x4.yml")
    assert str(caught.value) == (
        f"no such option file: options/train_DiffIR_S1_x4.yml (current folder: {tmp_path}); "
        "similar files: options/train_DiffIRS1_x4.yml"
    )


def test_a_folder_is_no_option_file(tmp_path):
    with pytest.raises(OptionError, match="is a folder"):
        load_options(tmp_path)


def test_binary_files_are_refused():
    Path(FILE).write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(OptionError, match="cannot be read as text"):
        read_source(FILE)


def test_base_files_are_merged_from_the_far_to_the_near():
    Path("deep").mkdir()
    Path("deep/a.yml").write_text("x: {p: 1, q: 2, list: [1, 2, 3]}\ny: kept\nz: 1\n")
    Path("deep/b.yml").write_text("base: a.yml\nx: {q: 20, list: [9]}\nz: ~\n")
    values = _read("base: deep/b.yml\nx: {r: 3}\n").values
    assert values == {"x": {"p": 1, "q": 20, "r": 3, "list": [9]}, "y": "kept", "z": None}


def test_keys_of_a_base_keep_their_file_and_line():
    Path("a.yml").write_text("x:\n  p: 1\n  list: [1, 2]\nw: {v: 1}\n")
    places = _read("base: a.yml\nx:\n  list: [9]\nw: 3\n").places
    assert str(places["x", "p"]) == "a.yml:2"
    assert str(places["x", "list", 0]) == "run.yml:3"
    assert ("x", "list", 1) not in places
    assert ("w", "v") not in places


def test_a_problem_in_a_base_is_reported_with_the_base_and_its_line():
    load(STAGE_1)
    Path(FILE).rename("base.yml")
    Path("base.yml").write_text(Path("base.yml").read_text().replace("total_iter", "total_iters"))
    message = refusal("base: base.yml\ntrain: {ema_decay: high}\n")
    assert f"base.yml:{line_of('total_iters', file='base.yml')}: train.total_iters: unknown option" in message
    assert "run.yml:2: train.ema_decay: expected a number, found 'high' (text)" in message


def test_base_files_in_a_circle_are_an_error():
    Path("a.yml").write_text("base: b.yml\n")
    Path("b.yml").write_text("base: a.yml\n")
    with pytest.raises(OptionError, match=r"based on each other: a.yml -> b.yml -> a.yml"):
        read_source("a.yml")


def test_a_missing_base_is_reported_where_it_is_named():
    assert _read_fails("name: x\nbase: other.yml").startswith("run.yml:2: base: no such option file: other.yml")


def test_a_base_must_be_a_path():
    assert _read_fails("base: [1]") == (
        "run.yml:1: base: expected the path of an option file or a list of such, found the list [1]"
    )


def test_of_several_bases_the_later_wins_and_the_file_above_all():
    Path("a.yml").write_text("x: {p: 1, q: 1, r: 1}\ny: 1\n")
    Path("b.yml").write_text("x: {q: 2, r: 2}\nz: 2\n")
    source = _read("base: [a.yml, b.yml]\nx: {r: 3}\n")
    assert source.values == {"x": {"p": 1, "q": 2, "r": 3}, "y": 1, "z": 2}
    output = {keys: str(source.places[keys]) for keys in (("x", "p"), ("x", "q"), ("x", "r"), ("z",))}
    assert output == {("x", "p"): "a.yml:1", ("x", "q"): "b.yml:1", ("x", "r"): "run.yml:2", ("z",): "b.yml:2"}


def test_base_may_be_nothing():
    assert _read("base: ~\nname: x").values == {"name": "x"}


def test_files_read_lists_the_chain():
    Path("a.yml").write_text("x: 1\n")
    _read("base: a.yml\n")
    assert files_read(FILE) == [Path(FILE), Path("a.yml")]


def _with(*overrides, options=STAGE_1):
    return load(options, overrides=overrides).values


def test_overrides_replace_values():
    values = _with("train:total_iter=2e3", "datasets:train:batch_size_per_gpu=4", "train:scheduler:milestones=[10, 20]")
    assert values["train"]["total_iter"] == 2000
    assert values["datasets"]["train"]["batch_size_per_gpu"] == 4
    assert values["train"]["scheduler"]["milestones"] == [10, 20]


@pytest.mark.parametrize("text", ["~", "none", "None", ""])
def test_overrides_can_set_nothing(text):
    assert _with(f"val={text}")["val"] is None


def test_overrides_take_what_basicsr_takes():
    values = _with("val:save_img=True", "train:ema_decay=!!float 9e-1", "name=a=b")
    assert (values["val"]["save_img"], values["train"]["ema_decay"], values["name"]) == (True, 0.9, "a=b")


def test_overrides_make_keys_and_sections_that_the_schema_knows():
    values = _with("train:clip_grad_norm=0.5", "logger:print_freq=7")
    assert values["train"]["clip_grad_norm"] == 0.5
    assert values["logger"]["print_freq"] == 7


def test_overrides_cannot_make_unknown_keys():
    message = refusal(STAGE_1, overrides=["train:total_iters=5"])
    assert message == "--force_yml train:total_iters=5: train.total_iters: unknown option; did you mean 'total_iter'?"


def test_a_wrong_override_is_reported_as_an_override():
    message = refusal(STAGE_1, overrides=["train:total_iter=many"])
    assert message.startswith("--force_yml train:total_iter=many: train.total_iter: expected a whole number")


def test_overrides_are_not_run():
    refusal(STAGE_1, overrides=["name=[__import__('os').mkdir('made')]"])
    assert not Path("made").exists()


@pytest.mark.parametrize("entry", ["train.total_iter", "=5", "train:=5", "train::x=5"])
def test_malformed_overrides_are_explained(entry):
    assert refusal(STAGE_1, overrides=[entry]) == (
        f"--force_yml {entry}: expected section:key=value, for example train:ema_decay=0.999"
    )


def test_overrides_cannot_go_into_a_value():
    message = refusal(STAGE_1, overrides=["train:total_iter:x=5"])
    line = line_of("total_iter")
    assert message == f"--force_yml train:total_iter:x=5: train:total_iter is no section, it is 100 (run.yml:{line})"


def test_an_override_that_is_no_yaml_is_reported():
    assert refusal(STAGE_1, overrides=["name=[a"]).startswith("--force_yml name=[a: not valid YAML: ")


def test_a_key_set_to_nothing_is_nothing_and_not_removed():
    assert load(changed(TEST, {"val": {"suffix": None}})).values["val"]["suffix"] is None
