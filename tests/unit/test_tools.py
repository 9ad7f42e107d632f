"""What a test does that needs a program which is not there."""

from __future__ import annotations

import sys

import pytest
from tools import need


@pytest.fixture(autouse=True)
def nothing_promised(monkeypatch):
    monkeypatch.delenv("PEDBENCH_REQUIRE_TOOLS", raising=False)


def test_absent_tool_skips_by_name():
    with pytest.raises(pytest.skip.Exception, match="^no_such_tool is not installed"):
        need("no_such_tool")


def test_absent_tool_fails_where_it_is_promised(monkeypatch):
    monkeypatch.setenv("PEDBENCH_REQUIRE_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception, match="^no_such_tool is not installed"):
        need("no_such_tool")


def test_present_tool_is_found():
    assert need(sys.executable) == sys.executable
