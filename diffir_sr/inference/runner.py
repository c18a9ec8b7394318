"""The loop of `diffir restore`: processes jobs one by one, continues after failures, and keeps finished results."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffir_sr.diffusion.noise import Noise
from diffir_sr.errors import InputError
from diffir_sr.failures import out_of_memory, sentence
from diffir_sr.files.atomic import check_writable, sweep
from diffir_sr.files.images import read_file
from diffir_sr.files.picture import FORMATS, Picture, encode, format_of, not_held
from diffir_sr.inference.autodir import trace_of, write_trace
from diffir_sr.inference.files import NAME, SUFFIX_OF, Job, Journal, digest, digest_of_file
from diffir_sr.inference.inputs import find_mask, from_bytes
from diffir_sr.inference.restorer import Restorer
from diffir_sr.inference.videos.restoring import VideoOutcome, restore_video
from diffir_sr.progress import progress_bar, write_out

NO_POINT_IN_GOING_ON = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_BAR = "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]"


# progress(files done, total files, the file), after each file and each frame of a video; False stops the work.
Progress = Callable[[int, int, Path | None], bool | None]


@dataclass(frozen=True)
class RestoreSettings:
    """Settings of the command line besides inputs and outputs."""

    form: str | None = None
    mask: str | None = None
    samples: int = 1
    average: bool = False  # write only the mean of the samples
    quality: int = 95
    trace: bool = False  # a record of each round of AutoDIR beside each result


@dataclass(frozen=True)
class JobResult:
    """The outcome of one job: restored, kept (existed already) or failed, with the reason."""

    source: str
    target: str | None
    status: str
    seconds: float
    message: str | None = None


@dataclass
class RunSummary:
    """The outcome of all jobs."""

    restored: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    jobs: list[JobResult] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False  # by the progress callback, before the end


class Runner:
    """Restores jobs one after the other and reports on standard error."""

    def __init__(
        self,
        restorer: Restorer,
        settings: RestoreSettings,
        journal: Journal,
        *,
        progress: Progress | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """`note` takes what is said about single images, instead of standard error."""
        self.restorer = restorer
        self.settings = settings
        self.journal = journal
        self.outcome = RunSummary()
        self._told_plan = False
        self._note_text = note or self.say
        self._progress = progress
        self._trace = trace_of(restorer.network) if settings.trace else None

    def run(self, jobs: Sequence[Job]) -> RunSummary:
        """Process all jobs; raises InputError if continuing is pointless (the disk is full)."""
        try:
            return self._all(jobs)
        finally:
            if self._trace is not None:
                self._trace.close()

    def _all(self, jobs: Sequence[Job]) -> RunSummary:
        quiet = len(jobs) < 2 or self._progress is not None
        with progress_bar(total=len(jobs), unit="image", bar_format=_BAR, disable=quiet) as bar:
            for done, job in enumerate(jobs, start=1):
                started = time.perf_counter()
                report = partial(self._report, done - 1, len(jobs), job.source)
                before = self.outcome.kept, len(self.outcome.failures)
                try:
                    self._do(job, report)
                except (InputError, OSError, MemoryError, RuntimeError) as error:
                    self._fail(job, error)
                self._note(job, before, time.perf_counter() - started)
                bar.update()
                if self.outcome.stopped or not self._report(done, len(jobs), job.source):
                    self.outcome.stopped = True
                    break
        return self.outcome

    def _report(self, done: int, total: int, file: Path | None) -> bool:
        """Report progress; returns whether to continue."""
        return self._progress is None or self._progress(done, total, file) is not False

    def _note(self, job: Job, before: tuple[int, int], seconds: float) -> None:
        self.outcome.seconds += seconds
        failed = len(self.outcome.failures) > before[1]
        self.outcome.jobs.append(
            JobResult(
                source=str(job),
                target=None if job.target is None else str(job.target),
                status="failed" if failed else "kept" if self.outcome.kept > before[0] else "restored",
                seconds=round(seconds, 3),
                message=self.outcome.failures[-1] if failed else None,
            )
        )

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in NO_POINT_IN_GOING_ON:
            raise InputError(
                f"{job.target}: {error.strerror}; {self.outcome.restored} restored so far; free disk space and run the "
                "same command again, which continues from there"
            ) from error
        failure = describe_failure(error, job)
        self.outcome.failures.append(failure)
        self.say(f"failed: {failure}")

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _do(self, job: Job, report: Callable[[], bool]) -> None:
        if job.is_video:
            self._video(job, report)
            return
        data = sys.stdin.buffer.read() if job.source is None else read_file(job.source)
        mask = None if self.settings.mask is None else find_mask(self.settings.mask, job.relative, job.source)
        source = digest(data) + mask_digest(mask)
        if job.target is not None:
            check_writable(job.target)
            done = [self.journal.is_done(target, source) for target in self._targets(job.target)]
            if all(done):
                self.outcome.kept += 1
                return
        started = time.perf_counter()
        files = self.restored(job, data, mask)
        for target, content in files:
            if target is None:
                write_out(content)
            else:
                self.journal.write(target, content, source=source, seconds=time.perf_counter() - started)
        if self._trace is not None:
            rounds = self._trace.take()
            if job.target is not None and rounds:
                write_trace(rounds, job.target, self.restorer.settings(samples=1, quality=self.settings.quality))
        self.outcome.restored += 1

    def _targets(self, target: Path) -> list[Path]:
        count = self.settings.samples
        if count == 1 or self.settings.average:
            return [target]
        names = [*(f"sample{number}" for number in range(1, count + 1)), "mean"]
        return [*(target.with_name(f"{target.stem}.{name}{target.suffix}") for name in names), map_name(target)]

    def restored(self, job: Job, data: bytes, mask: str | None) -> list[tuple[Path | None, bytes]]:
        """The files of the results of an encoded image, not written yet; raises InputError."""
        picture = from_bytes(data, where=str(job), check=self.restorer.check_fits_in_memory)
        form = format_of(job.target) if job.target else self._stream_format(picture)
        for note in picture.notes:
            self._note_text(f"{job}: {note}")
        if lost := not_held(picture, form):
            self._note_text(f"{job}: {form} does not support {', '.join(lost)}")
        if picture.metadata.left_out:  # supported in no output format
            self._note_text(f"{job}: its {', '.join(picture.metadata.left_out)} is left out")
        if picture.alpha is not None:
            self._note_text(f"{job}: its transparency is kept, {_how_carried(self.restorer.scale)}, not restored")
        lq, found = self.restorer.prepared(picture, mask, where=str(job))
        for note in found.notes if found else ():
            self._note_text(note)
        self._tell_plan(job, *lq.shape[-2:])
        if self.settings.average:
            mean = self.restorer.average(picture, self.settings.samples, mask=found)
            return [(job.target, encode(mean, form, quality=self.settings.quality))]
        if self.settings.samples > 1:
            return self._sampled(job, picture, form, found)
        made = self.restorer.finished(picture, self.restorer.run(lq, self.restorer.start(lq)), lq)
        return [(job.target, encode(made, form, quality=self.settings.quality))]

    def _tell_plan(self, job: Job, height: int, width: int) -> None:
        """Print the plan for the first image, and for each whose strips are limited by memory."""
        engine = self.restorer.engine
        if not getattr(engine, "optimized", True):  # it runs in one piece, independent of memory
            return
        plan = engine.plan(height, width)
        if plan.narrowed or not self._told_plan:
            tiles = "tiles, each in " if getattr(engine, "tile_mode", "exact") == "prior" else ""
            self.say(f"{job}: {height}x{width} in {tiles}{plan}")
        self._told_plan = True

    def _stream_format(self, picture: Picture) -> str:
        return FORMATS[SUFFIX_OF[self.settings.form]] if self.settings.form else picture.format

    def _sampled(self, job: Job, picture: Picture, form: str, mask: object) -> list[tuple[Path | None, bytes]]:
        if job.target is None:
            raise InputError("--samples writes several files; give a folder with -o")
        drawn = self.restorer.samples(picture, self.settings.samples, mask=mask)
        pictures = [encode(one, form, quality=self.settings.quality) for one in (*drawn.restored, drawn.mean)]
        shown, largest = sensitivity_map(drawn.spread)
        self.say(
            f"{job}: sensitivity to the {self.restorer.starts_at} (standard deviation over "
            f"{self.settings.samples} start noises): mean {drawn.spread.mean():.2g}, largest {largest:.2g} of 1, "
            f"which is white in {map_name(job.target).name}; it "
            "measures how much the result depends on the initial noise, not its error"
        )
        return list(zip(self._targets(job.target), [*pictures, encode(shown, "png")], strict=True))

    def _video(self, job: Job, report: Callable[[], bool]) -> None:
        source, target = job.source, job.target
        if source is None or target is None or self.settings.samples > 1 or self.settings.mask is not None:
            raise InputError(f"{job}: a video is restored once, without a mask, into a file")
        check_writable(target)
        sha = digest_of_file(source)
        if self.journal.is_done(target, sha):
            self.outcome.kept += 1
            return
        started = time.perf_counter()

        def finish(made: Path) -> None:
            self.journal.note(target, digest_of_file(made), source=sha, seconds=time.perf_counter() - started)
            made.replace(target)

        with progress_bar(unit="frame", desc=target.name, leave=False) as bar:

            def progress(done: int, total: int) -> bool:
                bar.initial = bar.initial or done - 1  # frames of an earlier run do not count for the speed
                bar.total = total or None
                bar.update(done - bar.n)
                return report()

            outcome = restore_frames(
                self.restorer,
                source,
                target,
                sha=sha,
                quality=self.settings.quality,
                say=self.say,
                progress=progress,
                finish=finish,
            )
        if outcome.stopped:
            self.outcome.stopped = True
        else:
            self.outcome.restored += 1


def restore_frames(
    restorer: Restorer,
    source: Path,
    target: Path,
    *,
    sha: str,
    quality: int,
    say: Callable[[str], None],
    progress: Callable[[int, int], bool | None],
    finish: Callable[[Path], None],
) -> VideoOutcome:
    """`restore_video` for the file with digest `sha`, with the initial noise of the first frame for all frames."""
    if restorer.takes_mask:
        raise InputError(f"{source}: inpainting of videos is not supported")
    noise: list[Noise] = []

    def restore(frame: np.ndarray, first: np.ndarray) -> np.ndarray:
        picture = Picture(frame)
        lq, _ = restorer.prepared(picture, None, where=str(source))
        if not noise:  # separate noise for each frame would cause flicker
            noise.append(restorer.start(restorer.prepared(Picture(first), None, where=str(source))[0]))
        return restorer.finished(picture, restorer.run(lq, noise[0]), lq).colours

    return restore_video(
        source,
        target,
        restore,
        scale=restorer.scale,
        quality=quality,
        settings={**restorer.settings(samples=1, quality=quality), "source": sha, "device": str(restorer.device)},
        check=lambda height, width: restorer.check_fits_in_memory(height, width, str(source)),
        say=say,
        progress=progress,
        finish=finish,
    )


def restore_jobs(
    restorer: Restorer,
    jobs: Sequence[Job],
    output: Path,
    settings: RestoreSettings,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    journal: str = NAME,
    alone: bool = True,
) -> RunSummary:
    """Process jobs planned for `output`; a folder gets a journal of its results, with the name `journal`.

    `alone` False leaves the partial files of other results, on which other machines may be working.
    """
    is_folder = all(job.target is not None and job.target != output for job in jobs)
    recorded = restorer.settings(samples=settings.samples, average=settings.average, quality=settings.quality)
    # No lock: several processes may work on the same folder, since each result and each line is written atomically.
    names: dict[Path, list[str]] = {}
    for job in jobs:
        if job.target is not None:
            names.setdefault(job.target.parent, []).append(job.target.name)
    for folder, own in names.items():
        sweep(folder, of=None if is_folder and alone else own)
    written = Journal(output if is_folder else None, recorded, overwrite=overwrite, name=journal)
    return Runner(restorer, settings, written, progress=progress).run(jobs)


def describe_failure(error: Exception, job: Job) -> str:
    """One sentence about the failure of a job; reraises errors that are bugs of this program."""
    message = sentence(error)
    if message is None:
        raise error
    if out_of_memory(error):
        return f"{job}: {message}; --tile-mode tiles with a small --tile needs less memory"
    if isinstance(error, OSError) and error.filename is None:
        return f"{job.target}: {message}"
    return message if str(job) in message or isinstance(error, OSError) else f"{job}: {message}"


def map_name(target: Path) -> Path:
    """The path of the sensitivity map of a result; it contains the whole name, so a.png and a.jpg do not collide."""
    return target.with_name(f"{target.name}.sensitivity.png")


def sensitivity_map(spread: np.ndarray) -> tuple[Picture, float]:
    """The spread (H, W) as a 16-bit grey image, scaled to white at its largest value, and that value."""
    largest = float(spread.max())
    share = spread / largest if largest > 0 else spread
    return Picture(np.rint(share * 65535).astype(np.uint16)[..., None]), largest


def _how_carried(scale: int) -> str:
    return "as it is" if scale == 1 else f"enlarged x{scale} bicubically"


def mask_digest(mask: str | None) -> str:
    """What a mask (a file or a colour) adds to the digest of an image; empty without a mask."""
    if mask is None:
        return ""
    return "+" + (digest_of_file(Path(mask)) if Path(mask).is_file() else mask)
