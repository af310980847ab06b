"""Writes tests/training/golden_losses.json anew, for a change that is meant to move the losses.

python scripts/make_golden_losses.py
"""

import json
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests" / "training"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from test_trainer import losses_of, settings_for  # noqa: E402

from gancli.commands.train import assemble  # noqa: E402
from gancli.training.run_folder import RunFolder  # noqa: E402

golden = {}
for update in ("simultaneous", "alternating"):
    for loss in ("nonsaturating", "relativistic"):
        settings = settings_for(f"update={update}", f"loss={loss}")
        golden[f"{update} {loss}"] = losses_of(assemble(settings, folder=RunFolder(Path(tempfile.mkdtemp()))))
(TESTS / "golden_losses.json").write_text(json.dumps(golden, indent=2) + "\n")
