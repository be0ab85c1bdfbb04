"""Other people's image networks as they are shared: one file in, one spandrel descriptor out.

A descriptor is the network with what must be known to call it: `.model`, `.scale`, `.purpose`, `.input_channels`,
`.device`. Knows nothing of faces or tiles.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import read_weights
from .types import MagiCaptureError


def load_descriptor(path: str | Path, device: str = "cpu") -> Any:
    """A .pth or .safetensors file -> spandrel's ImageModelDescriptor in fp32, in evaluation mode.

    Only tensors are read: safetensors, or torch's unpickler with weights_only, which runs nothing that is in the file.
    The architecture is recognised by the names and shapes of the tensors. CodeFormer is among those known where the
    package spandrel_extra_arches is installed; its licence forbids commercial use, so it is never installed by us.
    Raises MagiCaptureError for a missing or broken file and for an unknown architecture.
    """
    from spandrel import MAIN_REGISTRY, ImageModelDescriptor, ModelLoader, UnsupportedModelError

    path = Path(path)
    registry = MAIN_REGISTRY.copy()  # ComfyUI adds to the registry itself, and adding twice is an error
    with suppress(ImportError):
        from spandrel_extra_arches import EXTRA_REGISTRY  # pyright: ignore[reportMissingImports]

        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    if path.suffix not in (".pth", ".safetensors"):
        raise MagiCaptureError(f"{path.name}: model files end in .pth or .safetensors")
    if not path.is_file():
        raise MagiCaptureError(f"{path}: there is no such file")
    weights = read_weights(path)
    try:
        descriptor = ModelLoader(device, registry).load_from_state_dict(weights)
    except UnsupportedModelError:
        raise MagiCaptureError(
            f"{path.name}: an unknown kind of network. Face restorers are GFPGAN and RestoreFormer, and CodeFormer "
            "where the package spandrel_extra_arches is installed (not for commercial use); upscalers are Real-ESRGAN "
            "and its relatives"
        ) from None
    except Exception:  # names of a known architecture, and not its shapes, or not all: then anything may be raised
        raise MagiCaptureError(
            f"{path.name}: not the layers that its architecture should have. GFPGAN 1.0 files are like this: take "
            "GFPGANv1.3.pth or GFPGANv1.4.pth"
        ) from None
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.input_channels != 3:
        raise MagiCaptureError(f"{path.name}: does not take one colour picture; choose another model")
    return descriptor.eval()
