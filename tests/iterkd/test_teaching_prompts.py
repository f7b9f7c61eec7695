import dataclasses
import json

import pytest

from trl_akd.iterkd.cycle.prompts import FAULT_DEFINITIONS, TeachingPrompts
from trl_akd.iterkd.cycle.records import FAULT_KINDS


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_prompt_of_a_fault_has_its_kind_and_definition(kind):
    prompt = TeachingPrompts().for_fault("  Add two numbers.\n", kind)
    assert f": {kind}." in prompt and FAULT_DEFINITIONS[kind] in prompt
    assert "Task:\nAdd two numbers.\n" in prompt
    assert "Example:" in FAULT_DEFINITIONS[kind]
    assert not any(other in prompt for name, other in FAULT_DEFINITIONS.items() if name != kind)


def test_prompts_of_new_questions_by_level():
    prompts = TeachingPrompts()
    easy, medium, hard = (prompts.for_question("Sort.", level) for level in ("easy", "medium", "hard"))
    assert medium == hard != easy
    assert "rarely" in easy and "same type" in hard
    assert all("without a solution" in prompt for prompt in (easy, hard))


def test_braces_in_an_instruction_stay():
    assert "{n!r} {kind}" in TeachingPrompts().for_answer("Print {n!r} {kind}")
    assert "{kind}" in TeachingPrompts().for_fault("Print {kind}", "name")


def test_the_version_changes_with_any_wording():
    own = TeachingPrompts()
    layouts = dict.fromkeys(("correct", "new_easy", "new_same"), "{instruction}") | {"faulty": "{instruction} {kind}"}
    changed = [dataclasses.replace(own, **{name: layout}) for name, layout in layouts.items()]
    assert len({own.version, *(prompts.version for prompts in changed)}) == 5
    assert own.version == TeachingPrompts().version and own.version.startswith("teaching-")


@pytest.mark.parametrize(
    "layouts, message",
    [
        ({"correct": "Solve it."}, r"`correct` lacks the field \{instruction\}"),
        ({"faulty": "{instruction}"}, r"`faulty` lacks the field \{kind\}"),
        ({"new_same": "{instruction} {level}"}, r"`new_same` has the unknown field \{level\}; the fields are \{instr"),
        ({"new_easy": "{instruction} {}"}, r"`new_easy` has the unknown field \{\}"),
        ({"correct": "{instruction} {"}, r"`correct` is not a format string .*braces"),
    ],
)
def test_error_names_the_field_of_a_wrong_layout(layouts, message):
    with pytest.raises(ValueError, match=message):
        TeachingPrompts(**layouts)


@pytest.mark.parametrize("name", ["own.yaml", "own.json"])
def test_layouts_come_from_a_file(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps({"faulty": "{instruction}\n{kind}:"}))
    prompts = TeachingPrompts.from_file(path)
    assert prompts.for_fault("Add.", "type") == "Add.\ntype:"
    assert prompts.correct == TeachingPrompts().correct


@pytest.mark.parametrize(
    "text, message",
    [
        ("wrong: '{instruction}'", "has a template 'wrong'; the names are correct, faulty"),
        ("- '{instruction}'", "does not map names to texts"),
        ("correct: 3", "does not map names to texts"),
        ("correct: [", "own.yaml is not valid YAML"),
        ("correct: '{instruction}'\ncorrect: '{instruction}:'", "own.yaml: line 2 sets `correct` again, after line 1"),
        ("", "does not map names to texts"),
    ],
)
def test_errors_name_the_file(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        TeachingPrompts.from_file(path)
