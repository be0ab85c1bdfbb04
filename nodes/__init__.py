"""The nodes: sockets in, one call into the core, sockets out. The only place that imports ComfyUI.

One file per stage, in the order of the data; each ends with the list of its nodes.
"""

from comfy_api.latest import ComfyExtension, io

from . import (
    artifact,
    attention,
    concepts,
    group,
    masks,
    models,
    objects,
    photos,
    recognition,
    regions,
    restore,
    restore_identity,
    sample,
    save,
    sefi_identity,
    sefi_train,
    settings,
    sweep,
    train,
)
from .folders import register_models

STAGES = (
    photos,
    masks,
    settings,
    concepts,
    train,
    artifact,
    sefi_train,
    sefi_identity,
    sample,
    sweep,
    regions,
    group,
    attention,
    restore,
    restore_identity,
    recognition,
    objects,
    models,
    save,
)


class MagiCaptureExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_models()
        return [node for stage in STAGES for node in stage.NODES]
