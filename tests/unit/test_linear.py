"""Linear layers in runs, in integers and rotated: what they give beside float64, and who decides."""

import dataclasses

import comfy.ops
import pytest
import torch
from comfy.quant_ops import QuantizedTensor

from mulan_nodes.mulan.checkpoints import linear
from mulan_nodes.mulan.checkpoints.rotation import rotation

WIDTHS = ((256, 192), (1024, 2752))
LAYOUT = linear.INT8_LAYOUT


def quantized(rows: int, columns: int, dtype: torch.dtype = torch.float16, **options) -> QuantizedTensor:
    torch.manual_seed(rows)
    weight = (torch.randn(rows, columns) * columns**-0.5).to(dtype)
    return QuantizedTensor.from_float(weight, LAYOUT, per_channel=True, **options)


def exact(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if isinstance(weight, QuantizedTensor):
        weight = QuantizedTensor(
            weight._qdata, weight._layout_cls, dataclasses.replace(weight._params, orig_dtype=torch.float32)
        ).dequantize()
    return input.double() @ weight.double().t()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def with_outliers(rows: torch.Tensor, size: float) -> torch.Tensor:
    rows = rows.clone()
    rows[..., ::97] *= size
    return rows


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("rows", [1, 7])
def test_weights_in_runs_give_what_whole_ones_give(width, dtype, rows, monkeypatch):
    monkeypatch.setattr(linear, "RUN_ROWS", 40)  # several runs, the last one shorter
    columns, outputs = width
    torch.manual_seed(0)
    input, bias = torch.randn(rows, 3, columns), torch.randn(outputs)
    weight = (torch.randn(outputs, columns) * columns**-0.5).to(dtype)
    found = linear.linear_on_cpu(input, weight, bias, integers=False)
    assert found.shape == (rows, 3, outputs) and found.dtype == torch.float32
    assert error(found, exact(input, weight.float()) + bias.double()) < 1e-6


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", [1, linear.FEW_ROWS, linear.FEW_ROWS + 1, 300])
@pytest.mark.parametrize("size", [1.0, 60.0])
@pytest.mark.parametrize("rotated", [False, True])
def test_int8_weights_in_every_way(width, rows, size, rotated):
    columns, outputs = width
    weight = quantized(outputs, columns, **({"convrot": True, "convrot_groupsize": 64} if rotated else {}))
    torch.manual_seed(1)
    input = with_outliers(torch.randn(2, rows, columns), size)
    expected = exact(input, weight)
    assert error(linear.linear_on_cpu(input, weight, None, integers=False), expected) < 1e-6
    assert error(linear.linear_on_card(input, weight, None, integers=False), expected) < 1e-6
    most = 1e-3 if 2 * rows <= linear.FEW_ROWS else 0.012
    if linear.multiplies_exactly():
        assert error(linear.linear_on_cpu(input, weight, None, integers=True), expected) < most
    assert error(linear.linear_on_card(input, weight, None, integers=True), expected) < 1e-3
    naive = error(torch.nn.functional.linear(input.flatten(0, 1), weight).unflatten(0, (2, rows)), expected)
    assert size == 1.0 or rotated or naive > 0.02, "outliers that spoil the usual quantization of a row"


def test_what_writes_outlier_channels_is_exact():
    torch.manual_seed(3)
    weight = torch.randn(192, 256) * 256**-0.5
    weight[::50] *= 50
    quantized_weight = QuantizedTensor.from_float(weight, LAYOUT, per_channel=True)
    input = torch.randn(2, 30, 256)
    found, expected = linear.linear_on_cpu(input, quantized_weight, None, True), exact(input, quantized_weight)
    assert error(found[..., ::50], expected[..., ::50]) < 1e-6
    assert 1e-3 < error(found[..., 1:50], expected[..., 1:50]) < 0.012


@pytest.mark.parametrize("size", [1.0, 50.0], ids=["plain weight", "weight that writes outliers"])
@pytest.mark.parametrize("windows, rows", [(16, 80), (5, 80), (3, 7), (2, 600)])
def test_a_window_is_the_same_whatever_is_beside_it(windows, rows, size):
    torch.manual_seed(2)
    weight = QuantizedTensor.from_float(with_outliers(torch.randn(256, 192), size).t(), LAYOUT, per_channel=True)
    plain, loud = torch.randn(1, rows, 256), with_outliers(torch.randn(1, rows, 256), 50.0)
    alone = [linear.linear_on_cpu(window, weight, None, True) for window in (plain, loud)]
    input = torch.cat([plain, loud] * 8)[:windows]
    together = linear.linear_on_cpu(input, weight, None, True)
    assert torch.equal(input[:2], torch.cat([plain, loud])), "the input is not written to"
    for index, window in enumerate(together):  # products in float32 may differ in the last bit
        expected = alone[index % 2]
        assert (window[None] - expected).abs().max() < 1e-6 * expected.abs().max()


def test_the_rotation_is_comfyui_s():
    weight = torch.randn(64, 512)
    turned = QuantizedTensor.from_float(weight, LAYOUT, per_channel=True, convrot=True, convrot_groupsize=256)
    by_us = (weight.unflatten(1, (-1, 256)) @ rotation(256)).flatten(1)
    assert (turned._qdata * turned._params.scale - by_us).abs().max() < turned._params.scale.max()
    assert torch.allclose(rotation(64) @ rotation(64), torch.eye(64), atol=1e-6)


def test_the_layer_takes_the_way_that_its_situation_asks_for(monkeypatch):
    ways = []
    monkeypatch.setattr(linear, "multiplies_integers", lambda: True)
    monkeypatch.setattr(linear, "linear_on_cpu", lambda input, weight, bias, integers: ways.append(integers) or input)
    for exact_wanted, expected in ((False, [True]), (True, [False])):
        ways.clear()
        layer = linear.operations_for(torch.float16, exact_wanted).Linear(256, 192, bias=False)
        layer.weight = torch.nn.Parameter(quantized(192, 256), requires_grad=False)
        assert ("integers" in layer.arithmetic) != exact_wanted
        layer(torch.randn(2, 256))
        assert ways == expected
    ways.clear()
    layer = linear.operations_for(None).Linear(256, 192, bias=False, dtype=torch.float16)
    layer(torch.randn(2, 256))
    assert ways == [False], "half precision, turned in runs"
    layer.weight_function = [lambda weight: weight]
    with torch.no_grad():
        layer(torch.randn(2, 256))
    assert ways == [False], "a LoRA that is added when the weight is used goes ComfyUI's way"


def test_integers_need_products_that_are_exact(monkeypatch):
    """A CPU without the instructions holds sums of two products in 16 bits."""
    monkeypatch.setattr(linear.platform, "machine", lambda: "x86_64")
    product = linear._int_mm
    monkeypatch.setattr(linear, "_int_mm", lambda a, b: product(a, b) - 1)
    assert linear.multiplies_integers() is False
    monkeypatch.setattr(linear, "_int_mm", product)
    monkeypatch.setattr(linear.platform, "machine", lambda: "arm64")
    assert linear.multiplies_integers() is False


def test_integers_need_products_that_are_fast(monkeypatch):
    """Some CPUs without the instructions are right, and 25 times as slow."""
    monkeypatch.setattr(linear.platform, "machine", lambda: "x86_64")
    seconds = {"integers": 0.0, "floats": 0.0}

    def product(a, b):
        spent[0] += seconds["integers"]
        return a.int() @ b.int()

    spent = [0.0]
    monkeypatch.setattr(linear, "_int_mm", product)
    monkeypatch.setattr(linear, "_seconds", lambda work: _spent(work, spent, seconds["floats"]))
    for integers, expected in ((0.4, True), (2.0, True), (8.0, False), (25.0, False)):
        seconds.update(integers=integers, floats=1.0)
        assert linear.multiplies_integers() is expected


def _spent(work, spent, floats) -> float:
    spent[0] = 0.0
    work()
    return spent[0] or floats


def test_stop_is_heard_between_layers(monkeypatch):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    monkeypatch.setattr(comfy.ops, "run_every_op", stop)
    layer = linear.operations_for(None).Linear(256, 192, bias=False, dtype=torch.float16)
    with pytest.raises(Stopped):
        layer(torch.randn(2, 256))


@pytest.mark.parametrize("integers", [False, True])
def test_what_is_not_finite_stays_so(integers):
    weight = quantized(192, 256)
    input = torch.randn(1, 20, 256)
    input[0, 3, 5] = torch.inf
    input[0, 4, 6] = torch.nan
    found = linear.linear_on_cpu(input, weight, None, integers and linear.multiplies_exactly())
    assert not found[0, 3].isfinite().any() and not found[0, 4].isfinite().any()


@pytest.mark.parametrize("sent", [quantized(192, 256), torch.randn(192, 256).half()], ids=["quantized", "made float"])
def test_what_comfyui_sends_to_a_card_is_used_as_it_comes(sent, monkeypatch):
    """Patches make a quantized weight float on its way there."""
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lambda *_, **__: (sent, None, None))
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *_: None)
    layer = linear.operations_for(torch.float16).Linear(256, 192, bias=False)
    waiting = quantized(192, 256)
    waiting = QuantizedTensor(waiting._qdata.to("meta"), LAYOUT, waiting._params)  # elsewhere than the input
    layer.weight = torch.nn.Parameter(waiting, requires_grad=False)
    input = torch.randn(7, 256)
    assert error(layer(input), exact(input, sent)) < 1e-3


def test_training_goes_through(monkeypatch):
    """Rows of a weight are overwritten by the next ones: a gradient needs ComfyUI's way."""
    monkeypatch.setattr(linear, "RUN_ROWS", 40)
    layer = linear.operations_for(None).Linear(256, 192, bias=False, dtype=torch.float16)
    torch.nn.init.normal_(layer.weight.requires_grad_(False))
    input = torch.randn(3, 256, requires_grad=True)
    layer(input).sum().backward()
    assert torch.allclose(input.grad, layer.weight.float().sum(0).expand(3, -1), rtol=1e-4, atol=1e-3)
