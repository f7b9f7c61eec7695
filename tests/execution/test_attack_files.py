"""Attacks on files: programs change nothing outside their temporary folder and cannot read secrets."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.execution.conftest import GUARD, RunOne
from tests.execution.machine_state import CONTAINED, ROOT, linux_only
from trl_akd.execution import CodeExecutor

pytestmark = linux_only

FOLDERS = "/ /etc /usr /usr/lib /usr/local /bin /lib /var /var/tmp /opt /home /root /run /dev /sys /proc /mnt".split()
FOLDERS += ["/proc/sys/kernel", str(Path(os.__file__).parent), str(ROOT), str(Path.home())]
TOKEN = f"left-by-a-program-{uuid.uuid4().hex}"
PREFIXES = {Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable).resolve().parent}
REPORT = "import os\nseen = []\n{body}\nif seen:\n    raise RuntimeError('seen: ' + repr(seen))\n"


def seen(run_one: RunOne, body: str) -> str:
    """Return what a program found that should be hidden, or an empty text."""
    result = run_one(REPORT.format(body=body), "")
    assert "escaped" not in result.message
    assert result.status == "passed" or result.message.startswith("seen: "), result
    return result.message


class TestReachableFiles:
    """At levels with namespaces, the root contains only allowed paths."""

    pytestmark = pytest.mark.parametrize("level", CONTAINED, indirect=True)

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_no_writing(self, run_one: RunOne, folder: str) -> None:
        body = f"""
for root in ("", "/proc/self/root", "/proc/1/root"):
    path = root + {folder!r} + "/{TOKEN}"
    for make in (lambda p: open(p, "w").close(), os.mkdir, lambda p: os.symlink("/", p), os.mkfifo, os.mknod):
        try:
            make(path)
            seen.append(path)
        except OSError: pass
try: names = sorted(os.listdir({folder!r}))[:50]
except OSError: names = []
for path in (os.path.join({folder!r}, name) for name in names):
    if os.path.isfile(path) and not path.startswith("/proc"):
        for change in (lambda p: os.open(p, os.O_WRONLY | os.O_APPEND), os.utime,
                       lambda p: os.chmod(p, os.stat(p).st_mode), lambda p: os.truncate(p, os.path.getsize(p))):
            try:
                change(path)
                seen.append((path, "changed"))
            except OSError: pass
"""
        assert not seen(run_one, GUARD + body)
        assert not Path(folder, TOKEN).exists()

    def test_kernel_settings(self, run_one: RunOne) -> None:
        body = """
for path in ("/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/kcore",
             "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj", "/proc/sys/user/max_user_namespaces", "/dev/mem",
             "/sys/power/state", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/tty", "/dev/console", "/dev/kvm"):
    try:
        os.close(os.open(path, os.O_WRONLY))
        seen.append(path)
    except OSError: pass
"""
        assert not seen(run_one, body)

    def test_root_contains_only_allowed_paths(self, run_one: RunOne) -> None:
        system = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"}
        allowed = system | {prefix.parts[1] for prefix in PREFIXES}
        assert not seen(run_one, f"seen += set(os.listdir('/')) - {allowed!r}")
        assert not seen(
            run_one,
            "seen += set(os.listdir('/dev')) - {'null', 'zero', 'full', 'random', 'urandom', 'shm', 'fd', "
            "'stdin', 'stdout', 'stderr', 'tty', 'pts', 'ptmx', 'mqueue', 'console', 'core'}",
        )

    def test_home_contains_only_python(self, run_one: RunOne) -> None:
        homes = (Path.home(), Path("/root"), Path("/home"))
        leading = {str(parent) for prefix in PREFIXES for parent in (prefix, *prefix.parents)}
        body = f"""
for home in {[str(home) for home in homes]!r}:
    try: seen += [(home, name) for name in os.listdir(home) if f"{{home}}/{{name}}" not in {leading!r}]
    except OSError: pass
"""
        assert not seen(run_one, body)

    def test_files_of_others(self, run_one: RunOne, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text(TOKEN)
        for folder in (secret, *secret.parents[:-1]):
            if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
                folder.chmod(0o755)
        paths = [
            str(secret),
            str(ROOT / "pyproject.toml"),
            "/etc/shadow",
            "/etc/sudoers",
            "/etc/hostname",
            "/etc/machine-id",
        ]
        paths += [
            str(Path.home() / name) for name in (".ssh", ".netrc", ".cache", ".bash_history", ".aws", ".gitconfig")
        ]
        paths += [
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/var/log",
            "/sys/class",
            "/boot",
            "/srv",
            "/run/secrets",
        ]
        ways = ["", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../..", "/proc/thread-self/root", "/.."]
        body = f"""
import glob
for path in {paths!r}:
    for way in {ways!r} + glob.glob("/proc/[0-9]*/root") + glob.glob("/proc/[0-9]*/fd/*"):
        try:
            os.close(os.open(way + path, os.O_RDONLY))
            seen.append(way + path)
        except OSError: pass
"""
        assert not seen(run_one, body)

    def test_accounts_of_the_machine_are_hidden(self, run_one: RunOne) -> None:
        text = Path("/etc/passwd").read_text()
        assert not seen(
            run_one,
            f"text = open('/etc/passwd').read() if os.path.exists('/etc/passwd') else ''\n"
            f"if text == {text!r}: seen.append(text)",
        )

    def test_between_programs(self, executor: CodeExecutor, check_cleanup: None) -> None:
        places = f"[folder + '/{TOKEN}' for folder in ('/tmp', '/dev/shm', os.getcwd(), os.path.expanduser('~'))]"
        write = f"import os\nfor path in {places}:\n    try: open(path, 'w').write('x')\n    except OSError: pass\n"
        write += f"open('/tmp/{TOKEN}').close()\n"
        read = REPORT.format(
            body=f"seen += filter(os.path.exists, {places})\nseen += {{*os.listdir('/tmp')}} - {{'candidate.py'}}"
        )
        results = executor.run([(write, ""), (write, ""), (read, ""), (read, "")] * 4)
        assert {result.message for result in results} == {""}
        assert {result.status for result in results} == {"passed"}
        for folder in (Path("/tmp"), Path("/dev/shm"), Path.cwd(), Path.home()):
            assert not (folder / TOKEN).exists()

    def test_system_v_and_queues_between_programs(self, executor: CodeExecutor, check_cleanup: None) -> None:
        make = (
            "import ctypes\nctypes.CDLL(None).shmget(4242, 4096, 0o1666)\nctypes.CDLL(None).semget(4242, 1, 0o1666)\n"
        )
        find = REPORT.format(
            body="import ctypes\nc = ctypes.CDLL(None)\nif c.shmget(4242, 1, 0) >= 0: seen.append('shm')\n"
            "if c.semget(4242, 1, 0) >= 0: seen.append('sem')"
        )
        results = executor.run([(make, ""), (make, ""), (find, ""), (find, "")])
        assert [result.message for result in results[2:]] == ["", ""]


def test_output_of_others(executor: CodeExecutor, check_cleanup: None) -> None:
    write = f"import os\nfor fd in (1, 2): os.write(fd, b'{TOKEN}')\nprint('{TOKEN}', flush=True)\n"
    body = f"""
for fd in range(256):
    try:
        if b"{TOKEN[:20]}" in os.pread(fd, 10 ** 6, 0): seen.append(fd)
        os.ftruncate(fd, 0)
        seen.append((fd, "changed"))
    except OSError: pass
"""
    results = executor.run([(write, ""), (write, ""), (REPORT.format(body=body), ""), (REPORT.format(body=body), "")])
    assert [result.message for result in results] == [""] * 4


SECRET = f"secret-{uuid.uuid4().hex}"


@pytest.fixture
def guarded(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CodeExecutor]:
    """An executor whose caller holds a secret in its environment and in an inheritable descriptor."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "sitecustomize.py"))
    (tmp_path / "sitecustomize.py").write_text(f"SECRET = {SECRET!r}\n")
    (tmp_path / "json.py").write_text(f"SECRET = {SECRET!r}\n")
    held = os.open(tmp_path / "held", os.O_CREAT | os.O_RDWR)
    os.write(held, SECRET.encode())
    os.set_inheritable(held, True)
    with CodeExecutor(1, isolation=level, allow_code_execution=True) as executor:
        yield executor
    assert os.fstat(held).st_size == len(SECRET)
    os.close(held)


def test_environment_and_descriptors_are_not_inherited(guarded: CodeExecutor) -> None:
    body = f"""
import json, subprocess, sys
texts = [repr(dict(os.environ)), open("/proc/self/environ").read(), subprocess.check_output(["env"], text=True)]
texts += [repr(sys.path), repr(sys.argv), json.__file__]
texts += [str(getattr(module, "SECRET", "")) for module in list(sys.modules.values())]
for fd in range(3, 256):
    try: texts.append(os.pread(fd, 1000, 0).decode("latin-1"))
    except OSError: pass
seen += [text for text in texts if {SECRET!r} in text or "pytest-of" in text]
seen += [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{fd}}")
         and os.path.realpath(f"/proc/self/fd/{{fd}}").endswith("/held")]
"""
    [result] = guarded.run([(REPORT.format(body=body), "")])
    assert (result.status, result.message) == ("passed", "")


@pytest.mark.parametrize("level", CONTAINED, indirect=True)
def test_no_visible_process_contains_the_secret(guarded: CodeExecutor) -> None:
    body = f"""
import glob
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try: text = open(path).read()
    except OSError: continue
    if {SECRET!r} in text or "pytest" in text: seen.append(path)
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) != os.getpid():
        for name in ("mem", "environ", "maps", "cwd", "root", "fd/0", "fd/3"):
            try:
                os.close(os.open(f"/proc/{{pid}}/{{name}}", os.O_RDONLY))
                seen.append((pid, name))
            except OSError: pass
"""
    [result] = guarded.run([(REPORT.format(body=body), "")])
    assert (result.status, result.message) == ("passed", "")


def where(run_one: RunOne, mess: str) -> Path:
    """Return the folder in which a program left files of all kinds."""
    result = run_one(f"import os\nhere = os.getcwd()\n{mess}\nraise RuntimeError(here)\n", "")
    assert result.error_type == "RuntimeError", result
    folder = Path(result.message)
    assert folder.is_absolute()
    return folder


MESSES = {
    "files": "for i in range(2000): open(str(i), 'w').close()",
    "closed folder": "os.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
    "closed itself": "try: os.chmod('.', 0)\nexcept OSError: pass",
    "deep": "for _ in range(1500):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)",
    "bytes": "open(b'\\xff\\n\\x1b[31m', 'w').close()\nopen(b'-rf', 'w').close()\nos.mkdir(b'*')",
    "special": "import socket\nsocket.socket(socket.AF_UNIX).bind('socket')\nos.mkfifo('fifo')",
    "links": "os.symlink('loop', 'loop')\nos.symlink('/', 'root')\nos.symlink('/etc', 'etc')\nos.symlink('..', 'up')",
    "in use": "import time\nif os.fork() == 0:\n    while True:\n        try: open(str(time.time()), 'w')\n"
    "        except OSError: pass",
    "temporary": "import tempfile\ntempfile.mkdtemp()\ntempfile.mkstemp()\ntempfile.NamedTemporaryFile(delete=False)",
}


@pytest.mark.parametrize("mess", MESSES)
def test_own_folder_is_removed(run_one: RunOne, mess: str, executor: CodeExecutor) -> None:
    folder = where(run_one, MESSES[mess])
    if executor.isolation == "process":
        assert not folder.exists()
        assert folder != Path.cwd()


def test_temporary_folder_is_removed_after_the_deadline(run_one: RunOne) -> None:
    assert (
        run_one(f"import tempfile\ntempfile.mkdtemp('{TOKEN}')\nwhile True: pass\n", timeout=0.4).status == "timed_out"
    )
    assert not [*Path("/tmp").glob(f"*{TOKEN}"), *Path("/tmp").glob(f"*/*{TOKEN}")]


def test_cleanup_does_not_follow_links(run_one: RunOne, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    victim.chmod(0o500)
    for mess in (
        f"os.symlink({str(victim)!r}, 'link')\nos.mkdir('a')\nos.symlink({str(victim)!r}, 'a/link')\nos.chmod('a', 0)",
        f"os.chdir('/')\nos.rename(here, here + 'x')\nos.symlink({str(victim)!r}, here)",
        f"os.link({str(victim / 'kept')!r}, 'hard')",
    ):
        run_one(
            f"import os\nhere = os.getcwd()\n{mess}\n",
            "",
        )
        assert (victim / "kept").read_text() == "kept"
        assert victim.stat().st_mode & 0o777 == 0o500
