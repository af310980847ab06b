"""Writes tests/golden_losses.json anew. Only for a change that is meant to move the losses; say why in the commit.

python scripts/make_golden_losses.py
"""

import json
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from test_trainer import losses_of, settings_for  # noqa: E402

from gancli.commands.train import assemble  # noqa: E402

golden = {}
for update in ("simultaneous", "alternating"):
    for loss in ("nonsaturating", "relativistic"):
        settings = settings_for(f"update={update}", f"loss={loss}")
        golden[f"{update} {loss}"] = losses_of(assemble(settings, folder=Path(tempfile.mkdtemp())))
(TESTS / "golden_losses.json").write_text(json.dumps(golden, indent=2) + "\n")
