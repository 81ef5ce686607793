import pytest

# Before its first import: else its asserts do not say what they compared.
pytest.register_assert_rewrite("tests.e2e.steps")
