import subprocess
import sys

import pytest

from unistd.model import torchvision_ops


def test_open_clip_and_timm_can_be_imported_afterwards():
    """In a process of its own: the operators are part of the process, and other tests need them too."""
    code = (
        "from unistd.model.torchvision_ops import define_missing_ops as define\n"
        "define()\n"
        "assert define() == (), 'nothing is missing the second time'\n"
        "import open_clip, timm, torch\n"
        "assert torch.ops.torchvision.nms.default and torch.ops.torchvision.qnms.default\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def schemas(monkeypatch):
    """Two operators with names of their own in place of torchvision's."""
    monkeypatch.setattr(torchvision_ops, "_load_extension", lambda: True)

    def use(*names):
        monkeypatch.setattr(torchvision_ops, "_SCHEMAS", {name: f"{name}(Tensor x) -> Tensor" for name in names})

    return use


def test_only_what_is_missing_is_defined(schemas):
    schemas("test_first")
    assert torchvision_ops.define_missing_ops() == ("test_first",)
    schemas("test_first", "test_second")
    assert torchvision_ops.define_missing_ops() == ("test_second",)
    assert torchvision_ops.define_missing_ops() == ()


def test_without_torchvision_nothing_is_defined(monkeypatch):
    monkeypatch.setattr(torchvision_ops.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torchvision_ops, "_SCHEMAS", {"test_third": "test_third(Tensor x) -> Tensor"})
    assert torchvision_ops.define_missing_ops() == ()
