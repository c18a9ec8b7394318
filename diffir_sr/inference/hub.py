"""Models as folders and as repositories of the Hugging Face Hub: `model.safetensors` and its card as `README.md`."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffir_sr.checkpoints import Weights, description, identity_of, load_network, read_weights
from diffir_sr.errors import CheckpointError, InputError
from diffir_sr.families.autodir import is_folder
from diffir_sr.families.exported import ONNX
from diffir_sr.weights.download import INSTALL_HUB, first_line, hub_module, offline
from diffir_sr.weights_files import SUFFIX, write_card_file

WEIGHTS = f"model{SUFFIX}"
README = "README.md"
_SUFFIXES = (SUFFIX, ".pth", ".pt", ".ckpt", ".onnx")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Licences that the Hub knows by these identifiers; it lists every other one as "other" with a name.
_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "unlicense", "openrail",
}  # fmt: skip


def fetched(
    source: str | os.PathLike[str],
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The weights file of a folder, or of the repository "owner/name", downloaded to the cache of the Hub.

    Without `filename` it is model.safetensors, else the only file with a suffix of weights. Without network access the
    cache is used. Raises CheckpointError if there is no such file or it cannot be downloaded, InputError if `source` is
    neither a folder nor the name of a repository.
    """
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        if filename is None and is_folder(folder):
            return folder
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        return folder / _chosen(names, filename, where=str(folder.resolve()))
    if not isinstance(source, str) or not _REPOSITORY.fullmatch(source):
        hint = "; give a file to load_restorer" if folder.is_file() else ""
        raise InputError(f"{source}: expected an existing folder, or a repository of the Hub as 'owner/name'{hint}")
    hub = _hub(source)
    how = dict(revision=revision, token=token)
    try:
        if offline():
            local = Path(hub.snapshot_download(source, local_files_only=True, **how))
            return local / _chosen(sorted(os.listdir(local)), filename, where=f"{source} in the cache of the Hub")
        names = hub.HfApi().list_repo_files(source, **how)
        return Path(hub.hf_hub_download(source, _chosen(names, filename, where=f"{source} on the Hub"), **how))
    except CheckpointError:
        raise
    except Exception as error:  # errors of many classes: its own, those of requests, of the system
        raise CheckpointError(_refused(source, error)) from error


def _chosen(names: Sequence[str], filename: str | None, *, where: str) -> str:
    if filename is not None:
        if filename in names:
            return filename
        raise CheckpointError(f"{where}: no file {filename}; it contains {', '.join(names) or 'nothing'}")
    if WEIGHTS in names:
        return WEIGHTS
    for suffix in _SUFFIXES:
        found = [name for name in names if name.endswith(suffix)]
        if len(found) > 1:
            raise CheckpointError(f"{where}: {len(found)} weights files; select one with filename: {', '.join(found)}")
        if found:
            return found[0]
    raise CheckpointError(
        f"{where}: no weights file ({', '.join(_SUFFIXES)}); it contains {', '.join(names) or 'nothing'}"
    )


def write_pretrained(weights_file: Path, folder: str | os.PathLike[str], *, name: str) -> Path:
    """Write model.safetensors and README.md of one network to `folder`; returns it.

    The tensors and the model card are those of `weights_file`, and the written file is loaded once before it gets its
    name. Raises InputError for a file that holds no tensors (ONNX, a folder), CheckpointError for an unreadable one.
    """
    if is_folder(weights_file):
        raise InputError(f"{weights_file}: a folder of several files; upload it as it is: hf upload OWNER/NAME FOLDER")
    weights = read_weights(weights_file)
    if weights.key == ONNX:
        raise InputError(f"{weights_file}: an exported network without tensors; give the weights it was exported from")
    target = Path(os.path.expanduser(folder))
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".writing-") as made:
            new = Path(made)
            write_card_file(weights.tensors, weights.card, new / WEIGHTS)
            load_network(new / WEIGHTS)
            (new / README).write_text(model_page(weights, name=name), encoding="utf-8")
            for part in (WEIGHTS, README):
                os.replace(new / part, target / part)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); choose another folder") from error
    return target


def pushed(weights_file: Path, repository: str, *, private: bool, token: str | bool | None, message: str | None) -> str:
    """Upload model.safetensors and README.md as one commit, creating the repository if needed; returns its address."""
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"{repository!r}: expected the name of a repository as 'owner/name'")
    forbidden = offline()
    if forbidden:
        raise InputError(f"{repository}: not uploaded, because {forbidden} disables network access")
    hub = _hub(repository)
    made = Path(tempfile.mkdtemp(prefix="diffir-hub-"))
    try:
        write_pretrained(weights_file, made, name=repository)
        api = hub.HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=made, commit_message=message or "Upload a model of diffir_sr"
        )
    except (CheckpointError, InputError):
        raise
    except Exception as error:  # as above
        raise InputError(_refused(repository, error)) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return str(commit.commit_url)


def _hub(repository: str) -> Any:
    hub = hub_module()
    if hub is None:
        raise InputError(f"{repository}: the Hub needs huggingface_hub, which is not installed; {INSTALL_HUB}")
    return hub


def _refused(repository: str, error: Exception) -> str:
    return f"{repository} on the Hub: {type(error).__name__}: {first_line(error)}"


def model_page(weights: Weights, *, name: str) -> str:
    """The README of a model: metadata of the Hub as YAML, the description of the network, and how to use it."""
    identity = identity_of(weights)
    card = weights.card
    task = str(identity.arguments.get("task") or card.get("task") or "")
    metadata: dict[str, Any] = {
        **_licence(str(card.get("licence") or "")),
        "library_name": "diffir_sr",
        "pipeline_tag": "image-to-image",
        "tags": ["image-restoration", identity.arch, *([task] if task else [])],
    }
    # The path of the file is private to the machine that made it.
    about = description(weights, identity).replace(str(weights.path), WEIGHTS)
    mask = ', mask="mask.png"' if task == "inpaint" else ""
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---

# {name.rpartition("/")[2]}

{identity}

```
pip install 'diffir_sr[hub]'
```

```python
from diffir_sr import Restorer

restorer = Restorer.from_pretrained({name!r})
restored = restorer("photo.png"{mask})
```

## Network and training

```
{about}
```
"""


def _licence(stated: str) -> dict[str, str]:
    if stated.lower() in ("", "not stated"):
        return {}
    return {"license": stated.lower()} if stated.lower() in _LICENCES else {"license": "other", "license_name": stated}
