import pytest

from magicapture_core.prompts import TEMPLATES, fill

HOLDS = {"source": (1, 0), "reference": (0, 1), "composed": (1, 1)}


@pytest.mark.parametrize("task", HOLDS)
def test_every_template_holds_its_placeholders_once(task):
    for template in TEMPLATES[task]:
        assert (template.count("{subject}"), template.count("{style}")) == HOLDS[task]
    assert len(set(TEMPLATES[task])) == len(TEMPLATES[task]) >= 7


def test_fill_leaves_other_braces_alone():
    assert fill("{subject} in {style}, {red|blue}", "<a>", "<b>") == "<a> in <b>, {red|blue}"
