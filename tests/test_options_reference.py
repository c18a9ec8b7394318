"""The reference in docs/ and the JSON schema."""

import inspect
import json
from pathlib import Path

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from options_cases import GAN, REAL, STAGE_1, STAGE_2, TEST, changed

from diffir_sr.options.check import arguments_of
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.options.reference import datasets, json_schema, render_reference
from diffir_sr.options.schema import Options, TrainLoop, readers, top_readers
from diffir_sr.options.source import read_source

DOCS = Path(__file__).parent.parent / "docs" / "options.md"


def test_the_reference_in_docs_is_up_to_date():
    assert DOCS.read_text() == render_reference(), "run: diffir options reference -o docs/options.md"


def test_every_option_is_in_the_reference():
    text = render_reference()
    known = [(schema, name) for schema in (Options, TrainLoop) for name in schema.model_fields]
    known += [field for options in datasets().values() for field in options.known.values()]
    known += [options.known[name] for several in (readers(), top_readers()) for name, (options, _) in several.items()]
    for schema, name in known:
        assert f"| `{name}` |" in text
        assert schema.model_fields[name].description.replace("<", "\\<") in text


def test_every_argument_of_the_described_classes_is_described():
    read_before = {"vgg_path", "better", "img", "img2", "kwargs"}
    seen = 0
    for registry in (ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY):
        for name, target in registry:
            if described := arguments_of(target):
                assert set(described) - read_before == set(inspect.signature(target).parameters) - read_before, name
                seen += 1
    assert seen >= 19


def test_tables_are_whole():
    for line in render_reference().splitlines():
        if line.startswith("|"):
            columns = line.replace("\\|", "").count("|")
            assert columns in (4, 5), line


def test_the_schema_is_plain_json():
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False


def test_every_reference_in_the_schema_leads_somewhere():
    schema = json_schema()
    text = json.dumps(schema)
    for name in {part.split('"')[0] for part in text.split("#/$defs/")[1:]}:
        assert name in schema["$defs"], name


def _validator():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("options", [STAGE_1, STAGE_2, GAN, TEST, changed(STAGE_1, {"datasets.train": REAL})])
def test_the_schema_takes_right_files(options):
    assert list(_validator().iter_errors(options)) == []


def test_the_schema_takes_the_recipes():
    validator = _validator()
    for path in recipes_folder().glob("*.yml"):
        assert list(validator.iter_errors(read_source(path).values)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"nam": "x"},
        {"train.total_iters": 1},
        {"train.total_iter": "many"},
        {"datasets.train.gtsize": 1},
        {"datasets.valid": STAGE_1["datasets"]["val"]},
        {"path.pretrain": "x"},
        {"val.metric": {}},
    ],
)
def test_the_schema_refuses_wrong_files(changes):
    assert list(_validator().iter_errors(changed(STAGE_1, changes)))


def test_the_schema_lets_datasets_of_plugins_pass():
    data = {"name": "d", "type": "MyData", "anything": 1}
    assert list(_validator().iter_errors(changed(STAGE_1, {"datasets.val": data}))) == []
