"""Packages are fetched once, checked, unpacked whole, and never trusted blindly."""

import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from bayeslora_pyro.tasks import PACKAGES, Package, fetch, packages
from bayeslora_pyro.tasks.cache import cache_folder, is_intact, publish

FILES = {"data/a.txt": b"first", "data/b.txt": b"second"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def digest(content):
    return sha256(content).hexdigest()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_package(content, **options):
    members = {name: digest(file) for name, file in FILES.items()}
    return Package("tiny", "1.0", "tiny-1.0-py3-none-any.whl", digest(content), members, **options)


class FakePip:
    """Stands where the subprocess does, and hands out one archive."""

    def __init__(self, content=None, stderr="", fail_first=0):
        self.content, self.stderr, self.fail_first, self.commands = content, stderr, fail_first, []

    def __call__(self, command, **options):
        self.commands.append(command)
        if self.content is None or len(self.commands) <= self.fail_first:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        folder = Path(command[command.index("--dest") + 1])
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        name = "tiny-1.0.zip" if "sdist" in requirement else "tiny-1.0-py3-none-any.whl"
        (folder / name).write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch):
    def install(*args, **options):
        fake = FakePip(*args, **options)
        monkeypatch.setattr(packages.subprocess, "run", fake)
        return fake

    return install


def check_fetched(folder):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "a.txt": b"first",
        "b.txt": b"second",
    }


@pytest.mark.parametrize("nested", [None, "extra/inner.tar.gz"])
def test_fetch_unpacks_once_and_uses_the_cache(pip, cache, nested):
    content = zipped({nested: tarred(FILES), "other": b""} if nested else {**FILES, "other": b""})
    fake = pip(content)
    package = make_package(content, nested=nested)
    for _ in range(3):
        check_fetched(fetch(package))
    assert len(fake.commands) == 1
    assert fake.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--require-hashes" in fake.commands[0]
    assert [path.name for path in cache.iterdir()] == ["tiny-1.0"]  # no scratch folder stays


def test_other_members_stay_in_the_archive(pip, tmp_path):
    content = zipped({**FILES, "../../escaped.txt": b"out", "/absolute.txt": b"out"})
    pip(content)
    check_fetched(fetch(make_package(content)))
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped.txt", "absolute.txt")]


@pytest.mark.parametrize("damage", ["change", "delete", "empty"])
def test_damaged_cache_is_fetched_again(pip, caplog, damage):
    content = zipped(FILES)
    fake = pip(content)
    package = make_package(content)
    folder = fetch(package)
    if damage == "delete":
        (folder / "a.txt").unlink()
    else:
        (folder / "a.txt").write_bytes(b"fIrst" if damage == "change" else b"")
    check_fetched(fetch(package))
    assert len(fake.commands) == 2
    assert "damaged" in caplog.text


def test_wrong_archive_is_refused(pip, cache):
    pip(zipped({**FILES, "more": b"planted"}))
    with pytest.raises(
        OSError, match=r"tiny-1.0-py3-none-any.whl came with sha256 \w+, not \w+: it was refused"
    ):
        fetch(make_package(zipped(FILES)))
    assert not cache.exists()


def test_wrong_member_is_refused(pip, cache):
    content = zipped({**FILES, "data/a.txt": b"planted"})
    pip(content)
    with pytest.raises(OSError, match="does not read back"):
        fetch(make_package(content))
    assert list(cache.iterdir()) == []


def test_without_network_says_what_to_do_and_then_takes_the_file(pip, cache):
    content = zipped(FILES)
    package = make_package(content)
    pip(None, stderr="WARNING: retrying\nERROR: No matching distribution found for tiny==1.0\n\n")
    with pytest.raises(OSError, match=r"cannot fetch tiny==1\.0: ERROR: No matching") as error:
        fetch(package)
    assert "pip download --no-deps tiny==1.0" in str(error.value)
    assert f"put {package.archive} into {cache / 'downloads'}" in str(error.value)
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / package.archive).write_bytes(content)
    check_fetched(fetch(package))


def test_wrong_file_in_downloads_is_refused(pip, cache):
    fake = pip(zipped(FILES))
    package = make_package(zipped(FILES))
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / package.archive).write_bytes(b"half a wheel")
    with pytest.raises(OSError, match=r"has sha256 .* delete it"):
        fetch(package)
    assert not fake.commands


@pytest.mark.parametrize(("archive", "calls"), [("tiny-1.0.zip", 2), ("tiny-1.0-py3-none-any.whl", 1)])
def test_source_archive_gets_a_second_try_with_a_fresh_setuptools(pip, archive, calls):
    content = zipped(FILES)
    fake = pip(content, fail_first=1, stderr="error: metadata-generation-failed")
    name = "sdist" if archive.endswith(".zip") else "tiny"
    package = Package(name, "1.0", archive, digest(content), make_package(content).members)
    if calls == 2:
        check_fetched(fetch(package))
        assert "--no-build-isolation" not in fake.commands[1]
    else:
        with pytest.raises(OSError, match="metadata-generation-failed"):
            fetch(package)
    assert len(fake.commands) == calls


def test_pip_that_is_missing_is_named(pip):
    pip(None, stderr="/bin/python: No module named pip\n")
    with pytest.raises(OSError, match="No module named pip"):
        fetch(make_package(b""))


def test_publish_keeps_what_another_process_put_there_first(tmp_path):
    folder = tmp_path / "whole"

    def intact(place):
        return is_intact(place, {"file": digest(b"x")})

    def build(staging):
        (staging / "file").write_bytes(b"x")
        folder.mkdir()  # as if another process had just finished
        (folder / "file").write_bytes(b"x")

    publish(folder, build, intact)
    assert intact(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_failed_build_leaves_nothing(tmp_path):
    def build(staging):
        (staging / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "whole", build, lambda place: True)
    assert list(tmp_path.iterdir()) == []


def test_many_threads_publish_one_folder(tmp_path):
    content, errors = b"x" * 100_000, []
    digests = {"file": digest(content)}

    def work():
        try:
            publish(
                tmp_path / "whole",
                lambda place: (place / "file").write_bytes(content) and None,
                lambda place: is_intact(place, digests),
            )
        except OSError as error:  # collected, for an error in a thread would pass unseen
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert is_intact(tmp_path / "whole", digests)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BAYESLORA_CACHE": "/one"}, "/one"),
        ({"BAYESLORA_CACHE": "", "XDG_CACHE_HOME": "/two"}, "/two/bayeslora"),
        ({"BAYESLORA_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/three"}, "/three/.cache/bayeslora"),
    ],
)
def test_cache_folder(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder().as_posix() == expected


def test_rows_are_whole():
    for name, row in PACKAGES.items():
        assert name == row.name
        assert len(row.digests) == len(row.members) > 0
        assert all(len(value) == 64 for value in [row.sha256, *row.members.values()])
        assert row.version in row.archive
