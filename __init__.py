"""ComfyUI-MagiCapture: the pack's face to ComfyUI. Nothing heavy is imported before a node runs."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI calls this once to ask for the nodes."""
    from .nodes import MagiCaptureExtension

    return MagiCaptureExtension()
