"""Readers of public editing data in this project's terms: CounterFact, KnowEdit, zsRE, MQuAKE and EasyEdit's columns.

`DataSet.load` reads a file of any of them; docs/patches.md maps their fields.
"""

from vllm_edit.datasets.data_set import DataSet, LeftOut, is_data_set, read_edits

__all__ = ["DataSet", "LeftOut", "is_data_set", "read_edits"]
