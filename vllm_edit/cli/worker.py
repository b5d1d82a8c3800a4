"""`vllm-edit worker`: compiles the patches that were submitted to a server."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_edit.cli.options import BankOption, JsonOption, ModelOption, StoreOption
from vllm_edit.cli.output import print_json_line, print_line

if TYPE_CHECKING:
    from vllm_edit.registry.jobs import Job


def worker(
    model: ModelOption = None,
    bank: BankOption = None,
    drain: Annotated[bool, typer.Option("--drain", help="Exit when no job is waiting.")] = False,
    lease: Annotated[
        float,
        typer.Option(
            min=1, max=3600, metavar="SECONDS", help="Silence after which another worker may take over the job."
        ),
    ] = 30.0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compile the patches of the store's queue, one at a time, and run their gates. Nothing is published.

    SIGTERM and Ctrl-C return the current job to the queue. Several workers may share a queue.
    """
    from vllm_edit.cli.model_inputs import bank_of, base_of
    from vllm_edit.release.pipeline import Pipeline
    from vllm_edit.release.worker import Worker
    from vllm_edit.store.store import Store

    opened = Store.open(store)
    pipeline = Pipeline(opened, base_of(opened, model), bank_of(opened, bank))
    stop = Event()
    made = Worker(pipeline, lease_s=lease, stop=stop)
    print_line(f"worker {made.holder.rpartition(':')[0]} waits for jobs of {opened.url}", error=True)
    with ExitStack() as restored:
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.signal(number, lambda *_: stop.set())
            restored.callback(signal.signal, number, before)
        made.run(drain=drain, ended=print_json_line if json else _print)


def _print(job: Job) -> None:
    what = f"{job.name} {(job.result or {}).get('status')}" if job.state == "done" else job.error
    print_line(f"{job.id}  {job.state}  {job.patch}: {what}")
