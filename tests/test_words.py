"""Pages and --help call one thing by one word."""

import re

import pytest
from helpers import ROOT
from write_flags import COMMANDS, make_parser

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)\n]*\)|\[many_cards\]", re.DOTALL)
CARD = re.compile(r"\bcards?\b|显卡|[张有]卡", re.IGNORECASE)  # 多卡 and 单卡 are words of their own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_gpu_and_not_card(page):
    assert not CARD.findall(CODE.sub("", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_gpu_and_not_card(command):
    helps = [action.help for action in make_parser(command)._actions if action.help]
    assert not [line for line in helps if CARD.search(line)]
