"""Lifelong editing of a pretrained model: batches of edits that are published one after the other.

    python -m benchmarks.lifelong [--batches 100] [--size 10] [--protocols …] [--model bases/smollm2] [--store URL]

batches.py     which edits: a seeded draw of CounterFact's facts, one of each subject
protocols.py   ways to publish a batch: compiled from the clean base and composed, or AlphaEdit's sequential protocol
places.py      the sites of the protocols, and the settings that they share
answers.py     questions about edits under an update, and the shares of right answers
run.py         one protocol's batches, published and asked one after the other, into a record
page.py        the table and the picture of RESULTS.md
"""
