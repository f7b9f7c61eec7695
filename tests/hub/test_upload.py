"""Uploads with the real client: one commit, retries, errors in one sentence, no secrets."""

from pathlib import Path
from typing import Any

import pytest

from tests.hub.fixtures import TOKEN
from tests.hub.loopback import DROP, Hub
from trl_akd.hub.files import is_replaced
from trl_akd.hub.upload import HubError, repeat_command, request, upload

FILES = {"README.md": b"---\nlicense: mit\n---\n# M\n", "config.json": b"{}", "model.safetensors": b"\0" * 100}
KEPT = "Nothing is lost."


def push(**options):
    return upload("me/student", FILES, message="Upload", kept=KEPT, **options)


def test_files_arrive_in_one_commit(hub: Hub):
    push(private=True)
    repository = hub.repositories["model", "me/student"]
    assert repository.files == FILES and repository.commits == 1 and repository.private
    assert {token for _, path, token in hub.requests if "/large/" not in path} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "request_", ["POST /api/repos/create", "preupload", "objects/batch", "PUT /large", "POST .*/commit/", "validate"]
)
@pytest.mark.parametrize("outcome", [DROP, 503])
def test_failed_requests_are_repeated(hub: Hub, request_: str, outcome: int | str, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail(request_, outcome)
    push()
    assert hub.files("me/student") == FILES and not hub.failures


@pytest.mark.parametrize(
    ("request_", "outcomes", "message"),
    [
        ("POST /api/repos/create", [403] * 2, "The token may not write to 'me/student'; create one with write access"),
        ("POST .*/commit/", [403], "The token may not write to 'me/student'"),
        (
            "POST .*/commit/",
            [DROP] * 9,
            r"or failed, 5 times in a row \(.+\); check the connection",
        ),
        ("POST .*/commit/", [401], "The Hub does not accept the token for 'me/student'"),
        ("POST .*/commit/", [404], "'me/student', its namespace or its branch does not exist"),
        ("POST .*/commit/", [413], r"The upload to 'me/student' failed \(.+\)\. Nothing"),
    ],
)
def test_errors_are_one_sentence_and_change_nothing(
    hub: Hub, request_: str, outcomes: list, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail(request_, *outcomes)
    with pytest.raises(HubError, match=message) as caught:
        push()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(KEPT)
    assert not any(repository.files for repository in hub.repositories.values())


@pytest.mark.parametrize(
    ("status", "message", "attempts"),
    [
        (404, "has no Xet storage; set HF_HUB_DISABLE_XET=1 in the environment", 1),
        (403, "The token may not write to 'me/student'", 1),
        (503, "or failed, 5 times in a row", 5),
    ],
)
def test_errors_of_xet(status: int, message: str, attempts: int, monkeypatch: pytest.MonkeyPatch, hub: Hub):
    kind = "server" if status >= 500 else "client"
    url = f"{hub.endpoint}/api/models/me/student/xet-write-token/main"
    calls = []

    def fail():
        calls.append(1)
        raise ConnectionError(f"Network error: Request error: HTTP status {kind} error ({status} No), domain: {url}")

    with pytest.raises(HubError, match=message):
        request(fail, "me/student", KEPT)
    assert len(calls) == attempts


def test_without_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.fail("POST /api/repos/create", 401, 401)
    with pytest.raises(HubError, match="cannot be uploaded without a token; run `hf auth login`"):
        push()


def test_a_name_that_is_none(hub: Hub):
    with pytest.raises(HubError, match="'a/b/c' is not a name on the Hub; give one such as 'me/student'"):
        upload("a/b/c", FILES, message="Upload", kept=KEPT)


def test_an_existing_repository_keeps_files_that_are_not_the_model(hub: Hub):
    others = {"LICENSE": b"MIT", "notes/a.md": b"a"}
    hub.add("me/student", {**others, "adapter_config.json": b"{}", "pytorch_model.bin": b"old"})
    push(replaces=is_replaced)
    assert hub.files("me/student") == {**FILES, **others}
    assert hub.repositories["model", "me/student"].commits == 2


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_secrets_are_not_uploaded(hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    value = "abcdef0123456789"
    monkeypatch.setenv(name, value)
    card = tmp_path / "README.md"
    card.write_text(f"My key is {value}.")
    for content in (card, card.read_bytes()):
        with pytest.raises(ValueError, match=r"README\.md contains the value of") as caught:
            upload("me/student", {**FILES, "README.md": content}, message="Upload", kept=KEPT)
        assert value not in str(caught.value)
    assert not hub.requests


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        ({"hub_dataset_id": "me/plans", "private": True}, "run --hub_dataset_id me/plans --private"),
        ({"hub_dataset_id": "me/plans", "private": False}, "run --hub_dataset_id me/plans --private false"),
        ({"hub_model_id": "me/student", "private": None, "revision": None}, "run --hub_model_id me/student"),
        (
            {"hub_model_id": "me/student", "merge_adapter": True, "base_model": "org/base", "revision": "v2"},
            "run --hub_model_id me/student --merge_adapter --base_model org/base --revision v2",
        ),
        ({"hub_model_id": "my model", "commit_message": "It's new"}, None),
    ],
)
def test_the_command_that_uploads_again_is_complete(flags: dict[str, Any], command: str | None):
    sentence = repeat_command("run", **flags)
    quoted = command or "run --hub_model_id me/student --commit_message 'It'\"'\"'s new'"
    assert sentence == f"Nothing is lost: the files are in 'run', and `trl-akd push {quoted}` uploads them."


def test_the_command_that_uploads_again_works_in_a_shell():
    sentence = repeat_command("my run", hub_model_id="my model", private=None)
    assert "`trl-akd push 'my run' --hub_model_id me/student` uploads them" in sentence
