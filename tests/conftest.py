"""What all tests share."""

from pathlib import Path

import pytest

from rendering import render


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project rendered with the default answers. Read it; do not write to it."""
    return render(tmp_path_factory.mktemp("default"))
