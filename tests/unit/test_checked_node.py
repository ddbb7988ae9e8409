"""What `execute` and `validate_inputs` of every node get, whatever is connected or sent."""

from __future__ import annotations

import inspect

import folder_paths
import numpy as np
import pytest
import torch
from comfy import model_management
from comfy_api.latest import io

from mulan_nodes.mulan.boundary import interrupts
from mulan_nodes.nodes.checked_node import CheckedNode
from mulan_nodes.nodes.node_list import NODES as OURS
from mulan_nodes.visionllm_nodes.detections.segs import to_segs
from mulan_nodes.visionllm_nodes.node_list import NODES as VISIONLLM

ALL = [*OURS, *VISIONLLM]
INF, NAN = float("inf"), float("nan")


class Echo(CheckedNode):
    """Returns what it got."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Echo",
            inputs=[
                io.Image.Input("image", optional=True),
                io.Mask.Input("mask", optional=True),
                io.String.Input("text", optional=True),
                io.Int.Input("count", min=1, max=2**64 - 1, optional=True),
                io.Float.Input("threshold", min=0.0, max=1.0, optional=True),
                io.Combo.Input("kind", options=["a", "b"], optional=True),
                io.Clip.Input("clip", optional=True),
                io.Model.Input("needed"),
                io.Autogrow.Input(
                    "images", template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=["image_1"], min=0)
                ),
            ],
        )

    @classmethod
    def execute(cls, **values):
        return values

    @classmethod
    def validate_inputs(cls, text, count, kind="a"):
        return text, count, kind


class EchoLists(Echo):
    @classmethod
    def define_schema(cls):
        schema = Echo.define_schema()
        schema.is_input_list = True
        return schema


class EchoFiles(Echo):
    files = ("kind",)


class Several(Echo):
    @classmethod
    def validate_inputs(cls, text, kind):
        return [text, True, kind]


def got(**values):
    (value,) = Echo.execute(**values).values()
    return value


def error(**values) -> str:
    with pytest.raises(ValueError) as raised:
        Echo.execute(**values)
    return str(raised.value)


IMAGE = torch.rand(2, 8, 9, 3)


@pytest.mark.parametrize(
    "value, expected",
    {
        "float32": (IMAGE, IMAGE),
        "float16": (IMAGE.half(), IMAGE.half().float()),
        "float64": (IMAGE.double(), IMAGE),
        "one image": (IMAGE[0], IMAGE[:1]),
        "transparent": (torch.ones(1, 8, 9, 4), torch.ones(1, 8, 9, 4)),
        "gray": (IMAGE[..., :1], IMAGE[..., :1].expand(2, 8, 9, 3)),
        "not contiguous": (IMAGE.movedim(-1, 1).contiguous().movedim(1, -1), IMAGE),
        "requires grad": (IMAGE.clone().requires_grad_(), IMAGE),
    }.values(),
)
def test_images_come_in_one_form(value, expected):
    assert torch.equal(got(image=value), expected) and got(image=value).dtype == torch.float32
    assert not got(image=value).requires_grad


@pytest.mark.parametrize(
    "value, words",
    {
        "empty": (IMAGE[:0], "the batch is empty"),
        "gray without channels": (torch.rand(5, 8, 9), "shape [5, 8, 9]"),
        "channels first": (torch.rand(1, 3, 8, 9), "channels come first"),
        "one with channels first": (torch.rand(3, 8, 9), "shape [3, 8, 9]"),
        "16 channels": (torch.rand(1, 8, 9, 16), "shape [1, 8, 9, 16]"),
        "2 channels": (torch.rand(1, 8, 9, 2), "shape [1, 8, 9, 2]"),
        "five dimensions": (torch.rand(1, 1, 8, 9, 3), "shape [1, 1, 8, 9, 3]"),
        "a number": (torch.tensor(1.0), "shape []"),
        "uint8": (torch.ones(1, 8, 9, 3, dtype=torch.uint8), "got uint8. Divide them by 255"),
        "bool": (torch.ones(1, 8, 9, 3, dtype=torch.bool), "got bool"),
        "0 to 255": (torch.full((1, 8, 9, 3), 255.0), "values up to 255"),
        "NaN": (torch.full((1, 8, 9, 3), NAN), "contain NaN or infinity"),
        "complex": (torch.ones(1, 8, 9, 3, dtype=torch.complex64), "no plain numbers (complex64)"),
        "sparse": (torch.ones(1, 8, 9, 3).to_sparse(), "no plain numbers (sparse_coo)"),
        "meta": (torch.ones(1, 8, 9, 3, device="meta"), "no plain numbers (meta)"),
        "quantized": (torch.quantize_per_tensor(torch.ones(1, 8, 9, 3), 0.1, 0, torch.quint8), "(quint8)"),
        "no height": (torch.rand(1, 0, 9, 3), "9 x 0 pixels"),
        "too large": (torch.empty(1).expand(1, 2**14, 2**14, 3), "16384 x 16384 pixels, and at most 134217728"),
        "numpy": (np.ones((1, 8, 9, 3)), "a value of type ndarray"),
        "list": ([1], "a value of type list"),
        "text": ("x", "a value of type str"),
    }.values(),
)
def test_what_is_no_image_is_refused(value, words):
    message = error(image=value)
    assert message.startswith("image: ") and words in message


@pytest.mark.parametrize(
    "value, expected",
    {
        "float32": (IMAGE[..., 0], IMAGE[..., 0]),
        "one mask": (IMAGE[0, ..., 0], IMAGE[:1, ..., 0]),
        "channel first": (IMAGE[..., 0][:, None], IMAGE[..., 0]),
        "channel last": (IMAGE[..., :1], IMAGE[..., 0]),
        "bool": (IMAGE[..., 0] > 0.5, (IMAGE[..., 0] > 0.5).float()),
        "0 to 255": (torch.tensor([[[0, 255]]], dtype=torch.uint8), torch.tensor([[[0.0, 1.0]]])),
        "0 and 1": (torch.tensor([[[0, 1]]], dtype=torch.uint8), torch.tensor([[[0.0, 1.0]]])),
        "none": (torch.ones(0, 8, 9), torch.ones(0, 8, 9)),
    }.values(),
)
def test_masks_come_in_one_form(value, expected):
    assert torch.equal(got(mask=value), expected) and got(mask=value).dtype == torch.float32


@pytest.mark.parametrize(
    "value, words",
    [
        (torch.ones(1, 3, 8, 9), "shape [1, 3, 8, 9]"),
        (torch.tensor(1.0), "shape []"),
        (torch.ones(8, 9, 3), "which is an image"),
        (torch.full((1, 8, 9), INF), "contain NaN or infinity"),
        (torch.ones(1, 8, 0), "0 x 8 pixels"),
        (None, None),
        ({}, "a value of type dict"),
        ([None], "a value of type list"),
    ],
)
def test_what_is_no_mask_is_refused(value, words):
    if words is None:
        assert Echo.execute(mask=value) == {}  # optional: the default of `execute` stands
    else:
        assert error(mask=value).startswith("mask: ") and words in error(mask=value)


def test_texts_are_whole_characters_without_byte_order_marks():
    assert got(text="\ufeffa\ud83d\ude00b\ud83dc") == "a😀b\ufffdc"
    assert got(text=12) == "12"
    assert "a value of type list" in error(text=["a"])
    assert "a value of type int" in error(text=10**5000)
    assert "2000000 characters, and at most 1048576" in error(text="x" * 2_000_000)


@pytest.mark.parametrize(
    "value", [0, -1, 2**64, 1.5, NAN, INF, "7", None.__class__, [1], torch.ones(2), 10**5000], ids=lambda _: ""
)
def test_what_is_no_whole_number_in_range_is_refused(value):
    assert error(count=value).startswith("count: expected a whole number from 1 to 18446744073709551615, got ")


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, -INF, "0.5", {}, np.ones(3)])
def test_what_is_no_number_in_range_is_refused(value):
    assert error(threshold=value).startswith("threshold: expected a number from 0.0 to 1.0, got ")


def test_numbers_of_any_kind_are_numbers():
    assert got(count=2**64 - 1) == 2**64 - 1
    assert got(count=3.0) == 3 and isinstance(got(count=3.0), int)
    assert got(threshold=1) == 1.0 and isinstance(got(threshold=1), float)
    assert got(threshold=np.float32(0.5)) == got(threshold=torch.tensor(0.5)) == 0.5


def test_choices_and_models():
    assert got(kind="b") == "b"
    assert error(kind="c") == "kind: 'c' is not one of a, b"
    assert error(kind=["a"]).startswith("kind: ")
    assert EchoFiles.execute(kind="gone") == {"kind": "gone"}  # the node itself looks for it
    with pytest.raises(ValueError, match="^kind: expected a text, got a value of type dict"):
        EchoFiles.execute(kind={"a": 1})
    assert error(needed="x") == "needed: expected a MODEL, got a value of type str"
    assert error(needed=None).startswith("needed: expected a MODEL, got nothing (None)")
    assert "a value of type int" in error(clip=1)


def test_errors_hold_whole_characters_only():
    """ComfyUI's log cannot be written with half ones, and its queue would stop for good."""

    class Fails(Echo):
        @classmethod
        def execute(cls, **values):
            raise OSError("no \udcff.png in \ud83d")

        @classmethod
        def validate_inputs(cls, text):
            return "no \udcff.png"

    with pytest.raises(ValueError, match="^no \ufffd.png in \ufffd$") as raised:
        Fails.execute(text="a")
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert Fails.validate_inputs(text="a") == "no \ufffd.png"


def test_growing_and_list_inputs_are_checked_one_by_one():
    assert torch.equal(got(images={"image_1": IMAGE[0]})["image_1"], IMAGE[:1])
    assert error(images={"image_1": 3}).startswith("image_1: expected images")
    assert EchoLists.execute(text=["a\ufeff", 1], count=[2]) == {"text": ["a", "1"], "count": [2]}
    assert EchoLists.execute(image=[None], text=None) == {}
    with pytest.raises(ValueError, match="^count: "):
        EchoLists.execute(count=[1, 0])


def test_validation_leaves_to_comfyui_what_comfyui_reports():
    assert Echo.validate_inputs() == (None, None, "a")
    assert Echo.validate_inputs(text=["a", "b", "c"], count={"a": 1}) == (None, None, "a")
    assert Echo.validate_inputs(text="\ufeffx", count=2, kind="b") == ("x", 2, "b")
    assert EchoLists.validate_inputs(text=(None,), kind=[["a", "b", "c"]]) == ([None], [None], [None])
    assert inspect.getfullargspec(Echo.validate_inputs).args == ["cls", "text", "count", "kind"]


def test_validation_leaves_stop_to_the_prompt_that_runs(monkeypatch):
    monkeypatch.setattr(interrupts, "INTERVAL", 0.0)

    class Loops(Echo):
        @classmethod
        def execute(cls, **values):
            return sum(interrupts.interruptible(range(9)))

        @classmethod
        def validate_inputs(cls, text):
            return sum(interrupts.interruptible(range(9)))

    try:
        model_management.interrupt_current_processing(True)
        assert Loops.validate_inputs(text="a") == 36 and model_management.processing_interrupted()
        with pytest.raises(model_management.InterruptProcessingException):
            Loops.execute(text="a")
    finally:
        model_management.interrupt_current_processing(False)


@pytest.mark.parametrize("node", ALL, ids=lambda node: node.__name__)
def test_every_node_is_checked(node, monkeypatch):
    """Also what validation says where nothing at all is given: ComfyUI's own words come first."""
    for kind in ("mulan", "internvl", "internvl_chat", "visionllm"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([], set()))
    assert issubclass(node, CheckedNode)
    ids = {given.id for given in node.define_schema().inputs}
    assert set(node.files) <= ids
    if "validate_inputs" in node.__dict__:
        node.validate_inputs()


def test_all_problems_are_told():
    assert Several.validate_inputs(text=True, kind=True) is True
    assert Several.validate_inputs(text="text: empty", kind=True) == "text: empty"
    assert Several.validate_inputs(text="text: empty\ud800", kind="kind: new") == "text: empty\ufffd\nkind: new"


def test_what_is_returned_lies_where_comfyui_s_nodes_put_theirs(monkeypatch):
    monkeypatch.setattr(model_management, "intermediate_device", lambda: torch.device("meta"))
    monkeypatch.setattr(model_management, "intermediate_dtype", lambda: torch.float16)
    states, images = torch.ones(1, 77, 8), torch.ones(1, 4, 4, 3)

    class Returns(Echo):
        @classmethod
        def define_schema(cls):
            kinds = (io.Image, io.Mask, io.Conditioning, io.SEGS, io.String)
            outputs = [kind.Output(is_output_list=kind is io.Conditioning) for kind in kinds]
            return io.Schema(node_id="Returns", inputs=[], outputs=outputs)

        @classmethod
        def execute(cls, **values):
            conditioning = [[states, {"pooled_output": states, "strength": 0.5, "tokens": torch.ones(2).long()}]]
            segs = (4, 4), [to_segs(images[0], [{"x": 0, "y": 0, "width": 2, "height": 2}])[1][0]]
            return io.NodeOutput(images, images[..., 0], [conditioning, conditioning], segs, states)

    image, mask, (conditioning, _), (size, (seg,)), text = Returns.execute().args
    assert all(
        (value.device.type, value.dtype) == ("meta", torch.float16) for value in (image, mask, seg.cropped_image)
    )
    ((context, extras),) = conditioning
    assert {context.device.type, extras["pooled_output"].device.type, extras["tokens"].device.type} == {"meta"}
    assert context.dtype == torch.float32 and extras["tokens"].dtype == torch.int64 and extras["strength"] == 0.5
    assert size == (4, 4) and seg.crop_region == [0, 0, 4, 4] and isinstance(seg.cropped_mask, np.ndarray)
    assert text is states
