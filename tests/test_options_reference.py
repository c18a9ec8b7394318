"""The reference in docs/ and the JSON schema."""

import inspect
import json
from pathlib import Path

import pytest
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from options_cases import GAN, REAL, STAGE_1, STAGE_2, TEST, changed

from diffir_sr.options.arguments import ARGUMENTS
from diffir_sr.options.constructors import find
from diffir_sr.options.recipes import recipes_folder
from diffir_sr.options.reference import json_schema, render_reference
from diffir_sr.options.schema_data import DATASETS
from diffir_sr.options.schema_top import Options
from diffir_sr.options.schema_train import TrainOptions
from diffir_sr.options.source import read_source

DOCS = Path(__file__).parent.parent / "docs" / "options.md"


def test_the_reference_in_docs_is_up_to_date():
    assert DOCS.read_text() == render_reference(), "run: diffir options reference -o docs/options.md"


def test_every_option_is_in_the_reference():
    text = render_reference()
    for schema in (Options, TrainOptions, *DATASETS.values()):
        for name, field in schema.model_fields.items():
            assert f"| `{name}` |" in text
            assert field.description.replace("<", "\\<") in text


def test_every_argument_of_the_described_classes_is_described():
    registries = {"network": ARCH_REGISTRY, "loss": LOSS_REGISTRY, "metric": METRIC_REGISTRY}
    ours = {"vgg_path", "better", "img", "img2", "kwargs"}
    for (kind, name), sentences in ARGUMENTS.items():
        target = find(registries[kind], name)
        assert target is not None, name
        assert set(sentences) - ours == set(inspect.signature(target).parameters) - ours, name


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
