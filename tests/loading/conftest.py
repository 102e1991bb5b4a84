import pytest
from helpers_adapters import make_bases


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Name -> folder of a tiny base."""
    return make_bases(tmp_path_factory.mktemp("bases"))
