"""The benchmarks of mixing and loss: candidates do the same, and results are complete."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bandwidth, kernel_timing, loss, mix
from dali_rsb.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def _no_compiler(monkeypatch):
    """Compiling takes longer than all else here."""
    for module in (loss, mix):
        monkeypatch.setattr(module, "compile_obstacle", lambda *_: "no compiler")


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("name", ["evaluation", "mixup", "cutmix"])
def test_candidates_of_mix_make_the_same_batch(name, copies):
    case = mix.make_cases(4, 24, torch.float16, CPU, copies=copies)[name]
    assert list(case.candidates) == ["dali_rsb", "plain PyTorch", "timm", "timm, NHWC"]
    assert case.left_out == {"plain PyTorch, compiled": "no compiler"}
    assert case.floor_bytes == 4 * 24 * 24 * 3 * 3
    results = {candidate: call() for candidate, call in case.candidates.items()}
    for candidate, result in results.items():
        assert result.dtype == torch.float16
        assert result.is_contiguous(memory_format=torch.channels_last)
        if name != "cutmix" or not candidate.startswith("timm"):  # timm draws the place of its box
            torch.testing.assert_close(result, results["dali_rsb"], rtol=2e-3, atol=1e-3)
    assert torch.equal(results["timm"], results["timm, NHWC"]) or name == "cutmix"


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("name", loss.VARIANTS)
def test_candidates_of_loss_make_the_same_gradient(name):
    case = loss.make_cases(6, 50, torch.float32, CPU)[name]
    assert list(case.candidates) == ["dali_rsb", "timm"]
    assert case.floor_bytes == 2 * 6 * 50 * 4
    (ours,), (theirs,) = (call() for call in case.candidates.values())
    torch.testing.assert_close(ours * 300, theirs * 300, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize(
    ("module", "arguments"),
    [(mix, ["--batch", "2", "--size", "16"]), (loss, ["--batch", "4", "--classes", "10"])],
)
def test_results_are_printed_and_written(module, arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernel_timing, "copy_bandwidth", lambda device: 1e9)
    output = tmp_path / "new" / "result.json"
    options = ["--device", "cpu", "--rounds", "2", "--seconds", "0.001", "--output", str(output)]
    module.main([*arguments, *options])
    report = json.loads(output.read_text())
    assert report["settings"]["dtype"] == "float16"
    assert report["copy_gb_per_s"] == 1
    printed = capsys.readouterr().out
    for name, case in report["cases"].items():
        assert f"{name}: " in printed
        assert case["floor_us"] == pytest.approx(case["floor_bytes"] / 1e3, abs=0.01)
        assert set(case["left_out"]) == {"plain PyTorch, compiled"}
        assert case["candidates"]["dali_rsb"]["times_ours"]["runs"] == [1, 1]
        for candidate, measured in case["candidates"].items():
            assert candidate in printed
            assert len(measured["us"]["runs"]) == 2
            assert measured["us"]["min"] > 0


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        mix.main(["--device", "cuda"])


def test_tensors_that_take_turns_are_none_that_were_just_used():
    batches = [torch.full((2,), float(number)) for number in range(3)]
    call = kernel_timing.in_rotation([lambda batch=batch: batch + 1 for batch in batches])
    addresses = []
    for number in range(9):
        result = call()
        assert result[0] == number % 3 + 1
        addresses.append(result.data_ptr())
        del result
    assert all(len(set(addresses[start : start + 3])) == 3 for start in range(7))


def test_the_compiled_twin_can_be_left_out(tmp_path):
    output = tmp_path / "result.json"
    options = ["--device", "cpu", "--rounds", "1", "--seconds", "0", "--output", str(output)]
    mix.main(["--batch", "2", "--size", "8", "--no-compile", *options])
    for case in json.loads(output.read_text())["cases"].values():
        assert case["left_out"] == {"plain PyTorch, compiled": "--no-compile"}
        assert {measured["timed"] for measured in case["candidates"].values()} == {"calls"}


class _Gpu:
    """Stands for torch.cuda: a call takes 1 ms with its launch, and half of it in a graph."""

    def __init__(self):
        self.now_ms, self.capturing = 0.0, None

    def call(self):
        if self.capturing is None:
            self.now_ms += 1.0
        else:
            self.capturing.num_calls += 1

    def ask(self):
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.call()

    def stand_in(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at_ms = gpu.now_ms

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at_ms - self.at_ms

        class Graph:
            num_calls = 0

            def replay(self):
                gpu.now_ms += 0.5 * self.num_calls

        @contextlib.contextmanager
        def capture(graph, stream):
            gpu.capturing = graph
            try:
                yield
            finally:
                gpu.capturing = None

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": capture,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda _: contextlib.nullcontext(),
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_a_gpus_calls_are_timed_in_a_graph_or_else_with_their_launches(monkeypatch):
    gpu = _Gpu()
    gpu.stand_in(monkeypatch)
    case = kernel_timing.Case({"quiet": gpu.call, "asking": gpu.ask}, floor_bytes=1000)
    result = kernel_timing.measure_case(
        case, torch.device("cuda"), bytes_per_s=1e6, num_rounds=2, seconds=0.0
    )
    quiet, asking = (result["candidates"][name] for name in ("quiet", "asking"))
    assert (quiet["timed"], asking["timed"]) == ("CUDA graph", "launches")
    assert quiet["us"]["runs"] == (500, 500)
    assert asking["us"]["runs"] == (1000, 1000)
    assert asking["times_ours"]["median"] == 2


@pytest.mark.gpu
def test_a_call_that_asks_the_host_is_timed_with_its_launches():
    x = torch.rand(2**20, device="cuda")
    candidates = {"quiet": lambda: x * 2, "asking": lambda: x.sum().item()}
    case = kernel_timing.Case(candidates, floor_bytes=2**23)
    result = kernel_timing.measure_case(case, x.device, 3e12, num_rounds=2, seconds=0.05)
    measured = result["candidates"]
    assert {name: measured[name]["timed"] for name in measured} == {
        "quiet": "CUDA graph",
        "asking": "launches",
    }
    assert 0 < measured["quiet"]["us"]["median"] < measured["asking"]["us"]["median"]


def test_torch_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C++ compiler" in kernel_timing.compile_obstacle(CPU)
    assert kernel_timing.compile_obstacle(torch.device("cuda")) is None


def test_copy_bandwidth_counts_bytes_read_and_written(monkeypatch):
    monkeypatch.setattr(bandwidth, "_time_copy_s", lambda source, target: 0.5)
    assert bandwidth.copy_bandwidth(CPU, num_repeats=3, num_bytes=1000) == 4000


def test_rounds_alternate():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    case = kernel_timing.Case(candidates, floor_bytes=100)
    result = kernel_timing.measure_case(case, CPU, bytes_per_s=1e8, num_rounds=2, seconds=1e-9)
    assert result["floor_us"] == 1
    order = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert order == ["a", "b", "a", "b", "a"]  # both warm up, then a b, then b a
