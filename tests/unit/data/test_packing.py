import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_corpora import make, settings, texts, write_jsonl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from regimen.data import packing
from regimen.data.packing import Packer
from regimen.data.tables import RowFile

EOS = 0


def pack(documents, length, max_rows=None):
    """(rows, tokens that are in no row); a row is (tokens, documents, starts, offsets)."""
    with tempfile.TemporaryDirectory() as folder:
        packer = Packer(Path(folder) / "t.arrow", length=length, eos_id=EOS, vocab_size=1000, max_rows=max_rows)
        for number, ids in enumerate(documents):
            packer.add(number, np.array(ids, np.int32))
        left = packer.close()
        file = RowFile(Path(folder) / "t.arrow")
        rows = []
        for row in range(packer.rows):
            view, k = file.at(row)
            rows.append([view[name][k].tolist() for name in ("tokens", "document", "start", "offset")])
    return rows, left


documents_strategy = st.lists(st.lists(st.integers(1, 999), max_size=40), min_size=1, max_size=20)


@hypothesis_settings(max_examples=60, deadline=None)
@given(documents=documents_strategy, length=st.integers(2, 17), flush=st.sampled_from([1, 7, 50, 10_000]))
def test_spans_give_back_the_documents(documents, length, flush):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "FLUSH_TOKENS", flush)
        rows, left = pack(documents, length)
    stream = [token for ids in documents for token in (EOS, *ids)]
    assert [t for row in rows for t in row[0]] == stream[: len(stream) - left]
    if len(stream) >= length:
        assert {len(row[0]) for row in rows} == {length}
        assert left == len(stream) % length
    else:
        assert [row[0] for row in rows] == [stream]
    for tokens, numbers, starts, offsets in rows:
        ends = [*starts[1:], len(tokens)]
        assert starts[0] == 0
        for number, start, end, offset in zip(numbers, starts, ends, offsets, strict=True):
            assert tokens[start:end] == [EOS, *documents[number]][offset : offset + end - start]
            assert end > start


def test_rows_over_the_limit_are_counted_as_left():
    rows, left = pack([[5] * 9] * 10, length=4, max_rows=3)
    assert len(rows) == 3
    assert left == 100 - 12


def test_an_empty_stream_gives_a_readable_file():
    assert pack([], length=4) == ([], 0)


def test_positions_restart_at_documents_and_rows(corpus, tmp_path):
    table = make(settings(corpus), tmp_path / "pools").train
    ids = torch.arange(table.index.rows)
    rows, spans = table.read(ids, positions=True), table.documents(ids)
    begins = torch.zeros_like(rows.tokens, dtype=torch.bool)
    begins[spans.row, spans.start] = True
    assert torch.equal(rows.positions == 0, begins)
    assert bool((rows.positions[:, 1:] - rows.positions[:, :-1] == 1)[~begins[:, 1:]].all())


def test_an_eos_stands_exactly_where_a_document_begins(corpus, tmp_path):
    pool = make(settings(corpus), tmp_path / "pools")
    ids = torch.arange(pool.train.index.rows)
    rows, spans = pool.train.read(ids), pool.train.documents(ids)
    expected = torch.zeros_like(rows.tokens, dtype=torch.bool)
    whole = spans.offset == 0
    expected[spans.row[whole], spans.start[whole]] = True
    assert torch.equal(rows.tokens == pool.eos_id, expected)


def test_rows_of_a_domain_hold_documents_of_that_domain(corpus, tmp_path):
    pool = make(settings(corpus), tmp_path / "pools")
    for split in (pool.train, pool.validation):
        ids = torch.arange(split.index.rows)
        spans = split.documents(ids)
        of_row = [pool.domains[k] for k in split.index.domain_of(ids[spans.row]).tolist()]
        assert of_row == [pool.documents.domains[k] for k in spans.document.tolist()]


def test_rows_of_unequal_length_are_padded_and_counted(tmp_path):
    write_jsonl(tmp_path / "c" / "long.jsonl", texts(30, seed="long"))
    write_jsonl(tmp_path / "c" / "short.jsonl", ["one two", "three four", "five"])
    pool = make(settings(tmp_path / "c", seq_len=200), tmp_path / "pools")
    assert pool.domains == ("long", "short")
    assert pool.train.index.sizes[1] == 1
    short = pool.train.index.ids(1)
    rows = pool.train.read(torch.cat([short, torch.tensor([0])]), positions=True)
    length = int(rows.lengths[0])
    assert length < 201
    assert rows.lengths[1] == 201
    assert rows.tokens.shape == rows.positions.shape == (2, 201)
    assert bool((rows.tokens[0, length:] == pool.pad_id).all())
    assert not bool((rows.tokens[0, :length] == pool.pad_id).any())
    assert pool.train.index.tokens_of(short).tolist() == [length - 1]
    assert pool.train.read(short).tokens.shape == (1, length)


def test_an_unknown_row_is_an_error(corpus, tmp_path):
    table = make(settings(corpus), tmp_path / "pools").train
    with pytest.raises(IndexError, match="row"):
        table.read(torch.tensor([table.index.rows]))
    with pytest.raises(IndexError, match="row -1"):
        table.read(torch.tensor([-1]))
    assert table.read(torch.zeros(0, dtype=torch.int64)).tokens.shape == (0, 0)
