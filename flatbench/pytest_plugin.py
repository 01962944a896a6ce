"""pytest's side: options, the grid, the workers behind it, the live line and the closing table.

A conftest.py loads it by one line, ``pytest_plugins = ["flatbench.pytest_plugin"]``; the tests are
in `flatbench.pytest_grid`. Options begin with ``--flatbench-`` and fixtures with ``flatbench_``, so
that they meet nobody else's. Nothing heavy is imported before a test of the grid is collected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flatbench import files, options
from flatbench.errors import UsageError
from flatbench.text import plain

if TYPE_CHECKING:
    from concurrent.futures import Future

    from flatbench.execution import Run
    from flatbench.gate import Thresholds
    from flatbench.gate.compare import Baseline
    from flatbench.gate.verdict import Outcome
    from flatbench.protocols.cases import Case
    from flatbench.protocols.protocol import Protocol
    from flatbench.records.record import Record

PROTOCOL: pytest.StashKey[Protocol] = pytest.StashKey()
WANTED: pytest.StashKey[Sequence[Case]] = pytest.StashKey()  # what the options ask for
GRID: pytest.StashKey[Sequence[Case]] = pytest.StashKey()  # what -k and -m have left of it
THRESHOLDS: pytest.StashKey[Thresholds | None] = pytest.StashKey()
BASELINE: pytest.StashKey[Baseline | None] = pytest.StashKey()
HELD: pytest.StashKey[list[Outcome]] = pytest.StashKey()  # every check that was made
NOTES: pytest.StashKey[list[str]] = pytest.StashKey()  # what was not checked
MISTAKE: pytest.StashKey[str] = pytest.StashKey()  # in an option or in a file that it names
RUN: pytest.StashKey[Run] = pytest.StashKey()
STOP: pytest.StashKey[KeyboardInterrupt] = pytest.StashKey()  # Ctrl-C, or a signal
TESTED: pytest.StashKey[set[str]] = pytest.StashKey()  # the cases whose tests came to an end


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_prefixed(parser.getgroup("flatbench").addoption, *options.PYTEST)


def _option(config: pytest.Config, name: str) -> Any:
    return config.getoption(f"flatbench_{name}")


@contextmanager
def _usage() -> Iterator[None]:
    """Make flatbench's usage errors and the system's refusals pytest's: one line, exit code 4."""
    try:
        yield
    except UsageError as error:
        raise pytest.UsageError(plain(str(error))) from None
    except OSError as error:
        raise pytest.UsageError(plain(files.said(error))) from None


def pytest_configure(config: pytest.Config) -> None:
    is_here = _option(config, "engine") == "local"
    if is_here and _option(config, "device") not in ("auto", "cpu"):
        from flatbench import execution

        with _usage():
            execution.places(_option(config, "device"))  # a GPU that was demanded must be there


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ours = {"flatbench_case", "flatbench_cell", "flatbench_compared"}
    wanted = ours & set(metafunc.fixturenames)
    if not wanted:
        return
    config = metafunc.config
    if hasattr(config, "workerinput"):
        raise pytest.UsageError(
            "the grid runs its own processes: use --flatbench-workers, not xdist's -n"
        )
    try:
        _read(config)
    except UsageError as error:
        # pytest would make a traceback of it here; told as soon as the collection is over
        config.stash[MISTAKE] = plain(str(error))
    cases = config.stash.get(WANTED, ())
    if "flatbench_case" in wanted:
        metafunc.parametrize("flatbench_case", cases, ids=lambda case: case.id.replace("/", "-"))
    else:
        (name,) = wanted
        cells = [*dict.fromkeys((case.architecture, case.optimizer) for case in cases)]
        if name == "flatbench_compared":
            cells = [cell for cell in cells if config.stash[PROTOCOL].base_of(cell[1])]
        labels = ["-".join((config.stash[PROTOCOL].name, *cell)) for cell in cells]
        metafunc.parametrize(name, cells, ids=labels)


def _read(config: pytest.Config) -> None:
    """Read, once, everything that the options name.

    Raises:
        UsageError: an option, or a file that it names, cannot be used.
    """
    if WANTED in config.stash or MISTAKE in config.stash:
        return
    from flatbench.protocols.cases import grid
    from flatbench.protocols.reading import load

    if not config.pluginmanager.has_plugin("benchmark"):
        raise UsageError("pytest-benchmark must be there, got -p no:benchmark")
    settings = load(_option(config, "protocol"))
    config.stash[PROTOCOL] = settings
    config.stash[HELD], config.stash[NOTES] = [], []
    config.stash[THRESHOLDS] = _thresholds(config, settings)
    config.stash[BASELINE] = _baseline(config, settings)
    if config.stash[THRESHOLDS] is config.stash[BASELINE] is None and _option(
        config, "require_power"
    ):
        raise UsageError(
            f"--require-power must have something to ask it of: {config.stash[NOTES][0]}"
        )
    chosen = (_option(config, name) for name in ("architectures", "optimizers", "seeds"))
    config.stash[WANTED] = grid(settings, *chosen)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if MISTAKE in config.stash:
        raise pytest.UsageError(config.stash[MISTAKE])
    # What is of all records waits for all cases, in whatever order a file imports the tests.
    items.sort(key=lambda item: "flatbench_records" in getattr(item, "fixturenames", ()))
    if _option(config, "gate") is None:
        items[:] = [i for i in items if "flatbench_baseline" not in getattr(i, "fixturenames", ())]


def _thresholds(config: pytest.Config, settings: Protocol) -> Thresholds | None:
    from flatbench import gate

    given = _option(config, "thresholds")
    usual = (
        config.rootpath / "benchmarks" / "thresholds" / f"{settings.name}.toml",
        gate.beside(settings),
    )
    path = given or next((path for path in usual if path.exists()), None)
    if path is not None:
        return gate.read_thresholds(path)
    missing = gate.without_thresholds(settings, usual)
    if _option(config, "require_thresholds"):
        raise UsageError(f"--require-thresholds: {missing}")
    config.stash[NOTES].append(missing)
    return None


def _baseline(config: pytest.Config, settings: Protocol) -> Baseline | None:
    """Read the baseline now, rather than find after the training that it is of no use."""
    path = _option(config, "gate")
    if path is None:
        return None
    from flatbench.gate import compare

    baseline = compare.read_baseline(path)
    if not compare.fits(baseline, settings):
        raise UsageError(
            f"{path}: --gate must be a baseline of protocol {settings.name} with the content "
            f"{settings.common_hash()}"
        )
    return baseline


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if MISTAKE in config.stash:
        return  # pytest comes here on its way out, too
    config.stash[GRID] = [
        case for item in session.items if (case := _parameter(item, "flatbench_case")) is not None
    ]


def _parameter(item: pytest.Item, name: str) -> Case | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec is not None else None


def _folder(config: pytest.Config) -> Path:
    results: Path = _option(config, "results")
    return results / config.stash[PROTOCOL].name


def _ended(config: pytest.Config) -> set[str]:
    """Return the ids of the cases that have ended and were tested: those that the files hold."""
    return config.stash[TESTED] & {record.id for record in _finished(config)}


def _stem(config: pytest.Config, whole: str) -> str:
    """Return the name of a file about the whole grid, or "selection" for a part of it.

    So neither `-k vgg16` nor a grid that was stopped (`-x`, Ctrl-C) can replace the published table
    of the whole grid by half of it.
    """
    from flatbench.protocols.cases import grid

    everything = {case.id for case in grid(config.stash[PROTOCOL])}
    return whole if everything <= _ended(config) else "selection"


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Train the selected cases in the background while the tests wait for them in turn."""
    config = session.config
    cases = config.stash.get(GRID, ())  # xdist's workers collect, this process doesn't
    if not cases or config.option.collectonly:
        return (yield)
    from flatbench import execution, process
    from flatbench.records.store import Store

    store = Store(
        _option(config, "results"),
        resume=_option(config, "resume"),
        keep_weights=_option(config, "keep_weights"),
    )
    session_long = ExitStack()  # longer than this loop: the files of the grid are written after it
    config.add_cleanup(session_long.close)
    session_long.enter_context(process.ended_by_signals())
    with _usage():
        session_long.enter_context(store.held(cases))
        for name in ("benchmark.json", "report.md", "selection.json", "selection.md"):
            files.check_writable(_folder(config) / name)
        with execution.start(
            cases,
            execution.machine_of(partial(_option, config)),
            store,
        ) as run:
            config.stash[RUN], config.stash[TESTED] = run, set()
            try:
                return (yield)
            finally:
                _choose_json(config)
                if STOP in config.stash:
                    raise config.stash[STOP]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Once the run is stopped, test only what had ended by then."""
    if STOP not in item.config.stash:
        return
    case = _parameter(item, "flatbench_case")
    if case is None or not item.config.stash[RUN].futures[case.id].done():
        pytest.skip("the run was stopped")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note whose test came to an end, good or bad; see `_ended`."""
    case = _parameter(item, "flatbench_case")
    skipped = call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception)
    if case is not None and call.when == "call" and not skipped:
        item.config.stash[TESTED].add(case.id)


def _choose_json(config: pytest.Config) -> None:
    """Choose where pytest-benchmark writes, unless --benchmark-json said so."""
    benchmarks = config.pluginmanager.get_plugin("pytest-benchmark")
    if benchmarks is not None and benchmarks.json is None and _ended(config):
        benchmarks.json = _folder(config) / f"{_stem(config, 'benchmark')}.json"


@pytest.hookimpl(optionalhook=True)  # pytest-benchmark may be switched off
def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    """Leave the host's name and its kernel's build out of what is published."""
    for key in ("node", "release"):
        machine_info.pop(key, None)


@pytest.fixture
def flatbench_thresholds(request: pytest.FixtureRequest) -> Thresholds | None:
    return request.config.stash[THRESHOLDS]


@pytest.fixture
def flatbench_baseline(request: pytest.FixtureRequest) -> Baseline | None:
    return request.config.stash.get(BASELINE, None)


@pytest.fixture
def flatbench_hold(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep checks for the closing line, and fail with those that failed."""
    from flatbench.gate import verdict

    config = request.config

    def hold(outcomes: Iterable[Outcome], notes: Iterable[str] = ()) -> None:
        points = _option(config, "require_power")
        found = [verdict.demanded(outcome, points) for outcome in outcomes]
        config.stash[HELD] += found
        config.stash[NOTES] += notes
        lines = [outcome.line for outcome in found if outcome.failed]
        if lines:
            pytest.fail("\n".join(lines), pytrace=False)

    return hold


@pytest.fixture
def flatbench_record_of(request: pytest.FixtureRequest) -> Callable[[Case], Record]:
    """Wait for a case's record; a terminal sees a live line meanwhile, even without -s."""
    from flatbench import execution

    config = request.config
    run = config.stash[RUN]
    capture = config.pluginmanager.get_plugin("capturemanager")

    def wait(case: Case) -> Record:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            column = config.get_terminal_writer().width_of_current_line + 1
            try:
                return execution.follow(run, case, sys.stderr, below_column=column)
            except OSError as error:  # no room for a record: none of the code's faults
                pytest.exit(plain(files.said(error)), returncode=pytest.ExitCode.USAGE_ERROR)
            except KeyboardInterrupt as stop:
                config.stash[STOP] = stop  # raised once the cases that have ended are tested
                pytest.skip("the run was stopped")

    return wait


@pytest.fixture
def flatbench_records(request: pytest.FixtureRequest) -> list[Record]:
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

    ended, cases = _ended(config), config.stash[GRID]
    records = [record for record in _finished(config) if record.id in ended]
    protocols = [config.stash[PROTOCOL]]
    terminalreporter.write_sep("=", "flatbench")
    if len(ended) < len(cases):
        config.stash[NOTES].append(f"{len(cases) - len(ended)} of {len(cases)} cases: no end")
        terminalreporter.write_line(_stopped(config))
    if not records:
        return
    path = _folder(config) / f"{_stem(config, 'report')}.md"
    with _usage():
        files.write_atomically(path, report.render(records, protocols=protocols).encode())
    for note in config.stash[RUN].progress.notes:
        terminalreporter.write_line(note)
    terminalreporter.write_line(report.render(records, protocols=protocols, brief=True))
    terminalreporter.write_line(f"every measure and test: {path}")
    terminalreporter.write_line(_said(config))


def _stopped(config: pytest.Config) -> str:
    """Return where the cases are that ended before a grid was stopped."""
    ended, cases = len(_ended(config)), len(config.stash[GRID])
    return (
        f"stopped when {ended} of {cases} cases had been tested: selection.json and selection.md "
        f"have these alone; --flatbench-resume takes all that {_folder(config) / 'records'} has"
    )


def _said(config: pytest.Config) -> str:
    """Return what was held to a baseline; the verdict is the last line."""
    from flatbench.gate import compare, verdict

    gates = config.stash[THRESHOLDS], config.stash[BASELINE]
    rate = sum(compare.rate_of(gate) for gate in gates if gate is not None)
    held, notes = config.stash[HELD], config.stash[NOTES]
    return verdict.text(verdict.Verdict("gate", tuple(held), tuple(notes), rate), brief=True)
