"""The threats that SECURITY.md lists are those that tests look after."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(r"^\|(.*)\| (.+) \| `([^`]+)` \|$", re.MULTILINE)


def test_every_threat_has_a_test_that_exists() -> None:
    rows = ROW.findall((ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").count("\n| ") - 1
    assert len(rows) == table > 20
    for _, defence, test in rows:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        tests = {each for each in found if each.startswith("test_")}
        assert defence.strip()
        assert name in tests if name else tests, test
