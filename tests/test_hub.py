"""Models as folders and repositories of the Hub, which a fake of its client stands for."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from pictures import SMALL, photo, write_network
from safetensors.torch import save_model

from diffir_sr import Restorer, load_restorer
from diffir_sr.archs.diffir_arch import DiffIRS2
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.weights_files import read_card_file, write_card_file

hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder per repository in place of the Hub, and the commits that it received."""
    root, commits = tmp_path / "server", []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def list_repo_files(self, repository, *, revision=None, token=None):
            if not (root / repository).is_dir():
                raise OSError(f"404: {repository} was not found\nRequest ID: 1")
            return sorted(path.name for path in (root / repository).iterdir())

        def create_repo(self, repository, *, private=None, exist_ok=False):
            (root / repository).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            commits.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir()), self.token))
            return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/{len(commits)}")

    for name in ("DIFFIR_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, file, **_: str(root / repository / file))
    return SimpleNamespace(root=root, commits=commits)


def front_matter(readme):
    _, metadata, text = readme.read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_what_is_pushed_restores_the_same_and_carries_its_card(server):
    network = DiffIRS2(**SMALL, prediction="eps")
    write_card_file(
        network.state_dict(), {"prediction": "eps", "licence": "CC0-1.0", "name": "mine"}, "net.safetensors"
    )
    restorer = load_restorer("net.safetensors")
    assert restorer.push_to_hub("owner/mine", token="secret") == "https://hub.example/owner/mine/commit/1"
    assert server.commits == [("owner/mine", ["README.md", "model.safetensors"], "secret")]
    again = Restorer.from_pretrained("owner/mine", device="cpu", seed=3)
    assert again.network.diffusion.prediction == "eps"
    assert np.array_equal(again(photo()), restorer(photo(), seed=3))
    metadata, text = front_matter(server.root / "owner/mine/README.md")
    assert metadata["license"] == "cc0-1.0"
    assert metadata["library_name"] == "diffir_sr"
    assert metadata["pipeline_tag"] == "image-to-image"
    assert {"image-restoration", "DiffIRS2", "sr"} <= set(metadata["tags"])
    assert "Restorer.from_pretrained('owner/mine')" in text
    assert "name: mine" in text
    assert "net.safetensors" not in text.replace("model.safetensors", "")


@pytest.mark.parametrize(("licence", "expected"), [("not stated", {}), ("Mine 2", {"license_name": "Mine 2"})])
def test_a_folder_of_a_pth_file(licence, expected):
    network = DiffIRS2(task="inpaint", **SMALL)
    write_card_file(network.state_dict(), {"licence": licence}, "net.safetensors")
    load_restorer("net.safetensors").save_pretrained("saved")
    metadata, text = front_matter(Path("saved/README.md"))
    assert {name: value for name, value in metadata.items() if name == "license_name"} == expected
    assert metadata.get("license") == ("other" if expected else None)
    assert 'mask="mask.png"' in text
    assert sorted(path.name for path in Path("saved").iterdir()) == ["README.md", "model.safetensors"]
    assert read_card_file(Path("saved/model.safetensors"))[1] == {"licence": licence}
    assert Restorer.from_pretrained("saved").takes_mask


def test_weights_in_any_folder_and_shared_tensors_left_out(server):
    restorer = load_restorer(write_network())
    folder = server.root / "owner/shared"
    folder.mkdir(parents=True)
    save_model(restorer.network, str(folder / "any.safetensors"))
    for source in ("owner/shared", folder):
        assert np.array_equal(Restorer.from_pretrained(source)(photo()), restorer(photo()))
    shutil.copy("net.pth", folder / "net.pth")
    assert Restorer.from_pretrained("owner/shared", filename="net.pth").scale == 4
    shutil.copy(folder / "any.safetensors", folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"2 weights files; select one with filename: any.saf.*, other"):
        Restorer.from_pretrained("owner/shared")


def test_without_network_the_cache_is_used(monkeypatch, tmp_path):
    load_restorer(write_network()).save_pretrained(tmp_path / "cached")
    asked = []

    def snapshot(repository, **how):
        asked.append((repository, how["local_files_only"]))
        return str(tmp_path / "cached")

    monkeypatch.setenv("DIFFIR_OFFLINE", "1")
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert Restorer.from_pretrained("owner/mine").scale == 4
    assert asked == [("owner/mine", True)]
    with pytest.raises(InputError, match="not uploaded, because DIFFIR_OFFLINE=1"):
        load_restorer("net.pth").push_to_hub("owner/mine")


def test_impossible_requests_are_reported_in_one_sentence(server):
    Path("empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: no weights file .*; it contains nothing"):
        Restorer.from_pretrained("empty")
    with pytest.raises(InputError, match="expected an existing folder, or a repository"):
        Restorer.from_pretrained("../a/b")
    with pytest.raises(CheckpointError, match=r"^owner/absent on the Hub: OSError: 404: owner/absent was not found$"):
        Restorer.from_pretrained("owner/absent")
    file = write_network()
    with pytest.raises(InputError, match="expected an existing folder.*give a file to load_restorer"):
        Restorer.from_pretrained(file)
    for restorer in (load_restorer([file, file]), Restorer(DiffIRS2(**SMALL))):
        with pytest.raises(InputError, match="not loaded from one weights file"):
            restorer.push_to_hub("owner/mine")
    with pytest.raises(InputError, match="as 'owner/name'"):
        load_restorer(file).push_to_hub("mine")
    Path("file").touch()
    with pytest.raises(InputError, match="file/x: cannot be written"):
        load_restorer(file).save_pretrained("file/x")
    assert not server.commits
    assert torch.load(file)  # untouched
