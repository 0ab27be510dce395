"""The SQL of the first guide (tests/seed), grouped by its use in tests."""

from pathlib import Path

SEED = Path(__file__).parents[1] / "seed"
LOAD = (SEED / "section_8_load.sql").read_text()
RESET = (SEED / "section_7_reset_circuit.sql").read_text().replace("?", "%s")
SELECTS = {
    path.stem: path.read_text()
    for path in sorted(SEED.glob("*.sql"))
    if path.stem.split("_")[2] not in ("load", "reset")
}
