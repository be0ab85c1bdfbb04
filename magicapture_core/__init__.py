"""The method: torch in, torch out. Knows nothing of ComfyUI, prints nothing, downloads nothing by itself."""

__version__ = "0.1.0"
