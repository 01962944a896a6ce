"""pytest's side: options, the grid, the workers behind it, the live line and the closing table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from flatbench import execution, gate, options
from flatbench.errors import UsageError
from flatbench.files import write_atomically
from flatbench.gate import compare
from flatbench.protocols.cases import Case, grid
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import load
from flatbench.records.record import Record
from flatbench.records.store import Store

PROTOCOL = pytest.StashKey[Protocol]()
THRESHOLDS = pytest.StashKey[gate.Thresholds | None]()
GATE = pytest.StashKey[compare.Baseline | None]()
WANTED = pytest.StashKey[Sequence[Case]]()  # what the options ask for
GRID = pytest.StashKey[Sequence[Case]]()  # what -k and -m have left of it
RUN = pytest.StashKey[execution.Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flatbench")
    options.add(group.addoption, options.SELECTION, options.MACHINE, options.RESULTS)
    options.add(group.addoption, options.TRAINING)
    group.addoption(
        "--thresholds", type=Path, help="default: benchmarks/thresholds/PROTOCOL.toml, if there"
    )
    group.addoption(
        "--gate", type=Path, help="compare the grid with this baseline: records, or thresholds"
    )


@contextmanager
def _usage() -> Iterator[None]:
    """Make flatbench's usage errors pytest's: one line, exit code 4."""
    try:
        yield
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    device = config.getoption("device")
    with _usage():  # now, not in the collection: there pytest would make a traceback of it
        if device not in ("auto", "cpu"):
            execution.places(device)  # a GPU that was demanded must be there
        settings = load(config.getoption("protocol"))
        config.stash[PROTOCOL] = settings
        config.stash[WANTED] = grid(
            settings,
            config.getoption("architectures"),
            config.getoption("optimizers"),
            config.getoption("seeds"),
        )
        config.stash[THRESHOLDS] = _thresholds(config, settings.name)
        config.stash[GATE] = _gate(config, settings)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("gate") is None:
        items[:] = [i for i in items if "gate_baseline" not in getattr(i, "fixturenames", ())]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if config.getoption("device") == "cpu":
        reason = "--device cpu"
    elif torch.cuda.is_available():
        return
    else:
        reason = f"torch {torch.__version__} finds no CUDA device"
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = {"grid_case", "sam_pair"} & set(metafunc.fixturenames)
    if not wanted:
        return
    config = metafunc.config
    if hasattr(config, "workerinput"):
        raise pytest.UsageError("the grid runs its own processes: use --workers, not xdist's -n")
    settings, cases = config.stash[PROTOCOL], config.stash[WANTED]
    if "grid_case" in wanted:
        metafunc.parametrize("grid_case", cases, ids=lambda case: case.id.replace("/", "-"))
    else:
        cells = dict.fromkeys((case.architecture, case.optimizer) for case in cases)
        pairs = [cell for cell in cells if settings.base_of(cell[1])]
        labels = ["-".join((settings.name, *pair)) for pair in pairs]
        metafunc.parametrize("sam_pair", pairs, ids=labels)


def _thresholds(config: pytest.Config, name: str) -> gate.Thresholds | None:
    given = config.getoption("thresholds")
    path = given or config.rootpath / "benchmarks" / "thresholds" / f"{name}.toml"
    return gate.read_thresholds(path) if given or path.exists() else None


def _gate(config: pytest.Config, settings: Protocol) -> compare.Baseline | None:
    """Read the baseline now, rather than find after the training that it is of no use."""
    path = config.getoption("gate")
    if path is None:
        return None
    baseline = compare.read_baseline(path)
    if not compare.fits(baseline, settings):
        raise UsageError(
            f"{path}: --gate must be a baseline of protocol {settings.name} with the content "
            f"{settings.common_hash()}"
        )
    return baseline


def pytest_collection_finish(session: pytest.Session) -> None:
    """Choose where pytest-benchmark writes, unless --benchmark-json said so."""
    config = session.config
    cases = [case for item in session.items if (case := _parameter(item, "grid_case")) is not None]
    config.stash[GRID] = cases
    benchmarks = config.pluginmanager.get_plugin("pytest-benchmark")
    if (
        cases
        and benchmarks is not None
        and benchmarks.json is None
        and not config.option.collectonly
    ):
        benchmarks.json = _folder(config) / f"{_stem(config, 'benchmark')}.json"
        benchmarks.json.parent.mkdir(parents=True, exist_ok=True)


def _parameter(item: pytest.Item, name: str) -> Case | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec is not None else None


def _folder(config: pytest.Config) -> Path:
    results: Path = config.getoption("results")
    return results / config.stash[PROTOCOL].name


def _stem(config: pytest.Config, whole: str) -> str:
    """Return the name of a file about the whole grid, or "selection" for a part of it.

    So `-k vgg16` cannot replace the published table of the whole grid by half of it.
    """
    everything = {case.id for case in grid(config.stash[PROTOCOL])}
    return whole if everything <= {case.id for case in config.stash[GRID]} else "selection"


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Train the selected cases in the background while the tests wait for them in turn."""
    config = session.config
    cases = config.stash.get(GRID, ())  # xdist's workers collect, this process doesn't
    if not cases or config.option.collectonly:
        return (yield)
    with (
        _usage(),
        execution.start(
            cases,
            device=config.getoption("device"),
            workers=config.getoption("workers"),
            data_dir=config.getoption("data_dir"),
            store=Store(
                config.getoption("results"),
                config.getoption("resume"),
                config.getoption("keep_weights"),
            ),
        ) as run,
    ):
        config.stash[RUN] = run
        return (yield)


def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    """Leave the host's name and its kernel's build out of what is published."""
    for key in ("node", "release"):
        machine_info.pop(key, None)


@pytest.fixture
def thresholds(request: pytest.FixtureRequest) -> gate.Thresholds | None:
    return request.config.stash[THRESHOLDS]


@pytest.fixture
def gate_baseline(request: pytest.FixtureRequest) -> compare.Baseline | None:
    return request.config.stash[GATE]


@pytest.fixture
def record_of(request: pytest.FixtureRequest) -> Callable[[Case], Record]:
    """Wait for a case's record; a terminal sees a live line meanwhile, even without -s."""
    config = request.config
    run = config.stash[RUN]
    capture = config.pluginmanager.get_plugin("capturemanager")

    def wait(case: Case) -> Record:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            column = config.get_terminal_writer().width_of_current_line + 1
            return execution.follow(run, case, sys.stderr, below_column=column)

    return wait


@pytest.fixture
def finished_records(request: pytest.FixtureRequest) -> list[Record]:
    """The records of every selected case that has come to its end."""
    return _finished(request.config)


def _finished(config: pytest.Config) -> list[Record]:
    futures: list[Future[Record]] = list(config.stash[RUN].futures.values())
    return [f.result() for f in futures if f.done() and f.exception() is None]


@pytest.hookimpl(trylast=True)  # the table is what people run this for: it comes last
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables that matter most; all of them go beside the JSON."""
    if RUN not in config.stash:
        return
    from flatbench import report

    records = _finished(config)
    if not records:
        return
    protocols = [config.stash[PROTOCOL]]
    path = _folder(config) / f"{_stem(config, 'report')}.md"
    write_atomically(path, report.render(records, protocols=protocols).encode())
    terminalreporter.write_sep("=", "flatbench")
    terminalreporter.write_line(report.render(records, protocols=protocols, brief=True))
    terminalreporter.write_line(f"every measure and test: {path}")
