import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "simulations"

# A study is a program: it finds what stands beside it, as it does when it is started.
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))
