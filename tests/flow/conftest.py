"""What the flow tests grow on."""

from __future__ import annotations

import pytest
from grown import Ground, prepare


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A prepared corpus, shared and never written to."""
    return prepare(tmp_path_factory.mktemp("ground"))
