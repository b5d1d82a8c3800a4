"""Deltas: low-rank updates ΔW = B·A, exact from the solver to the files that vLLM loads.

low_rank.py   one module's update: balance, truncate, stack, cast
delta.py      the update of a model; the entry point of this package
peft.py       to and from `adapter_config.json` and `adapter_model.safetensors`
apply.py      a model that answers with a delta inside a `with` block
forward.py    forward hooks that add an update to a module's output
by_row.py     one batch with a different delta for each row
linear.py     the weights of linear layers in one orientation
"""
