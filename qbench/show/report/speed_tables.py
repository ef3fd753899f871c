"""Tables of a report about speed: trials, decode steps, sustained load."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.analysis.between_starts import VarianceShare
from qbench.analysis.decode_step import DecodeStep
from qbench.analysis.figures import CellSummary, Speed
from qbench.analysis.formulas import electricity_per_million_tokens, prefill_tokens_per_s
from qbench.show import formats
from qbench.show.phrases import bandwidth_words, ratio_words
from qbench.show.report.fields import figure_field, identity, speed_field, trust_field, whose
from qbench.show.report.table import Column, Field, Table, TableRow
from qbench.show.view.records import RunReport
from qbench.text import MISSING, human_bytes


def speeds(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell and batch size; None if nothing was timed."""
    several = any(speed.between_starts for report in reports for cell in report.cells for speed in cell.speeds)
    counted = any(speed.energies for report in reports for cell in report.cells for speed in cell.speeds)
    priced = counted and any(report.electricity is not None for report in reports)
    columns = [
        *whose(reports),
        Column(title="batch"),
        Column(title="tokens/s"),
        Column(title="slowest to fastest trial"),
        Column(title="against 16 bit [95 %]"),
        *([Column(title="variance between starts [95 %]")] if several else []),
        *([Column(title="energy a token")] if counted else []),
        *([Column(title="electricity, a million tokens")] if priced else []),
        Column(title="first token"),
        Column(title="between tokens, p50"),
        Column(title="p95"),
        Column(title="peak memory"),
        Column(title="read a second"),
        Column(title="of the ceiling"),
        Column(title="trust", numeric=False),
    ]
    rows = [
        TableRow(
            run=i,
            backend=cell.name,
            fields=(
                *identity(reports, report, cell),
                *_speed_fields(report, cell, speed, several, counted, priced),
            ),
        )
        for i, report in enumerate(reports)
        for cell in report.cells
        for speed in cell.speeds
        if speed.status is not None
    ]
    caption = "Decode speed and latency: medians over trials; p50 and p95 of the time between a trial's tokens"
    return Table(key="speeds", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def _speed_fields(
    report: RunReport, cell: CellSummary, speed: Speed, several: bool, counted: bool, priced: bool
) -> list[Field]:
    cost = electricity_per_million_tokens(speed.joules_per_token, report.electricity)
    ceiling = report.bandwidth.bytes_per_s if report.bandwidth else None
    read = speed.step.read_bytes_per_s if speed.step else None
    share = read / ceiling if read and ceiling else None
    slowest = min(speed.trials, default=None)
    trials = f"{formats.tokens(slowest)} to {formats.tokens(max(speed.trials))}" if speed.trials else MISSING
    return [
        figure_field(speed.batch_size, str(speed.batch_size)),
        speed_field(speed),
        figure_field(slowest, trials),
        figure_field(None, ratio_words(speed.speedup) or MISSING),
        *([_share_field(speed.between_starts)] if several else []),
        *([figure_field(speed.joules_per_token, formats.joules(speed.joules_per_token))] if counted else []),
        *([figure_field(cost, formats.number(cost, "{:,.4g}"))] if priced else []),
        *(
            figure_field(value, formats.milliseconds(value))
            for value in (speed.ttft_s, speed.itl_p50_s, speed.itl_p95_s)
        ),
        figure_field(speed.peak_memory_bytes, human_bytes(speed.peak_memory_bytes)),
        figure_field(read, formats.gigabytes_a_second(read)),
        figure_field(share, formats.percent(share, 0)),
        trust_field(speed),
    ]


def depths(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell, batch size and depth; None if every cache was empty."""
    titles = ("batch", "tokens before", "tokens/s", "prefill tokens/s", "first token", "peak memory")
    columns = [*whose(reports), *(Column(title=title) for title in titles), Column(title="trust", numeric=False)]
    rows = [
        TableRow(run=i, backend=cell.name, fields=(*identity(reports, report, cell), *_depth_fields(speed)))
        for i, report in enumerate(reports)
        for cell in report.cells
        for speed in sorted((*cell.speeds, *cell.deeper), key=lambda one: (one.batch_size, one.depth))
        if cell.deeper and speed.status is not None
    ]
    caption = "Speed at a filled cache: medians over trials; the prompt follows the tokens before it"
    return Table(key="depths", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def _depth_fields(speed: Speed) -> list[Field]:
    prefill = None
    if speed.ttft_s and speed.lengths:
        prefill = prefill_tokens_per_s(speed.batch_size, speed.lengths[0], speed.ttft_s)
    return [
        figure_field(speed.batch_size, str(speed.batch_size)),
        figure_field(speed.depth, f"{speed.depth:,}"),
        speed_field(speed),
        figure_field(prefill, formats.tokens(prefill)),
        figure_field(speed.ttft_s, formats.milliseconds(speed.ttft_s)),
        figure_field(speed.peak_memory_bytes, human_bytes(speed.peak_memory_bytes)),
        trust_field(speed),
    ]


def _share_field(found: VarianceShare | None) -> Field:
    if found is None:
        return figure_field(None, MISSING)
    ends = f"{formats.percent(found.low, 0)}, {formats.percent(found.high, 0)}"
    return figure_field(found.share, f"{formats.percent(found.share, 0)} [{ends}]")


def steps(reports: Sequence[RunReport]) -> Table | None:
    """What a decode step reads, a row for each cell and batch size; None if that is not known of any."""
    columns = [
        *whose(reports),
        Column(title="batch"),
        Column(title="weights read"),
        Column(title="cache read"),
        Column(title="step, at least"),
        Column(title="step, measured"),
        Column(title="measured ÷ least"),
        Column(title="tokens/s, at most"),
        Column(title="tokens/s, measured"),
    ]
    rows = [
        TableRow(run=i, backend=cell.name, fields=(*identity(reports, report, cell), *_step_fields(speed, speed.step)))
        for i, report in enumerate(reports)
        for cell in report.cells
        for speed in cell.speeds
        if speed.step is not None
    ]
    caption = (
        "A decode step: what it reads, mean over a generation, and the least time for that, beside the measured time"
    )
    return Table(key="steps", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None


def step_bandwidths(reports: Sequence[RunReport]) -> list[str]:
    """The bandwidth that each run's steps are held against, in words; empty for a run without a row in `steps`."""
    return [
        bandwidth_words(report.bandwidth) if any(speed.step for cell in report.cells for speed in cell.speeds) else ""
        for report in reports
    ]


def _step_fields(speed: Speed, step: DecodeStep) -> list[Field]:
    times, most = step.times_limit, step.limit_tokens_per_s
    return [
        figure_field(step.batch_size, str(step.batch_size)),
        figure_field(step.weight_bytes, human_bytes(step.weight_bytes)),
        figure_field(step.cache_bytes, human_bytes(step.cache_bytes)),
        figure_field(step.limit_s, formats.milliseconds(step.limit_s)),
        figure_field(step.seconds, formats.milliseconds(step.seconds)),
        figure_field(times, formats.number(times, "{:,.2f}×")),
        figure_field(most, formats.tokens(most)),
        speed_field(speed),
    ]


def sustained(reports: Sequence[RunReport]) -> Table | None:
    """A row for each cell under load; None if there was none."""
    titles = ("tokens/s at first", "at the end", "what is left")
    columns = [*whose(reports), *(Column(title=title) for title in titles), Column(title="trust", numeric=False)]
    rows = []
    for i, report in enumerate(reports):
        for cell in report.cells:
            if found := cell.sustained:
                left = found.steady / found.peak
                fields = (
                    *identity(reports, report, cell),
                    *(figure_field(speed, formats.tokens(speed)) for speed in (found.peak, found.steady)),
                    figure_field(left, formats.percent(left, 0)),
                    Field(text=formats.doubts(found.reasons) or found.validity or "not recorded", alarm=found.doubtful),
                )
                rows.append(TableRow(run=i, backend=cell.name, fields=fields))
    caption = "Under sustained load: the best window of the first third, the median of the last third"
    return Table(key="sustained", caption=caption, columns=tuple(columns), rows=tuple(rows)) if rows else None
