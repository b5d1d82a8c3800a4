"""python -m benchmarks.lifelong: see the package."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.arguments import count
from benchmarks.common.caching_runner import CachingRunner
from benchmarks.common.model_store import model_store
from benchmarks.common.results_page import FOLDER, machine, write_section
from benchmarks.lifelong.answers import TOKENS
from benchmarks.lifelong.batches import drawn_batches
from benchmarks.lifelong.page import plot, section
from benchmarks.lifelong.places import PREFIXED, SETTINGS, TITLES, places_of, publisher_of
from benchmarks.lifelong.run import Published, Run, recorded
from benchmarks.public.place import passages
from benchmarks.public.sets import read_counterfact
from vllm_edit.cli.output import progress_bar
from vllm_edit.digest import digest_json
from vllm_edit.editing.memit.memit_settings import AlphaEditSettings
from vllm_edit.errors import EditError
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.models.base import Base


def main() -> None:
    arguments = _arguments()
    console = Console()
    try:
        data, found = _measured(arguments)
    except EditError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on where this one stopped")
    text = section(data, found)
    if arguments.print_only:
        console.print(text, markup=False, soft_wrap=True)
        return
    plot(found, FOLDER / "results" / "lifelong.svg")
    write_section("lifelong", text, data, command="python -m benchmarks.lifelong " + " ".join(sys.argv[1:]))


def _measured(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[Published]]]:
    base = Base.load(arguments.model)
    folder = arguments.folder / base.fingerprint.digest[:12]
    if arguments.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    facts = read_counterfact(arguments.data)
    batches = drawn_batches(facts, arguments.batches, arguments.size, arguments.seed)
    store = model_store(arguments.store or str(folder / "store"), base)
    text = passages(arguments.data, store, arguments.seed)[: arguments.passages]
    place_of = places_of(store, base, arguments.size, folder)
    runner = CachingRunner(HFRunner(base.model, base.tokenizer))
    run = Run(base, runner, batches, text, arguments.asked, arguments.seed)
    found: dict[str, list[Published]] = {}
    sites: dict[str, None] = {}
    for protocol in arguments.protocols:
        place, settings = place_of(protocol), SETTINGS[protocol]
        identity = {
            "base": base.fingerprint.digest,
            "site": place.site.digest,
            "protocol": protocol,
            "settings": settings.lasting() | {"forms": list(settings.forms)},
            "facts": digest_json([edit.model_dump(mode="json") for edit in facts]),
            "size": arguments.size,
            "seed": arguments.seed,
            "asked": arguments.asked,
            "tokens": TOKENS,
            "passages": digest_json(text),
        }
        own = folder / f"{protocol}-{digest_json(identity)[:12]}"
        record = Record.open(own / "record.jsonl", identity)
        if not arguments.recorded:
            with progress_bar(TITLES[protocol]) as progress:
                run.published(publisher_of(protocol, base, place, own, identity), record, progress)
        if published := recorded(record, arguments.batches):
            found[TITLES[protocol]] = published
        sites[f"{', '.join(place.site.modules)}, token `{place.site.token}`"] = None
    data = {
        "model": base.name,
        "batches": arguments.batches,
        "size": arguments.size,
        "seed": arguments.seed,
        "sample": arguments.asked,
        "passages": len(text),
        "tokens": TOKENS,
        "prefixed": PREFIXED,
        "null_space": AlphaEditSettings().null_space,
        "sites": "; ".join(sites),
        "engine": runner.name,
        "machine": machine(),
        "published": {title: [one.as_record() for one in published] for title, published in found.items()},
    }
    return data, found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lifelong", description="batches of edits of a pretrained model, one after the other"
    )
    parser.add_argument("--model", default="bases/smollm2", help="folder of the model (default bases/smollm2)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public editing data")
    parser.add_argument(
        "--store", help="store whose site and text are used (default: one of the benchmark's own, made if needed)"
    )
    parser.add_argument("--batches", type=count, default=100, help="batches to publish (default 100)")
    parser.add_argument("--size", type=count, default=10, help="edits of a batch (default 10)")
    parser.add_argument("--protocols", type=_protocols, default=list(TITLES), help=f"default: {','.join(TITLES)}")
    parser.add_argument("--asked", type=count, default=60, help="edits asked at a milestone (default 60)")
    parser.add_argument("--passages", type=count, default=16, help="passages read for the drift (default 16)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draws (default 1)")
    parser.add_argument("--folder", type=Path, default=Path("runs/lifelong"), help="what is done already")
    parser.add_argument("--recorded", action="store_true", help="publish nothing: only what earlier runs recorded")
    parser.add_argument("--print-only", action="store_true", help="print the table and leave RESULTS.md alone")
    parser.add_argument("--fresh", action="store_true", help="forget what was done for this model and begin again")
    return parser.parse_args()


def _protocols(text: str) -> list[str]:
    """The protocols in a list with commas, in the order of the table.

    Raises:
        ArgumentTypeError: there is no such protocol.
    """
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in TITLES]:
        raise argparse.ArgumentTypeError(f"expected protocols among {', '.join(TITLES)}, got {unknown[0]!r}")
    return [name for name in TITLES if name in chosen]


if __name__ == "__main__":
    main()
