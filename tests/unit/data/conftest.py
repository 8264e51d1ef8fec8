from pathlib import Path

import pytest
from data_corpora import texts, write_jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two domains, 40 and 25 documents."""
    write_jsonl(tmp_path / "corpus" / "web.jsonl", texts(40, seed="web"))
    write_jsonl(tmp_path / "corpus" / "code" / "a.jsonl", texts(25, seed="code"))
    return tmp_path / "corpus"
