"""docs/knowledge_editor.md agrees with the code."""

from __future__ import annotations

from pathlib import Path

from tests.test_docs import _marked, _settings_table
from vllm_edit.editing.knowledge_editor.knowledge_editor_settings import KnowledgeEditorTrainingSettings


def test_table_of_training_settings_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "knowledge_editor.md").read_text(encoding="utf-8")
    assert _marked(page, "settings ke training") == _settings_table(KnowledgeEditorTrainingSettings)
