"""What the face tests stand on: the networks, and one photo with one face. And trainings look at themselves briefly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magicapture_core.faces import FaceDetector, load_face_detector
from magicapture_core.types import MagiCaptureError


@pytest.fixture(autouse=True)
def short_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magicapture_core.watch.NUM_STEPS", 2)


@pytest.fixture(scope="session")
def detector() -> FaceDetector:
    try:
        return load_face_detector()
    except MagiCaptureError as error:
        pytest.skip(f"face networks: {error}")


@pytest.fixture(scope="session")
def astronaut() -> Tensor:
    """[3,512,512]: NASA's portrait of Eileen Collins, in the public domain. Her face is about 105 pixels high."""
    from skimage import data

    return torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
