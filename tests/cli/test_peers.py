"""Peers of `rlx bench`, played by small programs: what they are asked, what is made of their answers and failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlx.cli.compare import Result, compare
from rlx.cli.peers import python_worker
from rlx.cli.peers.find import find_peers, parse_peers
from rlx.cli.peers.llama_bench import LlamaBench
from rlx.cli.peers.peer import PeerSetting
from rlx.cli.peers.python_peer import PythonPeer
from rlx.cli.peers.work import Work
from rlx.errors import OptionError, PeerError

PREFILL, DECODE = Work("prefill", 40), Work("decode", 8)
BATCH, DEPTH = Work("batch", 8, sequences=4), Work("depth", 8, depth=100)
ENCODE = Work("encode", 16, sequences=4)

# llama-bench as far as RLX knows it: flags in, a JSON list out, the arguments in a log
LLAMA_BENCH = """
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(sys.argv[0] + ".log", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
depth, generated = map(int, flags["-gp"].split(",")) if "-gp" in flags else (0, int(flags["-n"]))
prompt = depth or int(flags["-p"])
speed = 1000.0 if not generated else 100.0
entry = {"build_commit": "abc", "n_prompt": prompt, "n_gen": generated, "samples_ts": [speed - 1, speed, speed + 9]}
print(json.dumps([{"n_prompt": 7, "n_gen": 7, "samples_ts": [1]}, entry]))
"""
BATCHED_BENCH = """
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("a remark")
print(json.dumps({"pl": int(flags["-npl"]), "tg": int(flags["-ntg"]), "speed_tg": 321.5}))
"""


def program(folder: Path, source: str, name: str = "llama-bench") -> Path:
    """An executable with this Python source."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return path


def setting(timeout_seconds: float = 60.0, model: str = "model.gguf") -> PeerSetting:
    return PeerSetting(Path(model), 2, "fast", timeout_seconds)


def bench(path: Path, *, ik: bool = False, timeout_seconds: float = 60.0) -> LlamaBench:
    return LlamaBench("llama.cpp", path, setting(timeout_seconds), ik=ik)


def asked(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in Path(f"{path}.log").read_text().splitlines()]


def is_over(pid: int) -> bool:
    """Whether a process has ended, soon; one that nobody has waited for yet counts."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


# ---- llama-bench ----


def test_the_speed_is_the_median_of_the_samples_of_the_right_entry(tmp_path):
    peer = bench(program(tmp_path, LLAMA_BENCH))
    assert peer.run(PREFILL) == 1000.0
    assert peer.run(DECODE) == 100.0
    assert peer.version == "abc"


def test_what_llama_bench_is_asked(tmp_path):
    path = program(tmp_path, LLAMA_BENCH)
    for work in (PREFILL, DECODE, DEPTH):
        bench(path).run(work)
    always = ["-m", "model.gguf", "-t", "2", "-r", "1", "-o", "json"]
    assert asked(path) == [
        [*always, "-p", "40", "-n", "0"],
        [*always, "-p", "0", "-n", "8"],
        [*always, "-p", "0", "-n", "8", "-d", "100"],
    ]


def test_ik_llama_cpp_repacks_and_has_another_flag_for_a_depth(tmp_path):
    path = program(tmp_path, LLAMA_BENCH)
    assert bench(path, ik=True).run(DEPTH) == 100.0
    assert asked(path)[0][-8:] == ["-p", "0", "-n", "0", "-gp", "100,8", "-rtr", "1"]


def test_a_batch_is_measured_by_the_program_beside_it(tmp_path):
    peer = bench(program(tmp_path, LLAMA_BENCH))
    assert "llama-batched-bench" in (peer.refuses(BATCH) or "")
    program(tmp_path, BATCHED_BENCH, "llama-batched-bench")
    assert peer.refuses(BATCH) is None
    assert peer.run(BATCH) == 321.5


def test_what_llama_bench_cannot_do(tmp_path):
    path = program(tmp_path, LLAMA_BENCH)
    assert bench(path).refuses(ENCODE)
    assert "gguf" in (LlamaBench("llama.cpp", path, setting(model="folder"), ik=False).refuses(PREFILL) or "")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Segmentation fault",
        "[]",
        "{}",
        "null",
        "3",
        '[{"n_prompt": 40, "n_gen": 0}]',
        '[{"n_prompt": 40, "n_gen": 0, "samples_ts": []}]',
        '[{"n_prompt": 40, "n_gen": 0, "samples_ts": ["fast"]}]',
        '[{"n_prompt": 40, "n_gen": 0, "samples_ts": [NaN]}]',
        '[{"n_prompt": 40, "n_gen": 0, "samples_ts": [0.0]}]',
        '[{"n_prompt": 40, "n_gen": 0, "samples_ts": [-5.0]}]',
        '[{"n_prompt": 41, "n_gen": 0, "samples_ts": [5.0]}]',
        '[{"n_prompt": 40, "n_gen": 0, "samples_ts": [5.0]}',
    ],
)
def test_garbage_is_no_speed(tmp_path, said):
    peer = bench(program(tmp_path, f"print({said!r})"))
    with pytest.raises(PeerError, match="printed no speed"):
        peer.run(PREFILL)


@pytest.mark.parametrize("said", ["", '{"pl": 4}', '{"pl": 4, "speed_tg": "x"}', '{"pl": 5, "speed_tg": 1.0}', "{"])
def test_garbage_of_the_batched_program_is_no_speed(tmp_path, said):
    program(tmp_path, f"print({said!r})", "llama-batched-bench")
    with pytest.raises(PeerError, match="printed no speed"):
        bench(tmp_path / "llama-bench").run(BATCH)


def test_a_failure_is_told_in_its_own_words(tmp_path):
    peer = bench(program(tmp_path, "import sys; sys.exit('error: failed to load model')"))
    with pytest.raises(PeerError) as caught:
        peer.run(PREFILL)
    assert "exit code 1" in caught.value.what
    assert "failed to load model" in str(caught.value.found)


def test_a_program_that_takes_too_long_is_ended(tmp_path):
    path = program(
        tmp_path, "import os, sys, time\nopen(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    with pytest.raises(PeerError, match="took longer than"):
        bench(path, timeout_seconds=2.0).run(PREFILL)
    assert is_over(int(Path(f"{path}.pid").read_text()))


def test_a_file_that_is_no_program(tmp_path):
    path = tmp_path / "llama-bench"
    path.write_text("text")
    with pytest.raises(PeerError, match="cannot be started"):
        bench(path).run(PREFILL)


# ---- Python packages ----

# an interpreter that answers as python_worker.py would: `-c` asks for missing modules, a script is the worker
ANSWERS = "import json, sys\nfor line in sys.stdin:\n    print(json.dumps({answer}), flush=True)"


def python_peer(folder: Path, source: str, timeout_seconds: float = 60.0) -> PythonPeer:
    return PythonPeer("torch-bf16", "torch", "bf16", program(folder, source, "python"), setting(timeout_seconds))


def test_the_speed_of_a_package_is_work_by_seconds(tmp_path):
    peer = python_peer(tmp_path, ANSWERS.format(answer={"seconds": 0.5, "version": "torch 9"}))
    assert [peer.run(work) for work in (PREFILL, BATCH, ENCODE)] == [40 / 0.5, 4 * 8 / 0.5, 4 / 0.5]
    assert peer.version == "torch 9"
    peer.close()


@pytest.mark.parametrize("answer", ['{"error": "no such model"}', '{"seconds": 0}', '{"seconds": "NaN"}', "[]", "{}"])
def test_an_answer_without_a_time_is_a_failure(tmp_path, answer):
    peer = python_peer(tmp_path, ANSWERS.format(answer=f"json.loads({answer!r})"))
    with pytest.raises(PeerError):
        peer.run(PREFILL)
    peer.close()


def test_a_package_that_ends_is_told_with_its_last_words(tmp_path):
    peer = python_peer(tmp_path, "import sys; sys.exit('out of memory')")
    for _ in range(2):  # a later run starts it again
        with pytest.raises(PeerError, match="ended in the middle") as caught:
            peer.run(PREFILL)
        assert "out of memory" in str(caught.value.found)


def test_a_package_that_takes_too_long_is_ended(tmp_path):
    peer = python_peer(tmp_path, "import time; time.sleep(600)", timeout_seconds=1.0)
    start = time.monotonic()
    with pytest.raises(PeerError, match="took longer than 1 s"):
        peer.run(PREFILL)
    assert time.monotonic() - start < 60


class FakePackage:
    """A package of `python_worker.py` that counts, and fails at a prefill."""

    version = "fake 1"
    runs = 0

    def __init__(self, request):
        self.request = request

    def prepare(self, work):
        if work["name"] == "prefill":
            raise ValueError("no")
        return work

    def run(self, work, prepared):
        assert prepared is work
        FakePackage.runs += 1


def test_the_worker_warms_up_once_for_each_work_and_goes_on_after_a_failure(monkeypatch):
    import io

    lines = "".join(json.dumps(work.to_json()) + "\n" for work in (PREFILL, DECODE, DECODE, BATCH))
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    monkeypatch.setitem(python_worker.PACKAGES, "torch", FakePackage)  # type: ignore[arg-type]
    FakePackage.runs = 0
    answers = io.StringIO()
    python_worker.serve({"library": "torch"}, answers)
    failed, *good = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert failed == {"error": "ValueError: no"}
    assert all(answer["seconds"] >= 0 and answer["version"] == "fake 1" for answer in good)
    assert FakePackage.runs == 2 + 1 + 2


def test_the_worker_runs_without_rlx_and_keeps_what_packages_print_off_its_answers():
    """The real script in a bare interpreter: a package that is not there is an answer, not a traceback."""
    request = json.dumps({"library": "openvino", "precision": "f32", "model": "x", "threads": 1})
    done = subprocess.run(
        [sys.executable, "-I", "-S", python_worker.__file__, request],
        input=json.dumps(ENCODE.to_json()) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "ModuleNotFoundError" in json.loads(done.stdout)["error"]


def test_packages_measured_on_encoders_only(tmp_path):
    for library in ("onnxruntime", "openvino"):
        peer = PythonPeer(library, library, "f32", Path(sys.executable), setting())
        assert peer.refuses(DECODE)
        assert peer.refuses(ENCODE) is None


# ---- finding them ----


def test_missing_peers_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("RLX_LLAMA_BENCH", "RLX_IK_LLAMA_BENCH", "RLX_PEER_PYTHON"):
        monkeypatch.delenv(variable, raising=False)
    bare = program(tmp_path, "print('openvino')", "python")
    systems, missing = find_peers(parse_peers(["llama.cpp,ik_llama.cpp", f"openvino={bare}"]), setting())
    assert systems == []
    assert [peer.name for peer in missing] == ["llama.cpp", "ik_llama.cpp", "openvino"]
    assert "RLX_LLAMA_BENCH" in missing[0].fix
    assert "RLX_IK_LLAMA_BENCH" in missing[1].fix
    assert "pip install openvino" in missing[2].fix


def test_a_path_beats_the_environment_which_beats_path(tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("path", "variable", "flag")]
    for place in places:
        place.mkdir()
        program(place, LLAMA_BENCH)
    monkeypatch.setenv("PATH", str(places[0]))

    def used(flag: str) -> list[Path]:
        systems, _ = find_peers(parse_peers([flag]), setting())
        systems[0].run(PREFILL)
        return [place for place in places if (place / "llama-bench.log").exists()]

    assert used("llama.cpp") == places[:1]
    monkeypatch.setenv("RLX_LLAMA_BENCH", str(places[1] / "llama-bench"))
    assert used("llama.cpp") == places[:2]
    assert used(f"llama.cpp={places[2]}") == places  # a folder stands for the program in it


def test_the_arithmetic_follows_the_precision_or_the_name(tmp_path):
    python = program(tmp_path, "", "python")
    requests = parse_peers([f"torch={python},torch-f32={python},onnxruntime={python},torch-bf16={python}"])
    fast, _ = find_peers(requests, setting())
    assert [system.name for system in fast] == ["torch-bf16", "torch-f32", "onnxruntime-int8"]
    exact, _ = find_peers(requests, PeerSetting(Path("m"), 1, "exact", 1.0))
    assert [system.name for system in exact] == ["torch-f32", "onnxruntime-f32", "torch-bf16"]


@pytest.mark.parametrize("value", ["vllm", "llama.cpp-f32", "torch-int8", "torch,torch", "llama.cpp=/does/not/exist"])
def test_peers_that_cannot_be_meant(value):
    with pytest.raises(OptionError):
        parse_peers([value])


def test_a_variable_that_leads_nowhere_is_an_error(monkeypatch):
    monkeypatch.setenv("RLX_IK_LLAMA_BENCH", "/does/not/exist")
    with pytest.raises(OptionError, match="no such program"):
        find_peers(parse_peers(["ik_llama.cpp"]), setting())


# ---- in turn ----


class Scripted:
    """A system with known speeds; an exception among them is raised."""

    version = None

    def __init__(self, name, speeds, log, refuses=None):
        self.name, self._speeds, self._log, self._refuses = name, iter(speeds), log, refuses

    def refuses(self, work):
        return self._refuses

    def run(self, work):
        self._log.append(self.name)
        speed = next(self._speeds)
        if isinstance(speed, Exception):
            raise speed
        return speed

    def finish(self):
        self._log.append(f"{self.name} done")

    def close(self):
        pass


def run_compare(*systems, rounds=3) -> Result:
    results: list[Result] = []
    compare([PREFILL], systems, rounds, results)
    return results[0]


def test_systems_take_turns_and_the_one_that_goes_first_alternates():
    log: list[str] = []
    run_compare(Scripted("a", [1, 1, 1, 1], log), Scripted("b", [1, 1, 1], log))
    assert log == ["a", "a", "b", "b", "a", "a", "b", "a done", "b done"]


def test_the_figure_is_the_median_of_the_ratios_within_rounds():
    """The machine gets slower by 10 between rounds: the ratio of medians would say 20."""
    result = run_compare(Scripted("a", [9, 400, 20, 2], []), Scripted("b", [100, 10, 0.5], []))
    ratios = result.ratios("a", "b")
    assert ratios is not None
    assert ratios.values == (4, 2, 4)
    assert (ratios.median, ratios.least, ratios.most) == (4, 2, 4)


def test_a_peer_that_fails_keeps_its_rounds_and_the_others_go_on():
    log: list[str] = []
    failing = Scripted("b", [10.0, PeerError("it broke")], log)
    result = run_compare(Scripted("a", [1, 20, 30, 40], log), failing, Scripted("c", [5, 5, 5], log))
    assert result.problems == {"b": "it broke"}
    ratios = result.ratios("a", "b")
    assert ratios is not None
    assert ratios.values == (2.0,)
    assert result.samples("c") is not None
    assert log.count("b") == 2


def test_a_peer_that_refuses_is_not_run():
    log: list[str] = []
    result = run_compare(Scripted("a", [1] * 4, log), Scripted("b", [], log, refuses="no encoders"))
    assert result.problems == {"b": "no encoders"}
    assert "b" not in log
    assert result.samples("b") is None
    assert result.ratios("a", "b") is None


def test_an_interrupt_finishes_everybody():
    log: list[str] = []
    results: list[Result] = []
    systems = (Scripted("a", [1, 2, 3], log), Scripted("b", [5.0, KeyboardInterrupt()], log))
    systems[1].run = lambda work: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        compare([PREFILL], systems, 3, results)
    assert log[-2:] == ["a done", "b done"]
    assert results[0].samples("a") is not None


# ---- the command ----


def test_the_command_with_peers(fake, run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RLX_PEER_PYTHON", raising=False)
    path = program(tmp_path, LLAMA_BENCH)
    bare = program(tmp_path, "print('openvino')", "python")
    flags = ("-p", "40", "-n", "8", "-r", "2", "--starts", "0", "--peer", f"llama.cpp={path},openvino={bare}")
    document = json.loads(run("bench", *flags, "--json").out)
    prefill, _, batch = document["works"]
    peer = prefill["systems"]["llama.cpp"]
    assert peer["speed"]["values"] == [1000.0, 1000.0]
    assert peer["rlx_ratio"]["median"] == pytest.approx(prefill["systems"]["RLX"]["speed"]["median"] / 1000)
    assert "llama-batched-bench" in batch["systems"]["llama.cpp"]["problem"]
    found, lacking = document["peers"]
    assert found == {"name": "llama.cpp", "version": "abc"}
    assert lacking["missing"]
    assert lacking["fix"]
    outcome = run("bench", *flags)
    assert outcome.code == 0
    for text in ("prefill, 40 tokens: llama.cpp", "1000.0", "not installed: openvino", "no figure: llama.cpp: batch"):
        assert text in outcome.out
    assert "prefill, 40 tokens, 1 of 2: llama.cpp" in outcome.err


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_while_a_peer_runs_ends_the_peer_and_keeps_the_figures(tmp_path):
    """The whole command in a process of its own; the fake peer says when it runs, and would run for ten minutes."""
    path = program(
        tmp_path,
        "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))\ntime.sleep(600)",
    )
    flags = ["bench", "-p", "40", "-n", "4", "-r", "1", "--starts", "0", "--json", "--peer", f"llama.cpp={path}"]
    code = f"import sys; from tests.cli.fake_model import run_main; sys.exit(run_main({flags!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pid_file = Path(f"{path}.pid")
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["prefill_tokens_per_second"] > 0
    assert is_over(int(pid_file.read_text()))
