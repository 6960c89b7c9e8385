"""``--replace`` deletes a store that another dump made, and nothing else."""

from pathlib import Path

import pytest

from pipeline.dumping.dump import opened
from store_schema import OtherStoreError, StoreError, StoreWriter
from tests.store.synthetic import digest, write, writer


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A finished store of the expert ``x``."""
    write(tmp_path / "store")
    return tmp_path / "store"


def test_an_error_that_only_says_who_made_the_store_deletes_nothing(made, monkeypatch):
    message = 'a row was made with focal.rule = "old", now it is "new"; delete the store'

    def refuse(self: StoreWriter) -> None:
        raise StoreError(message)

    before = digest(made)
    monkeypatch.setattr(StoreWriter, "_open", refuse)
    with pytest.raises(StoreError, match="was made with") as caught, opened(writer(made), replace_other=True):
        pass
    assert type(caught.value) is StoreError and digest(made) == before


def test_a_store_of_another_expert_is_kept_unless_its_replacement_is_asked_for(made):
    before = digest(made)
    with pytest.raises(OtherStoreError), opened(writer(made, "y"), replace_other=False):
        pass
    assert digest(made) == before


def test_a_store_of_another_expert_is_deleted_where_that_is_asked_for(made, capsys):
    store = writer(made, "y")
    with opened(store, replace_other=True):
        assert store.pending() == [0, 1] and not (made / "manifest.json").exists()
    told = "".join(capsys.readouterr())
    assert 'was made with expert.checkpoint_sha256 = "x", now it is "y": it is deleted' in told
    assert told.lstrip().startswith("warning: ")
