"""The terminal's door for a Python that does not look into the current folder, such as ComfyUI's Windows portable one.

`python cli.py COMMAND` takes the same commands as `python -m magicapture_core COMMAND`.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).absolute().parent))
    runpy.run_module("magicapture_core", run_name="__main__", alter_sys=True)
