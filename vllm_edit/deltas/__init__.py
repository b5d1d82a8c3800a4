"""Deltas: low-rank updates ΔW = B·A, exact from the solver to the files that vLLM loads.

low_rank.py   one module's update: balance, truncate, stack, cast
delta.py      the update of a model, and the way in to everything here
peft.py       to and from `adapter_config.json` and `adapter_model.safetensors`
apply.py      a model that answers with a delta inside a `with` block
fidelity.py   what a cast leaves of a delta
"""
