"""The edits that the benchmark on public data judges, as patch files: what a hypernetwork's training must leave out.

    python -m benchmarks.public_judged --out runs/judged
    vllm-edit hypernet train --judged runs/judged --data ../shared/data/zsre/zsre_mend-500.json …

One file for each set of `benchmarks.public` (all of them, and the set that settings are chosen on), with the draws of
the same seed and of the same model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.public.sets import MEANINGS, drawn_sets, stored_knowledge
from vllm_edit.cli.output import progress_bar
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.patch import Patch


def main() -> None:
    parser = argparse.ArgumentParser(description="what the benchmark on public data judges, as patch files")
    parser.add_argument("--model", default="bases/smollm2", help="folder of the model (default bases/smollm2)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public editing data")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draws (default 1)")
    parser.add_argument("--folder", type=Path, default=Path("runs/public"), help="records of the benchmark")
    parser.add_argument("--out", type=Path, default=Path("runs/judged"), help="folder of the patch files")
    arguments = parser.parse_args()
    base = Base.load(arguments.model)
    folder = arguments.folder / base.fingerprint.digest[:12]
    try:
        with progress_bar(base.name) as progress:
            knowledge = stored_knowledge(base, arguments.data, folder, progress)
        sets = drawn_sets(tuple(MEANINGS), arguments.data, knowledge, arguments.seed, None)
    except EditError as error:
        sys.exit(f"{error}")
    write_patches(sets, arguments.out)
    print("\n".join(f"{name}: {len(patches)} edits" for name, patches in sets.items()))


def write_patches(sets: Mapping[str, Sequence[Patch]], folder: Path) -> None:
    """Write the edits of each set as one patch, `<folder>/<set>.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, patches in sets.items():
        edits = tuple(edit for patch in patches for edit in patch.edits)
        (folder / f"{name}.yaml").write_text(Patch(name=name, edits=edits).dump(), encoding="utf-8")


if __name__ == "__main__":
    main()
