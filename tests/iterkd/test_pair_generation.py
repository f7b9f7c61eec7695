import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_akd.execution import CodeExecutor, ExecutionResult
from trl_akd.generation import Completion, GenerationError
from trl_akd.generation.protocol import FinishReason
from trl_akd.iterkd.cycle.answers import has_code, identity, python_program, refuses, remarks
from trl_akd.iterkd.cycle.config import CycleConfig
from trl_akd.iterkd.cycle.leaks import find_leak
from trl_akd.iterkd.cycle.pair_generation import assign_kinds, generate_pairs, read_pairs
from trl_akd.iterkd.cycle.records import FAULT_KINDS, Fault, Pair, Question
from trl_akd.iterkd.cycle.verification import verify

from . import scripted
from .scripted import Judge, ShortConfig, Teacher

ADD = Question("add", "Write add(a, b).", tests="assert add(1, 2) == 3\nassert add(0, 0) == 0")
UNTESTED = Question("add", "Write add(a, b) and show that it works.")
RIGHT = "Sure!\n```python\ndef add(a, b):\n    return a + b\n\nprint(add(1, 2))\n```"
WRONG = "def add(a, b):\n    return a - b"


@pytest.fixture(scope="module")
def run():
    with CodeExecutor(1, timeout=1.0, allow_code_execution=True) as executor:
        yield executor.run


def sift(correct: str, *faults: str, question: Question = ADD, **given):
    return verify([Pair(question, correct, tuple(Fault(text, None) for text in faults))], **given)


def texts(done) -> list[str]:
    return [fault.text for pair in done.pairs for fault in pair.faults]


class TestAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            "", " \n", "I'm sorry, but I can't help with that.", "I\N{RIGHT SINGLE QUOTATION MARK}m very sorry.",
            "Sorry, no.", "As an AI language model, I",
            "Unfortunately, I cannot provide wrong answers.", "I apologize, but", "I am unable to write faulty code.",
            "I am not able to assist with this.", "I won't do that.",
        ],
    )  # fmt: skip
    def test_invalid_values(self, answer):
        assert refuses(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "Sorry for the wait:\n```python\nprint(1)\n```", "I cannot see why: print(x", "x = 1",
            "It is an AI that adds.",
            "def f(x):\n    raise ValueError('sorry')",
        ],
    )  # fmt: skip
    def test_answers_that_only_sound_like_refusals(self, answer):
        assert not refuses(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "Thanks for the question! I can't do better than a greedy approach: sort the items by their end.",
            "Thanks! I'm afraid of nothing here: sort the list.",
            "The graph may have cycles, so I can't help but use a visited set.",
            "The input may be unsorted, so I can't do that with binary search; use a hash set instead.",
            "The input may be unsorted, so I can't do that; use a hash set.",
            "I can't help but notice that the list is sorted.",
            "I don't think I should use recursion here. An iterative loop is enough.",
            "I don't think I can write the answer in one line.",
            "I would rather not sort the list; a heap is enough.",
            "I'd prefer not to write this as a comprehension.",
            "I need to decline negative numbers: return None.", "I must refuse an empty list first.",
            "I have to refuse zero divisors, so None is returned.", "I'm not comfortable with recursion here.",
            "Recursion without memoization violates my usual advice, but it is short.",
            "Entschuldigung wird als String erwartet.", "Scusa è una parola di cinque lettere.",
            "Desculpe é um texto.", "Kann die Funktion die Bedingung nicht erfüllen, ist das Ergebnis None.",
            "No puedo hacer nada mejor que ordenar la lista.", "残念ながら再帰は遅いので、ループを使います。",
            "안타깝게도 재귀는 느리므로 반복문을 사용합니다.", "很遗憾,递归太慢,请使用循环。",
        ],
    )  # fmt: skip
    def test_help_that_is_worded_like_a_refusal(self, answer):
        assert not refuses(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "Thanks for asking! I'm sorry, but I can't help with that.", "I must respectfully decline.",
            "I have to decline to answer this question.", "Thank you. I can't answer that question.",
            "That violates my content policy.", "I would prefer not to help with malware.",
            "This may harm people, so I cannot comply.",
        ],
    )  # fmt: skip
    def test_refusals_after_other_words(self, answer):
        assert refuses(answer)

    @pytest.mark.parametrize("start", ["", "thanks ", "thank you", "I ", "sorry, ", "I don't think I can help "])
    @pytest.mark.parametrize("filler", [" ", "#", "*", "- ", "- \n", "thanks ", "I can't ", "a, so "])
    def test_time_is_linear(self, start, filler):
        begin = time.process_time()
        refuses(start + filler * (50_000 // len(filler)) + "x")
        assert time.process_time() - begin < 6

    @pytest.mark.parametrize(
        "answer",
        ["```java\nint x;\n```", "def f(x)\n  retrun x\nx = f(1)", "while True:", "while True: pass", "print(1"],
    )
    def test_code_need_not_parse(self, answer):
        assert has_code(answer)

    @pytest.mark.parametrize(
        "answer", ["Sort the list.", "class of problems", "return the value to them.", "for example"]
    )
    def test_prose_is_not_code(self, answer):
        assert not has_code(answer)

    @pytest.mark.parametrize(
        "other",
        [
            "def add(a, b):\n    return a+b\nprint( add(1,2) )",
            "def add(a,b):\n    '''Adds.'''\n    return (a + b)  # the sum\n\nprint(add(1, 2))",
            "Here:\n~~~py\ndef add(a, b):\n        return a + b\nprint(add(1, 2))\n~~~\nDone.",
        ],
    )
    def test_identity_ignores_layout_comments_and_docstrings(self, other):
        assert identity(RIGHT) == identity(other) != identity(WRONG)

    def test_code_that_does_not_parse_is_compared_as_text(self):
        assert (
            identity("```java\nint  x;\n```")
            == identity("Look:\n```java\nint x;\n```")
            != identity("```java\nint y;\n```")
        )
        assert identity("def f(:\n  pass") == identity("def f(:\n\tpass") != identity("def g(:\n  pass")
        deep = "x = " + "+".join("1" * 4000)
        assert identity(deep) == identity(f"  {deep}")

    def test_other_languages_are_not_python(self):
        assert python_program("```java\nint x;\n```") is None
        assert python_program("```sql\nSELECT 1\n```\n```python\nx = 1\n```") == "x = 1\n"
        assert python_program("x = 1") == "x = 1"

    @pytest.mark.parametrize(
        "fault, word",
        [
            ("x = 1  # BUG here", "bug"),
            ("x = 1  # this is incorrectly set", "incorrect"),
            ("def f():\n    '''Intentionally broken.'''\n    return 1", "intentional"),
            ("def f():\n    'A mistake.'\n    return 1", "mistake"),
            ("```python\nx = 1\n```\nOops, this\nshould  be 2.", "oops"),
            ("There is an error in it:\n\nx = 1", "error"),
            ("```java\nint x = 1; // should be 2\n```", "should be"),
            ("```cpp\n/* wrong\n operator */ int x;\n```", "wrong"),
            ("```sql\nSELECT 1 -- the fix is 2\n```", "fix"),
            ("def f(x)  # missing colon\n    return x", "missing"),
            ("x = 1  # Error type: logical", "Error type"),
            ("x = 1  # Fault type: name", "Fault type"),
            ("x = 1  # [logical]", "logical"),
            ("x = 1  # Kind: syntax", "Kind"),
            ("x = 1  # wait, this is not what we want", "wait"),
            ("def f(:\n  '''faulty'''\n  x = 'a", "fault"),
        ],
    )
    def test_leaks(self, fault, word):
        assert word in (find_leak(fault) or "")

    @pytest.mark.parametrize(
        "fault",
        [
            'def f(x):\n    if x < 0:\n        raise ValueError("wrong input")\n    return x',
            "def find_bugs(errors):\n    return errors.missing",
            "print('oops # bug')",
            'text = """the wrong one"""',
            "# raises ValueError, adds a prefix, debugs\nx = 1",
            '```js\nlet url = "http://x.y/bug"; \n```',
            "x = 7 // error",
            "x = 1  # wait for the threads to finish",
            "x = 1  # wait until the queue is empty",
            "x = 1  # error type: the name of the class",
            "This function should be able to sort.\n```python\nx = 1\n```",
        ],
    )
    def test_messages_and_names_of_data_are_not_leaks(self, fault):
        assert find_leak(fault) is None

    def test_words_of_the_subject_are_not_leaks(self):
        fault = "wrong_sum = 1  # the bug"
        assert find_leak(fault) == "bug"
        assert find_leak(fault, instruction="Describe a bug.") == "wrong"
        assert find_leak(fault, instruction="Describe a bug.", correct="wrong_sum = 2") is None
        assert find_leak(fault, instruction="Let wrong_sum be 2.", correct="x = 1  # no bug") is None

    def test_labeled_faults_are_classified_as_labeled(self):
        for row in scripted.labeled("faults.jsonl"):
            found = find_leak(row["text"], instruction=row["instruction"], correct=row["correct"])
            assert (found is not None) is row["leaks"], row

    @given(st.text("abc#'\"\n `~\\/*-", max_size=60))
    def test_any_text_can_be_parsed(self, text):
        assert identity(text) == identity(text)
        assert isinstance(remarks(text), list)
        assert refuses(text) in (True, False) and has_code(text) in (True, False)


class TestVerification:
    def test_tests_decide(self, run):
        done = sift(RIGHT, WRONG, "def add(a, b):\n    return b + a", run=run)
        assert texts(done) == [WRONG]
        assert done.dropped == {"fault/none": 1}
        assert done.without_fault == []

    @pytest.mark.parametrize(
        "fault",
        [
            "def add(a, b)\n    return a + b", "def add(a, b):\n    return a + c",
            "def add(a, b):\n    return str(a) + b",
            "def add(a, b):\n    while True:\n        pass", "def add(a, b):\n    return 3",
        ],
    )  # fmt: skip
    def test_every_kind_of_fault_fails_tests(self, run, fault):
        assert texts(sift(RIGHT, fault, run=run)) == [fault]

    def test_a_wrong_correct_answer_drops_the_question(self, run):
        done = sift(WRONG, "def add(a, b):\n    return 0", run=run)
        assert (done.pairs, done.without_fault, done.dropped) == ([], [], {"correct/wrong": 1})

    def test_correct_answers_without_faults_are_kept_separately(self, run):
        done = sift(RIGHT, RIGHT, run=run)
        assert [(pair.correct, pair.faults) for pair in done.without_fault] == [(RIGHT, ())]
        assert done.dropped == {"fault/same": 1}

    def test_without_tests_a_failing_program_is_a_fault(self, run):
        crash = "def add(a, b):\n    return a + c\n\nprint(add(1, 2))"
        done = sift(RIGHT, crash, WRONG, "while True: pass", question=UNTESTED, run=run)
        assert texts(done) == [crash, "while True: pass"]
        assert done.dropped == {"fault/unverified": 1}

    def test_without_tests_other_languages_are_undecided(self, run):
        done = sift(RIGHT, "```java\nint x = y;\n```", question=UNTESTED, run=run)
        assert done.dropped == {"fault/unverified": 1}

    def test_without_tests_a_correct_answer_that_crashes_is_wrong(self, run):
        assert sift("x = y", WRONG, question=UNTESTED, run=run).dropped == {"correct/wrong": 1}

    @pytest.mark.parametrize(
        "correct", ["n = int(input())", "import no_such_library", "open('data.csv')", "```java\nint x;\n```", "int x;"]
    )
    def test_a_correct_answer_with_a_missing_resource_is_left_to_the_judge(self, run, correct):
        given = {"question": UNTESTED, "run": run}
        done = sift(correct, "x = y", **given)
        assert (done.without_fault, done.dropped) == ([], {"fault/unverified": 1, "correct/unverified": 1})
        judge = Judge(lambda answer: 0.5 if answer == "x = y" else 4.5)
        assert texts(sift(correct, "x = y", **given, judge=judge)) == ["x = y"]

    @pytest.mark.parametrize(
        "right, faulty, verdict",
        [
            (5.0, 3.0, None),
            (5.0, 3.5, "none"),
            (2.0, 5.0, "none"),
            (None, 1.0, "unverified"),
            (6.0, None, "unverified"),
        ],
    )
    def test_the_judge_needs_a_gap_of_two_points(self, right, faulty, verdict):
        judge = Judge(lambda answer: right if answer == RIGHT else faulty)
        done = sift(RIGHT, WRONG, question=UNTESTED, judge=judge)
        assert texts(done) == ([] if verdict else [WRONG])
        assert done.dropped == ({f"fault/{verdict}": 1, "correct/unverified": 1} if verdict else {})

    def test_the_judge_is_called_once_for_undecided_answers(self, run):
        judge = Judge(lambda answer: 6.0 if answer == RIGHT else 1.0)
        crash = "def add(a, b):\n    return c\n\nprint(add(1, 2))"
        other = "def add(a, b):\n    return b - a"
        done = sift(RIGHT, WRONG, crash, other, question=UNTESTED, run=run, judge=judge)
        assert texts(done) == [WRONG, crash, other]
        assert judge.calls == [[(UNTESTED.instruction, answer) for answer in (RIGHT, WRONG, other)]]

    def test_unverified_faults_are_kept_on_request(self):
        assert sift(RIGHT, WRONG).dropped == {"fault/unverified": 1, "correct/unverified": 1}
        assert texts(sift(RIGHT, WRONG, unverified="keep")) == [WRONG]

    def test_unverified_correct_answers_without_faults_are_kept_on_request(self):
        assert sift(RIGHT).dropped == {"correct/unverified": 1}
        assert [pair.correct for pair in sift(RIGHT, unverified="keep").without_fault] == [RIGHT]

    def test_errors_of_the_sandbox_decide_nothing(self):
        def broken(programs):
            return [ExecutionResult("infra_error") for _ in programs]

        assert sift(RIGHT, WRONG, run=broken).dropped == {"fault/unverified": 1, "correct/unverified": 1}

    def test_reasons_to_drop_texts_are_counted(self):
        done = sift(
            RIGHT, "", "Just subtract.", RIGHT, WRONG, f"Oh.\n```\n{WRONG}\n```", f"{WRONG}  # oops", unverified="keep"
        )
        reasons = ("refused", "no_code", "same", "duplicate")
        assert texts(done) == [WRONG]
        assert done.dropped == {f"fault/{reason}": 1 for reason in reasons} | {"fault/duplicate": 2}

    def test_thoughts_are_not_part_of_an_answer(self):
        thought = "<think>\nI shall hide a bug: subtract.\n```python\nx = 1  # BUG\n```\n</think>\n\n"
        done = sift(thought + RIGHT, thought + WRONG, "<think>" + WRONG, unverified="keep")
        assert [(pair.correct, texts(done)) for pair in done.pairs] == [(RIGHT, [WRONG])]
        assert done.dropped == {"fault/refused": 1}
        assert sift("<think>" + RIGHT, WRONG).dropped == {"correct/refused": 1}

    def test_no_pairs(self):
        assert verify([]).pairs == []
        assert sift("I'm sorry.", WRONG).dropped == {"correct/refused": 1}


class TestDelivery:
    def test_all_missing_answers_are_requested_in_one_call(self):
        teacher = Teacher(lambda prompt: WRONG if "FAULTY" in prompt else RIGHT)
        questions = [Question("1", "one", answer="x = 1"), Question("2", "two")]
        config = ShortConfig(
            faults_per_question=2, keep_unverified=True, fault_kinds=["name", "type"], teacher_temperature=0.5
        )
        config.seed = 3
        done = generate_pairs(questions, teacher, config=config)
        assert len(teacher.calls) == 1 and sorted(teacher.calls[0]) == [
            "FAULTY name one", "FAULTY name two", "FAULTY type one", "FAULTY type two", "RIGHT two",
        ]  # fmt: skip
        assert teacher.settings == [{"temperature": 0.5, "top_p": 0.95, "max_new_tokens": 1024, "stop": (), "seed": 3}]
        assert [(pair.correct, len(pair.faults)) for pair in done.pairs] == [("x = 1", 1), (RIGHT, 1)]
        assert done.dropped == {"fault/duplicate": 2}

    def test_a_fault_keeps_its_kind(self):
        config = ShortConfig(faults_per_question=5, keep_unverified=True)
        teacher = Teacher(lambda prompt: f"x = '{prompt}'")
        [pair] = generate_pairs([UNTESTED], teacher, config=config).pairs
        assert {fault.kind for fault in pair.faults} == set(FAULT_KINDS)
        assert all(f"FAULTY {fault.kind} " in fault.text for fault in pair.faults)

    @pytest.mark.parametrize(("finish", "reason"), [("length", "truncated"), ("refused", "refused")])
    def test_incomplete_answers_are_dropped(self, finish: FinishReason, reason: str):
        def write(prompt):
            text = WRONG if "FAULTY" in prompt else RIGHT
            return Completion(text, None, finish if "cut" in prompt else "stop", None)

        questions = [Question("1", "cut", answer="x = 1"), Question("2", "cut"), Question("3", "whole")]
        done = generate_pairs(questions, Teacher(write), config=ShortConfig(keep_unverified=True))
        assert [pair.question.id for pair in done.pairs] == ["3"]
        assert done.dropped == {f"correct/{reason}": 1, f"fault/{reason}": 1}

    def test_own_faults_are_verified_like_those_of_the_teacher(self, run):
        own = {"add": [WRONG, RIGHT, "def add(a, b):\n    return 0"], "unknown": ["x"]}
        teacher = Teacher(lambda prompt: "def add(a, b):\n    return a" if "FAULTY" in prompt else RIGHT)
        done = generate_pairs([ADD], teacher, config=ShortConfig(), run=run, own_faults=own)
        assert [fault.kind is None for fault in done.pairs[0].faults] == [True, True, False]
        assert done.dropped == {"fault/same": 1}

    def test_refusals_are_counted(self, run):
        questions = [Question(str(number), "Add.") for number in range(3)]
        done = generate_pairs(questions, Teacher(lambda prompt: "I'm sorry, I can't do that."), run=run)
        assert (done.pairs, done.dropped) == ([], {"correct/refused": 3})

    def test_without_questions_the_teacher_is_not_called(self):
        teacher = Teacher(lambda prompt: RIGHT)
        assert generate_pairs([], teacher).pairs == [] and teacher.calls == []

    def test_errors_of_the_teacher_are_raised(self):
        def fail(prompt):
            raise GenerationError("down")

        with pytest.raises(GenerationError, match="down"):
            generate_pairs([ADD], Teacher(fail))

    def test_two_questions_with_one_id_are_refused(self):
        with pytest.raises(ValueError, match="`questions` has the id 'add' more than once"):
            generate_pairs([ADD, UNTESTED], Teacher(lambda prompt: RIGHT))

    @given(st.lists(st.sampled_from(FAULT_KINDS), min_size=1, unique=True), st.integers(1, 12), st.integers())
    def test_kinds_take_turns(self, kinds, number, seed):
        config = CycleConfig(faults_per_question=number, fault_kinds=kinds)
        assigned = assign_kinds("q", config, seed)
        counts = [assigned.count(kind) for kind in kinds]
        assert len(assigned) == sum(counts) == number and max(counts) - min(counts) <= 1
        assert assigned == assign_kinds("q", config, seed)

    def test_questions_begin_with_all_kinds_alike(self):
        firsts = Counter(assign_kinds(str(number), CycleConfig(), 0)[0] for number in range(1000))
        assert set(firsts) == set(FAULT_KINDS) and min(firsts.values()) > 150

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"faults_per_question": -1}, "`faults_per_question` is -1"),
            ({"fault_kinds": []}, "`fault_kinds` is"),
            ({"fault_kinds": ["spelling"]}, "`fault_kinds` is .'spelling'.; choose some of syntax, logical"),
            ({"min_gap": 0.0}, "`min_gap` is 0.0"),
        ],
    )
    def test_wrong_values_are_named(self, given, message):
        with pytest.raises(ValueError, match=message):
            CycleConfig(**given)


class TestReleasedPairs:
    """The hundred pairs that the authors released, including noise."""

    def test_released_pairs_by_their_text(self):
        pairs = read_pairs(scripted.soda("pairwise_data.json"))
        assert [len(pair.faults) for pair in pairs] == [1] * 100
        done = verify(pairs, unverified="keep")
        assert done.dropped == {"correct/refused": 1, "fault/leaks": 21}
        assert len(done.pairs) == 78
        assert sum(not has_code(pair.correct) for pair in pairs) == 3
        assert sum(not has_code(pair.faults[0].text) for pair in pairs) == 1
        assert sum(python_program(pair.correct) is None for pair in pairs) == 44

    def test_without_judge_and_runner_no_released_pair_is_verified(self):
        done = verify(read_pairs(scripted.soda("pairwise_data.json")))
        assert (done.pairs, done.dropped["fault/unverified"]) == ([], 78)

    @pytest.mark.parametrize(
        "row, message",
        [
            ({"prompt": "x"}, r"row 0 lacks .*its keys are \['prompt'\]"),
            ({"instruction": "x", "response": "y"}, "row 0 lacks a text `instruction` or a list `response`"),
            ({"instruction": "x", "response": ["y"]}, "`response` of row 0 has 1 entries"),
            ({"instruction": "x", "response": ["y", None]}, "`response` of row 0 has 2 entries"),
        ],
    )
    def test_other_formats_are_refused(self, row, message):
        with pytest.raises(ValueError, match=message):
            read_pairs([row])
