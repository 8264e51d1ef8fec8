"""Signals say whether they need the target set, by which a run without one is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.signals.clustered_influence import ClusteredInfluence
from regimen.signals.data_whisperer import DataWhisperer
from regimen.signals.distilled_influence import DistilledInfluence
from regimen.signals.embedded_value import EmbeddedValue
from regimen.signals.embedding import Embedding
from regimen.signals.gradients import GradientSketch
from regimen.signals.influence import Influence
from regimen.signals.ngrams import NgramLogRatio
from regimen.signals.policy_influence import PolicyInfluence
from regimen.signals.preference_influence import PreferenceInfluence
from regimen.signals.similarity import Similarity
from tests.support.vector_meter import meter_of


@pytest.mark.parametrize(
    ("signal", "aims"),
    [
        (Influence(), True),
        (ClusteredInfluence(cluster_size=1), True),
        (DistilledInfluence(), True),
        (PolicyInfluence(), True),
        (Similarity(of=Embedding()), True),
        (Embedding(), False),
        (GradientSketch(), False),
    ],
)
def test_it_aims_where_it_measures_no_row_without_a_target_set(signal: Signal, aims: bool) -> None:
    meter = replace(meter_of(torch.randn(6, 3), torch.randn(6, 4)), targets=None)
    assert signal.aims() is aims
    if aims:
        with pytest.raises(ConfigError, match="no target set"):
            signal.measure(meter, torch.arange(6))  # type: ignore[arg-type]
    else:
        assert len(signal.measure(meter, torch.arange(6))) == 6  # type: ignore[arg-type]


def test_settings_that_make_a_target_set_needless(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert not PreferenceInfluence(path=str(pairs)).aims()
    assert DataWhisperer().aims() and not DataWhisperer(questions="pool").aims()
    assert NgramLogRatio().aims() and not NgramLogRatio(target=("web",)).aims()
    assert EmbeddedValue(embeddings="e.npy", embedded="r.npy", run="outputs/a").aims()
