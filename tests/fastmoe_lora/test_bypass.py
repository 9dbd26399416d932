"""Code that reads ``linear.weight`` instead of calling the layer: switched off, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmoe_lora import adapt, check_adapters, ramoe_layers


def attend(x, weight):
    return F.linear(x, weight)


def project(module, x):
    return F.linear(x, module.fc.weight)


def apply_to(x, layer):
    return x @ layer.weight.T


class Base(nn.Module):
    """``fc`` and a list of one layer; what subclasses do with them."""

    def __init__(self):
        super().__init__()
        self.fc, self.layers, self.bias, self.fused = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)]), None, True

    def forward(self, x):
        return self.layers[0](self.fc(x))

    def merged(self, x):
        return F.linear(x, self.fc.weight)

    def fuse(self, value):
        self.fused = value


class Argument(Base):
    def forward(self, x):
        return F.linear(x, weight=self.fc.weight)


class Handed(Base):
    def forward(self, x):
        return attend(x, self.fc.weight)


class Product(Base):
    def forward(self, x):
        return x @ self.fc.weight.t() + self.fc.bias


class Part(Base):
    def forward(self, x):
        return F.linear(x, self.fc.weight[:2])


class Alias(Base):
    def forward(self, x):
        layer = self.fc
        weight, bias = layer.weight, layer.bias
        return F.linear(x, weight, bias)


class Getattr(Base):
    def forward(self, x):
        return F.linear(x, getattr(self.fc, "weight"))  # noqa: B009


class Method(Base):
    def forward(self, x):
        return self.merged(x)


class Super(Argument):
    def forward(self, x):
        return super().forward(x) + 1


class Helper(Base):
    def forward(self, x):
        return project(self, x)


class HelperOfLayer(Base):
    def forward(self, x):
        return apply_to(x, layer=self.fc)


class Mode(Base):
    def forward(self, x):
        return self.fc(x) if self.training else F.linear(x, self.fc.weight)


class Inputs(Base):
    def forward(self, x):
        if len(x) > 1:
            return self.fc(x)
        with torch.enable_grad():
            return F.linear(x, self.fc.weight)


class Flag(Base):
    def forward(self, x):
        if not self.fused:  # `fuse` may set it later
            return F.linear(x, self.fc.weight)
        return self.fc(x)


READING = [Argument, Handed, Product, Part, Alias, Getattr, Method, Super, Helper, HelperOfLayer, Mode, Inputs, Flag]


@pytest.mark.parametrize("kind", READING)
def test_a_layer_whose_weight_is_read_is_refused_by_name_and_nothing_is_changed(kind):
    model = nn.ModuleDict({"block": kind()})
    before = dict(model.named_modules())
    with pytest.raises(
        ValueError, match=r"^rules: 'block\.fc': expected a layer that is called, but \S+ \(test_bypass"
    ):
        adapt(model, {"*": {"num_experts": 2}})
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapt(model, {"*.layers.*": {"num_experts": 2}})  # the others are not held back


class Loop(Base):
    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight) + i
        return x


class Index(Base):
    def forward(self, x):
        return F.linear(x, self.layers[-1].weight)


class Grandchild(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Base()])

    def forward(self, x):
        return F.linear(x, self.layers[0].fc.weight)


@pytest.mark.parametrize(
    ("kind", "name"), [(Loop, "layers.0"), (Index, "layers.0"), (Grandchild, "layers.0.fc")], ids=lambda v: str(v)
)
def test_reads_through_lists_and_from_further_out_are_found(kind, name):
    with pytest.raises(ValueError, match=f"^rules: '{name}': expected a layer that is called".replace(".", r"\.")):
        adapt(kind(), {name: {"num_experts": 2}})


class Asks(Base):
    def forward(self, x):
        if isinstance(self.fc.weight, torch.Tensor) and x.dtype != self.fc.weight.dtype:
            x = x.to(self.fc.weight.dtype)
        weight = self.fc.weight
        return self.fc(x.to(weight.device) + weight.new_zeros(4))


class LeftOut(Base):
    def forward(self, x):
        if torch.jit.is_scripting():
            return F.linear(x, self.fc.weight)
        if self.bias is None:
            return self.fc(x)
        return F.linear(x, self.fc.weight, self.bias)


class NeverMerged(Base):  # `merged` reads, and is not called
    def forward(self, x):
        return self.fc(x)


class ReadsAnother(Base):
    def forward(self, x):
        return self.fc(x) * self.layers[0].weight.sum()


def children(module):
    return list(module)


class LoopOfAFunction(Base):  # of the name of a method that is followed
    def forward(self, x):
        for layer in children(self.layers):
            x = layer(x)
        return self.fc(x)


@pytest.mark.parametrize("kind", [Asks, LeftOut, NeverMerged, ReadsAnother, LoopOfAFunction])
def test_a_layer_that_is_called_is_adapted(kind):
    model = adapt(kind(), {"fc": {"num_experts": 2}})
    assert check_adapters(model, torch.randn(3, 4)) == ["fc"]


@pytest.mark.parametrize("pattern", ["*.linear?", "layers.1.linear2"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_pytorchs_encoder_computes_in_inference_what_it_does_in_training(pattern, norm_first, masked):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    x = torch.randn(2, 5, 8)
    mask = torch.arange(5) >= torch.tensor([[5], [3]]) if masked else None
    kept = torch.ones(2, 5).bool() if mask is None else ~mask
    with torch.no_grad():
        before = model.eval()(x, src_key_padding_mask=mask)[kept]
    adapt(model, {pattern: {"num_experts": 2}})
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=mask)[kept], before)
        for _, adapted in ramoe_layers(model):
            nn.init.normal_(adapted.lora_B)
        served = model.eval()(x, src_key_padding_mask=mask)[kept]
        trained = model.train()(x, src_key_padding_mask=mask)[kept]
    torch.testing.assert_close(served, trained)
    assert (served - before).abs().max() > 1e-3
