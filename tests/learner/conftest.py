import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the toy model is imported by this room's tests only
