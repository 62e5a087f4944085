"""Files that come with the package: the demo model, and the clips that stand in for cameras.

`demo-model/` in the repository has the programs that made them.
"""

from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent

MODEL: Final = _FOLDER / "demo.pt"
CLIPS: Final = tuple(_FOLDER / f"street-{time}.mp4" for time in ("day", "dusk", "night"))
