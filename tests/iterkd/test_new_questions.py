import time
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_akd.generation import Completion
from trl_akd.iterkd.cycle.answers import refuses
from trl_akd.iterkd.cycle.config import CycleConfig
from trl_akd.iterkd.cycle.new_questions import check_question, generate_questions, mix_questions, read_question
from trl_akd.iterkd.cycle.records import LEVELS, Question

from . import scripted
from .scripted import ShortConfig, Teacher

levels = st.sampled_from(LEVELS)
frames = st.sampled_from(["#Created Instruction#:", "### ", "1. ", '"', "Sort it.", "\n", "Task: ", "Sure:\n"])


@dataclass(frozen=True)
class Graded:
    question_id: str
    level: str


def check(text: str, **limits) -> str | None:
    return check_question(read_question(text), **{"min_chars": 10, "max_chars": 200, **limits})


class TestReading:
    @pytest.mark.parametrize(
        "answer",
        [
            "Sort a list of names.", "  Sort a list of names.\n", "#Created Instruction#: Sort a list of names.",
            "#Created Instruction#:\nSort a list of names.", "# Created Instruction:\n\nSort a list of names.",
            "### Sort a list of names.", "### New Question\nSort a list of names.", "1. Sort a list of names.",
            "**New task:** Sort a list of names.", "Instruction: Sort a list of names.", "'Sort a list of names.'",
            '"Sort a list of names."',
            "\N{LEFT DOUBLE QUOTATION MARK}Sort a list of names.\N{RIGHT DOUBLE QUOTATION MARK}",
            "Sure! Here is a new task:\n\nSort a list of names.",
            "Here's one:\n#Created Instruction#: Sort a list of names.",
            "#Created Instruction#: Sort a list of names.\n\n#Given Prompt#:\nAdd.\n#Created Instruction#: Subtract.",
            'Certainly, here it is:\n\n#Created Instruction#:\n1) "Sort a list of names."',
        ],
    )  # fmt: skip
    def test_text_around_a_question_is_removed(self, answer):
        assert read_question(answer) == "Sort a list of names."

    @pytest.mark.parametrize(
        "answer",
        [
            "1. Read a file.\n2. Print it.", '"a" and "b" are texts. Join "a" and "b"',
            "Task scheduling: write a queue.",
            "Here is a program that adds; make it faster.", "New task queues need a name. Write one.",
            "Write a form.\n\nNew question:\nThe user types here.",
        ],
    )  # fmt: skip
    def test_text_of_a_question_is_kept(self, answer):
        assert read_question(answer) == answer

    @pytest.mark.parametrize(
        "refusal",
        [
            "Es tut mir leid, aber dabei kann ich nicht helfen.", "Ich kann dabei nicht helfen.",
            "Leider kann ich diese Anfrage nicht erfüllen.", "Lo siento, pero no puedo ayudar con esa solicitud.",
            "No puedo crear esa tarea.", "Je suis désolé, mais je ne peux pas vous aider avec cette demande.",
            "Je ne peux pas vous aider.", "Извините, но я не могу помочь.",
            "Простите, я не могу выполнить этот запрос.",
            "申し訳ありませんが、そのリクエストにはお応えできません。",
            "その課題の作成はお手伝いできません。", "죄송하지만 해당 요청은 도와드릴 수 없습니다.",
            "Desculpe, mas não posso ajudar com isso.", "Infelizmente, não posso criar essa tarefa.",
            "Mi dispiace, ma non posso aiutarti con questa richiesta.", "很遗憾,我不能提供这方面的帮助。",
            "作为一个AI语言模型,我无法生成恶意软件相关的任务。", "我很抱歉,但我不能协助。",
            "I must decline this request, since it involves malware.",
            "I'd rather not create a task about keyloggers.",
            "This request goes against my guidelines, so I can't create it.",
            "I don't think I can help with that.",
            "Creating such a task would be harmful, so I can't do that.",
            "I don't feel comfortable writing this task.",
            "I appreciate the question, but I can't help with writing malware.", "I'm not comfortable with this task.",
            "Thanks for asking! Unfortunately, I can't assist with that request.",
            "I won't be able to help with malware.",
        ],
    )  # fmt: skip
    def test_refusals_are_no_questions_and_no_answers(self, refusal):
        assert check(refusal) == "refused"
        assert refuses(refusal)
        assert not refuses(f"{refusal}\n\n```python\nprint(1)\n```")

    @pytest.mark.parametrize(
        "question",
        [
            "Schreibe eine Funktion, die nicht abstürzt, wenn die Datei fehlt. Ich kann pandas nicht verwenden.",
            "Escribe un programa que imprima «Lo siento, no puedo ayudar».", "No repeated words: écris une fonction.",
            "Я пишу парсер и не могу использовать классы. Напишите функцию.",
            "すべての値は変更できません。スタックを書いてください。",
            "값은 변경할 수 없습니다. 스택을 구현하세요.", "编写一个聊天程序,在无法回答时输出“抱歉”。",
            "I have a list of dates, but I can't sort it. Write a function that does.",
            "Write a bot that answers: I don't think I can help with that.",
            "Escribe un programa que ejecute la siguiente instrucción:\n\nMOV A, 1",
        ],
    )  # fmt: skip
    def test_questions_in_other_languages_are_kept(self, question):
        assert read_question(question) == question
        assert check(question) is None

    @pytest.mark.parametrize(
        "opening",
        [
            "¡Claro! Aquí tienes una nueva instrucción:", "Bien sûr ! Voici une nouvelle consigne :",
            "Claro! Aqui está uma nova instrução:", "Certo! Ecco una nuova istruzione:", "Nueva instrucción:",
            "Natürlich! Hier ist eine neue Programmieraufgabe:", "Конечно! Вот новая инструкция:",
            "もちろんです。新しい課題は次のとおりです。", "以下の問題です:", "물론입니다! 새로운 과제입니다:",
        ],
    )  # fmt: skip
    def test_openings_in_other_languages_are_removed(self, opening):
        assert read_question(f"{opening}\n\nSort a list of names.") == "Sort a list of names."

    @pytest.mark.parametrize(
        "section",
        [
            "Evaluation:\nup to 1 kg costs 5, each further kg costs 2.", "Grading:\n90 and above is A.",
            "Difficulty:\nThe player chooses easy (8 guesses) or hard (5 guesses).",
            "Difficulty: the number of digits, from 3 to 9.", "Explanation:\nA flush beats a straight.",
            "Explanation: for n = 3 there are 3 ways: 1+1+1, 1+2 and 2+1.", "Keywords:\nif, else, while",
            "Tags:\nEach item has tags. Support filtering by tag.", "Topics:\n- id\n- title",
            "Tests:\n- addition\n- division by zero", "Test cases:\n- f(0) == 0\n- f(100) == 10",
            "### Test Cases\n1. The list is empty.\n2. The list has one element.",
            "Answers:\nThe answers are read from a file.", "Changes:\nmark added lines with +.",
            "Duration:\nThe meter takes the duration in minutes.", "Analysis:\nreturn the yearly balances as well.",
            "Approach: use a stack.\n\nExamples:\nf('1 + 2') -> 3", "Skills:\nEach hero has up to three skills.",
            "Level:\nThe level doubles every 100 points.", "Concepts:\n- account: has a balance",
            "Output:\nThe number of vowels.", "Output:\n```\ntotal = 3\n```",
            "Code:\nThe code is a string of 4 digits.",
            "Results:\n- win\n- loss", "Fields:\n- query\n- response\n- code",
            "```python\nf([1, 2])\n```", "```sql\nCREATE TABLE users (id INT);\n```",
            "```c\nstruct node { int value; };\n```",
            "```javascript\nfunction f(x) {\n  // your code\n  return 0;\n}\n```",
        ],
    )  # fmt: skip
    def test_sections_with_requirements_are_kept(self, section):
        for question in [
            f"Write a SQL, C or JavaScript function f.\n\n{section}",
            f"Write a SQL, C or JavaScript function f.\n\n{section}\n\nIt returns a number.",
        ]:
            assert read_question(question) == question

    def test_code_that_specifies_the_task_is_kept(self):
        question = (
            "Write a script whose output matches that of this loop, without a loop.\n\n"
            "```python\nfor i in range(3): print(i)\n```"
        )
        assert read_question(question) == question

    def test_only_the_section_about_the_exercise_is_removed(self):
        task = "Write a class Account."
        rest = "Learners must implement deposit() and raise ValueError."
        assert read_question(f"{task}\n\nTopics:\n- id\n- title\n\n{rest}") == (
            f"{task}\n\nTopics:\n- id\n- title\n\n{rest}"
        )
        assert read_question(f"{task}\n\nTopics: those that learners practise.\n\n{rest}") == f"{task}\n\n{rest}"

    @pytest.mark.parametrize(
        "filler", ["\n", "\n\n", " ", "*", "#", "\t\n", "topics:\n", "code:\n", "## code\n", "tests:\n", "task:\n"]
    )
    def test_time_is_linear(self, filler):
        begin = time.process_time()
        read_question("Write a function f.\n" + filler * (20_000 // len(filler)) + "x")
        assert time.process_time() - begin < 6

    def test_steps_of_a_task_are_kept(self):
        for steps in [
            "1. Create a table users.\n2. Create a table orders.\n3. Write a query that joins them.",
            "1. Write a function that reads a file.\n2. Write a program that uses both.",
        ]:
            assert read_question(steps) == steps

    @pytest.mark.parametrize(
        "section",
        [
            "Explanation: this task practises loops.", "Approach: sort, then scan. Time complexity: O(n log n).",
            "Difficulty: medium", "**Difficulty:** Medium", "Difficulty level:\nhard", "Difficulty: 3/5",
            "Skills practised:\n- loops", "Tests:\n```python\nassert f(1) == 1\n```", "Unit tests:\nassert f(1) == 1",
            "Solution: use a loop.", "Discussion: it has the same difficulty as the given task.",
            "### Response:", "### Response:\ndef f(s): return sum(c in 'aeiou' for c in s)",
            "Response:\n```python\nprint(sum(c in 'aeiou' for c in input()))\n```",
            "**Output:**\n```python\nword = input()\nprint(len(word))\n```",
            "Code:\n\nfor n in range(3):\n    print(n)",
            "```python\nword = input()\nprint(sum(c in 'aeiou' for c in word))\n```",
            "```javascript\nfunction d(x) { return 2 * x; }\n```", "```js\nconst d = x => 2 * x;\n```",
            "```sql\nSELECT COUNT(*) FROM users;\n```", "```c\nint add(int a, int b) { return a + b; }\n```",
            "### Response\n```c\nint main() { printf(\"3\"); }\n```",
        ],
    )  # fmt: skip
    def test_solutions_and_remarks_on_the_exercise_are_removed(self, section):
        question = "Write a SQL, C or JavaScript function or program that counts the vowels of a word given by a user."
        assert read_question(f"{question}\n\n{section}") == question

    @given(st.text("ab1.\n #*:\"'`", max_size=40) | st.lists(frames).map("".join))
    def test_parsing_is_idempotent(self, text):
        assert read_question(read_question(text)) == read_question(text)

    @pytest.mark.parametrize(
        "answer, reason",
        [
            ("", "empty"), ("#Created Instruction#:\n", "empty"), ('""', "empty"),
            ("I'm sorry, but I can't help.", "refused"), ("As an AI language model, I do not ask.", "refused"),
            ("Solution:\nx = a + b", "solution"), ("<think>Add two numbers.", "empty"),
            ("```python\nx = a + b\n```", "solution"), ("def add(a, b):\n    return a + b", "solution"),
            ("Sort.", "too_short"), ("Sort a list. " * 20, "too_long"),
            ("Speed this up:\n```python\nx = 1\n```", None), ("Write a class that holds an answer.", None),
        ],
    )  # fmt: skip
    def test_reasons_to_refuse_a_question(self, answer, reason):
        assert check(answer) == reason

    def test_labeled_questions_are_parsed_as_labeled(self):
        """Texts of teachers with the question that they contain, or `null`."""
        for row in scripted.labeled("questions.jsonl"):
            found = read_question(row["text"])
            reason = check_question(found, min_chars=20, max_chars=4000)
            assert (None if reason else found) == row["question"], row["text"]

    def test_released_questions_are_unchanged(self):
        texts = [row["instruction"] for row in scripted.soda("new_data.json")]
        assert len(texts) == 100
        assert [read_question(text) for text in texts] == [text.strip() for text in texts]
        assert [read_question(f"#Created Instruction#:\n{text}") for text in texts] == [text.strip() for text in texts]
        config = CycleConfig()
        limits = {"min_chars": config.min_question_chars, "max_chars": config.max_question_chars}
        assert Counter(check(text, **limits) for text in texts) == {None: 100}


class TestGeneration:
    QUESTIONS = tuple(Question(name, f"Task {name}.") for name in "abcdef")
    FEEDBACK = tuple(
        Graded(name, level) for name, level in zip("abcdef", ("easy", *["medium"] * 2, *["hard"] * 3), strict=True)
    )

    def generate(
        self, write=lambda prompt: f"A task after {prompt}", config=None, feedback=FEEDBACK, cycle=1, **given
    ):
        teacher = Teacher(write)
        config = config or ShortConfig(new_easy=2, new_medium=1, new_hard=3)
        return generate_questions(feedback, self.QUESTIONS, teacher, cycle=cycle, config=config, **given), teacher

    def test_each_level_is_asked_by_its_prompt(self):
        config = ShortConfig(new_easy=2, new_medium=1, new_hard=3)
        config.seed = 4
        new, teacher = self.generate(config=config)
        assert len(teacher.calls) == 1 and teacher.settings[0]["seed"] == 5, "that of the run and the cycle"
        assert teacher.calls[0][:2] == ["EASY Task a."] * 2
        assert teacher.calls[0][2] in ("SAME Task b.", "SAME Task c.")
        assert sorted(teacher.calls[0][3:]) == ["SAME Task d.", "SAME Task e.", "SAME Task f."]
        assert new.asked == {"easy": 2, "medium": 1, "hard": 3}

    def test_new_questions_name_their_parents_and_levels(self):
        new, _ = self.generate()
        assert [question.id for question in new.questions[:2]] == ["a/1.0", "a/1.1"]
        by_name = {question.id: question for question in self.QUESTIONS}
        for question in new.questions:
            assert question.id.startswith(f"{question.parent}/1.")
            assert by_name[question.parent].instruction in question.instruction
            assert question.origin == {item.question_id: item.level for item in self.FEEDBACK}[question.parent]
            assert question.tests is question.answer is None

    def test_it_depends_on_seed_and_cycle_alone(self):
        first, _ = self.generate()
        again, _ = self.generate(feedback=self.FEEDBACK[::-1])
        assert first == again
        one = CycleConfig(new_easy=0, new_medium=0, new_hard=1)
        parents = {self.generate(config=one, cycle=cycle)[0].questions[0].parent for cycle in range(20)}
        assert parents == {"d", "e", "f"}

    def test_few_parents_are_used_several_times(self):
        new, _ = self.generate(config=CycleConfig(new_easy=0, new_medium=5, new_hard=0))
        names = {question.id for question in new.questions}
        assert names in ({"b/1.0", "b/1.1", "b/1.2", "c/1.0", "c/1.1"}, {"b/1.0", "b/1.1", "c/1.0", "c/1.1", "c/1.2"})

    def test_generations_follow_one_another(self):
        one, write = CycleConfig(new_easy=1, new_medium=0, new_hard=1), lambda prompt: "Sort a list of names."
        child = generate_questions(
            [Graded("a", "easy")], self.QUESTIONS, Teacher(write), cycle=1, config=one
        ).questions
        [grandchild] = generate_questions(
            [Graded("a/1.0", "hard")], child, Teacher(write), cycle=2, config=one
        ).questions
        assert (grandchild.id, grandchild.parent, grandchild.origin) == ("a/1.0/2.0", "a/1.0", "hard")

    def test_unusable_questions_are_counted_by_level(self):
        answers = {"a": "I'm sorry.", "d": "", "e": "Solution:\nx = 1"}

        def write(prompt):
            name = prompt[-2]
            return (
                Completion("Sort a list of", None, "length", None)
                if name == "f"
                else answers.get(name, "Sort names in a list.")
            )

        new, _ = self.generate(write)
        assert [question.instruction for question in new.questions] == ["Sort names in a list."]
        assert new.dropped == {"easy/refused": 2, "hard/empty": 1, "hard/solution": 1, "hard/truncated": 1}

    def test_levels_without_questions_request_nothing(self):
        new, teacher = self.generate(feedback=self.FEEDBACK[:1])
        assert new.asked == {"easy": 2} and len(teacher.calls[0]) == 2
        new, teacher = self.generate(feedback=[])
        assert new.questions == [] and teacher.calls == []

    def test_feedback_on_unknown_questions_is_refused(self):
        with pytest.raises(ValueError, match="`feedback` refers to 'z', which is not among `questions`"):
            self.generate(feedback=[Graded("z", "easy")])

    def test_a_cycle_that_was_there_already_is_refused(self):
        taken = [*self.QUESTIONS, Question("a/1.0", "")]
        with pytest.raises(ValueError, match=r"already has the id 'a/1.0' of a new one; give another `cycle`"):
            generate_questions(self.FEEDBACK, taken, Teacher(lambda prompt: ""), cycle=1)

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"new_hard": -1}, "`new_hard` is -1"),
            ({"min_question_chars": 0}, "`min_question_chars` is 0"),
            ({"max_question_chars": 5}, "`max_question_chars` 5"),
        ],
    )
    def test_wrong_values_are_named(self, given, message):
        with pytest.raises(ValueError, match=message):
            CycleConfig(**given)


def old(names: dict[str, str]) -> tuple[list[Question], dict[str, str]]:
    return [Question(name, "") for name in names], names


def new(count: int, level: str) -> list[Question]:
    return [Question(f"new-{level}-{number}", "", origin=level) for number in range(count)]


class TestMix:
    def counts(self, questions) -> Counter:
        return Counter((question.origin == "seed", self.level(question)) for question in questions)

    def level(self, question) -> str:
        return question.id.split("-")[1]

    def seeds(self, **counts):
        return old({f"old-{level}-{number}": level for level, count in counts.items() for number in range(count)})

    def test_shares_of_levels_hold_for_old_and_new_questions(self):
        seeds, known = self.seeds(easy=50, medium=50, hard=50)
        fresh = [question for level in LEVELS for question in new(50, level)]
        mixed = mix_questions(seeds, fresh, known, CycleConfig(questions_per_cycle=100, old_share=0.5))
        parts = {"easy": 10, "medium": 20, "hard": 20}
        assert self.counts(mixed) == {(age, level): parts[level] for age in (True, False) for level in LEVELS}
        assert [question.origin == "seed" for question in mixed] == [True] * 50 + [False] * 50

    def test_the_larger_parts_come_first(self):
        seeds, known = self.seeds(easy=9, medium=9, hard=9)
        assert self.counts(mix_questions(seeds, [], known, CycleConfig(questions_per_cycle=2))) == {
            (True, "medium"): 1,
            (True, "hard"): 1,
        }

    def test_missing_questions_are_replaced(self):
        seeds, known = self.seeds(easy=100, hard=3)
        mixed = mix_questions(seeds, new(4, "medium"), known, CycleConfig(questions_per_cycle=50, old_share=0.2))
        assert self.counts(mixed) == {(True, "hard"): 3, (True, "easy"): 43, (False, "medium"): 4}
        assert len(mix_questions([], new(80, "hard"), {}, CycleConfig(questions_per_cycle=50, old_share=0.9))) == 50
        assert len(mix_questions(seeds, [], known, CycleConfig(questions_per_cycle=50, old_share=0.0))) == 50

    def test_levels_with_weight_0_are_excluded(self):
        seeds, known = self.seeds(easy=9, medium=9, hard=9)
        mixed = mix_questions(seeds, [], known, CycleConfig(questions_per_cycle=20, mix_easy=0.0))
        assert self.counts(mixed) == {(True, "medium"): 9, (True, "hard"): 9}

    @given(
        st.lists(levels, max_size=30), st.lists(levels, max_size=30), st.integers(1, 40), st.floats(0, 1),
        st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 2.0])] * 2, st.sampled_from([1.0, 3.0])),
        st.randoms(use_true_random=False),
    )  # fmt: skip
    def test_any_mix(self, old_levels, new_levels, size, share, parts, rng):
        seeds, known = old({f"old-{level}-{number}": level for number, level in enumerate(old_levels)})
        fresh = [Question(f"new-{level}-{number}", "", origin=level) for number, level in enumerate(new_levels)]
        config = CycleConfig(
            questions_per_cycle=size,
            old_share=share,
            **dict(zip(("mix_easy", "mix_medium", "mix_hard"), parts, strict=True)),
        )
        mixed = mix_questions(seeds, fresh, known, config)
        allowed = [name for name in [*seeds, *fresh] if dict(zip(LEVELS, parts, strict=True))[self.level(name)]]
        assert len(mixed) == min(size, len(allowed)) and len(set(mixed)) == len(mixed)
        assert [question for question in [*seeds, *fresh] if question in mixed] == mixed
        kept_old = sum(question in seeds for question in mixed)
        assert kept_old >= min(round(size * share), sum(question in allowed for question in seeds))
        shuffled = rng.sample(seeds, len(seeds))
        assert set(mix_questions(shuffled, fresh, known, config)) == set(mixed)

    def test_the_seed_chooses(self):
        seeds, known = self.seeds(hard=30)
        chosen = {
            frozenset(mix_questions(seeds, [], known, CycleConfig(questions_per_cycle=5), seed=seed))
            for seed in range(5)
        }
        assert len(chosen) == 5

    def test_questions_without_a_level_are_refused(self):
        with pytest.raises(ValueError, match="the old question 'a' has no level"):
            mix_questions([Question("a", "")], [], {}, CycleConfig())
        with pytest.raises(ValueError, match="the new question 'a' has no level"):
            mix_questions([], [Question("a", "")], {"a": "easy"}, CycleConfig())

    @pytest.mark.parametrize(
        "given, message",
        [
            ({"questions_per_cycle": 0}, "`questions_per_cycle` is 0"), ({"old_share": 1.5}, "`old_share` is 1.5"),
            ({"mix_easy": -1.0}, "`mix_easy` is -1.0"),
            ({"mix_hard": float("inf")}, "`mix_hard` is inf"),
            (dict.fromkeys(("mix_easy", "mix_medium", "mix_hard"), 0), "are all 0"),
        ],
    )  # fmt: skip
    def test_wrong_values_are_named(self, given, message):
        with pytest.raises(ValueError, match=message):
            CycleConfig(**given)
