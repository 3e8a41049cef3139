import gc

import pytest

from services._runtime.start import importing


@importing()
def fail() -> None:
    assert not gc.isenabled()
    raise ImportError


def test_the_collector_rests_while_much_is_imported_and_leaves_it_alone_afterwards() -> None:
    before = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError):
            fail()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
