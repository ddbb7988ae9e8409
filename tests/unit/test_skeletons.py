"""Skeletons: UniKPT's names and order, its bones where it has some, and bones that hold the others together."""

from __future__ import annotations

import hashlib

import pytest

from mulan_nodes.visionllm_nodes.detections import pose_keypoint, skeletons

# Digests of the keypoint names in their order and of the sorted bones in IDEA-Research/X-Pose's predefined_keypoints.py
# (typographic apostrophes, outer spaces and the points named "none" apart); None: it has no bones
PUBLISHED = {
    "person, 17 (COCO)": ("2880b4b1", "6cd48358"),
    "face, 68 (300W)": ("77b5af20", None),
    "hand, 21": ("e80ec2f1", None),
    "animal, 23 (Animal Kingdom)": ("17027579", "975552e8"),
    "animal, 17 (AP-10K)": ("8c74b380", "d97b40b8"),
    "animal face, 9 (AnimalWeb)": ("43bc9f31", None),
    "fly, 32 (Vinegar Fly)": ("c8639e37", "7db1b6e1"),
    "locust, 35 (Desert Locust)": ("c814f4bb", "ab2b08ec"),
    "car, 12 (CarFusion)": ("50800b40", "1092ae28"),
    "short sleeved shirt, 25 (DeepFashion2)": ("bbe1d257", None),
    "long sleeved outwear, 39 (DeepFashion2)": ("441f6816", None),
    "short sleeved outwear, 31 (DeepFashion2)": ("3a4b31ec", None),
    "sling, 15 (DeepFashion2)": ("89f098b9", None),
    "vest, 15 (DeepFashion2)": ("89f098b9", None),
    "long sleeved dress, 37 (DeepFashion2)": ("e10b8431", None),
    "long sleeved shirt, 33 (DeepFashion2)": ("ea0330d4", None),
    "trousers, 14 (DeepFashion2)": ("7814f3ae", None),
    "sling dress, 19 (DeepFashion2)": ("a2a6617a", None),
    "vest dress, 19 (DeepFashion2)": ("a2a6617a", None),
    "skirt, 8 (DeepFashion2)": ("064e9509", None),
    "short sleeved dress, 29 (DeepFashion2)": ("c01f4d28", None),
    "shorts, 10 (DeepFashion2)": ("9c5a03e9", None),
    "table, 8 (Keypoint-5)": ("97fdc9f0", None),
    "chair, 10 (Keypoint-5)": ("16f6cc59", None),
    "bed, 10 (Keypoint-5)": ("5e6662b1", None),
    "sofa, 14 (Keypoint-5)": ("df117285", None),
    "swivelchair, 13 (Keypoint-5)": ("18672be9", None),
}
SAME_AS = {"macaque, 17 (MacaquePose)": "person, 17 (COCO)"}
NOT_THERE = {"person, 14 (CrowdPose)"}


def digest(lines) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def test_every_preset_of_upstream_is_here():
    assert skeletons.PRESETS.keys() == PUBLISHED.keys() | SAME_AS.keys() | NOT_THERE


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *SAME_AS}))
def test_names_order_and_bones_are_the_published_ones(name):
    skeleton = skeletons.PRESETS[name]
    names, bones = PUBLISHED[SAME_AS.get(name, name)]
    assert digest(skeleton.keypoints) == names
    ends = [sorted((skeleton.keypoints[a], skeleton.keypoints[b])) for a, b in skeleton.bones]
    assert bones in (None, digest(sorted(map(" - ".join, ends))))


@pytest.mark.parametrize("name", skeletons.PRESETS)
def test_bones_join_all_points_of_a_preset(name):
    skeleton = skeletons.PRESETS[name]
    count = len(skeleton.keypoints)
    assert str(count) in name and len({*skeleton.keypoints}) == count <= 68
    assert {index for bone in skeleton.bones for index in bone} == {*range(count)}
    pairs = {frozenset(bone) for bone in skeleton.bones}
    assert len(pairs) == len(skeleton.bones) and all(len(pair) == 2 for pair in pairs)
    assert {frozenset(bone) for bone in skeletons.bones_of(skeleton.keypoints)} == pairs


@pytest.mark.parametrize("name", skeletons.PRESETS)
def test_what_openpose_has_no_place_for_is_refused(name):
    """A fly has a neck, and is no person."""
    skeleton = skeletons.PRESETS[name]
    points = [{"name": point, "x": 5.0, "y": 5.0, "score": 1.0} for point in skeleton.keypoints]
    found = {"label": skeleton.object, "score": 1.0, "box": {"x": 0, "y": 0, "width": 9, "height": 9}}
    frame = {"width": 9, "height": 9, "objects": [found | {"keypoints": points}], "skeleton": []}
    if name.split(" (")[-1].rstrip(")") in ("COCO", "CrowdPose", "AP-10K", "300W", "hand, 21", "MacaquePose"):
        (pose,) = pose_keypoint.to_pose_keypoint([frame])
        assert len(pose["people"]) + len(pose.get("animals", ())) == 1
    else:
        with pytest.raises(ValueError, match="none of the keypoints belongs to OpenPose"):
            pose_keypoint.to_pose_keypoint([frame])
