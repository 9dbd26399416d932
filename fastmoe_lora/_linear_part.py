"""The linear layers that can be adapted."""

from torch import nn

from . import _carried, _checks


def linear_part(linear: nn.Linear) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias of a layer that can be adapted. Raises ValueError or TypeError for any other."""
    _checks.instance("linear", linear, nn.Linear, "an nn.Linear")
    shapes = {"weight": (linear.out_features, linear.in_features), "bias": (linear.out_features,)}
    for name, shape in shapes.items():
        parameter = getattr(linear, name)
        if parameter is None and name == "bias":
            continue
        if not isinstance(parameter, nn.Parameter) or nn.parameter.is_lazy(parameter):
            kind = type(parameter).__name__
            raise ValueError(f"linear: its {name} is a {kind}, expected a parameter that is there and not computed")
        if parameter.dtype not in _checks.FLOATS:
            raise TypeError(f"linear: its {name} is of {parameter.dtype}, expected one of {_checks.FLOATS}")
        if parameter.shape != shape:
            raise ValueError(f"linear: its {name} has shape {tuple(parameter.shape)}, expected {shape}")
    try:
        _carried.check_forward(linear)
    except ValueError as error:
        raise ValueError(f"linear: {error}") from None
    return linear.weight, linear.bias  # type: ignore[return-value] # looked through above
