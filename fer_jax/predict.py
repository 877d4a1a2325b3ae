"""The command `fer-jax predict`: which expressions the faces in pictures and videos have."""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import tqdm

from fer_jax.errors import UserError
from fer_jax.faces import pictures, video
from fer_jax.faces.answers import Answer, CsvWriter, as_lines, write_json
from fer_jax.faces.classifier import Classifier
from fer_jax.faces.detection import BATCH_SIZE, grouped
from fer_jax.faces.save import Saver
from fer_jax.faces.smoothing import Smoother
from fer_jax.faces.sources import Source, expand, refuse_output
from fer_jax.inference import explanation
from fer_jax.system import collector, streams
from fer_jax.system.signals import Stopped, StopRequest

# At most this many files are named in a message: those of a damaged folder would fill the screen.
_NAMED = 20


def predict(
    words: Sequence[str],
    *,
    weights: str | None,
    checkpoint: str | None,
    detector: str,
    options: dict,
    json: str | None,
    csv: str | None,
    save: str | None,
    every: int,
    raw: bool,
    require_face: bool,
) -> None:
    """Prints a line for each face in the pictures and videos that `words` name (see `sources.expand`).

    Files that can't be read are skipped, counted and listed at the end. A signal (see `StopRequest`) ends the command
    after the current batch; the files that it has saved are then complete. The command ends silently if the reader of
    its output has ended, as with `| head`.

    Args:
      weights, checkpoint, detector: the arguments of `Classifier`. options: those of its call.
      json, csv: files to which answers are written as JSON lines or rows; '-' for standard output, to which nothing
        else is then written.
      save: the folder to which annotated pictures and videos are written.
      every: one frame in `every` of a video is classified.
      raw: whether the probabilities of videos are left unsmoothed.
      require_face: whether it is an error if no face is found.

    Raises:
      UserError: a word names nothing, there is no such explanation or no output that shows it, answers would be written
        over a picture or over each other, none of the files can be read, a video can't be saved, or no face is found
        although one is required.
      OSError: a file can't be written.
      Stopped: a signal was received.
    """
    if not words:
        raise UserError("which picture? For example fer-jax predict photo.jpg; or a folder, a video, 0 for a camera")
    if json == csv == "-":
        raise UserError("--json=- and --csv=- both want standard output; write one of them to a file")
    if (explain := options["explain"]) is not None:
        explanation.check(explain)
        if not (json or save):
            raise UserError(f"--explain={explain} goes with --save, which draws it, or --json, which holds it")
    # Checked before the network is loaded, so that a misspelt name is reported at once.
    sources = list(expand(words))
    for option, path in (("--json", json), ("--csv", csv)):
        if path and path != "-":
            refuse_output(path, option, sources)
    if json and csv and os.path.realpath(json) == os.path.realpath(csv):
        raise UserError(f"--json and --csv are both {json}; write one of them to another file")
    classifier = Classifier(weights, checkpoint, detector=detector)
    unreadable: list[str] = []
    num_faces, num_answers, started, has_reader = 0, 0, time.perf_counter(), False
    with streams.ending_unread(), contextlib.ExitStack() as stack:
        # Entered first and so left last: a signal must not interrupt the end of a video.
        stop = stack.enter_context(StopRequest())
        json_file = json and stack.enter_context(_opened(json))
        csv_writer = csv and CsvWriter(stack.enter_context(_opened(csv)), classifier.class_names)
        saver = save and stack.enter_context(Saver(save, words))
        is_quiet = "-" in (json, csv)
        total = len(sources) if len(sources) > 1 else None
        # disable=None shows the bar only if standard error is a terminal.
        bar = stack.enter_context(tqdm.tqdm(total=total, unit="pictures", disable=None if total else True, leave=False))
        answers = _answers(sources, classifier, options, every, raw, unreadable, bar.update)
        # Closing the generator releases a camera, even if the loop ends early.
        for answer, pixels in stack.enter_context(contextlib.closing(answers)):
            collector.resume()
            # Checked before anything is printed: after SIGHUP the terminal is gone.
            if stop.received:
                break
            if not is_quiet:
                for line in as_lines(answer):
                    tqdm.tqdm.write(line, file=sys.stdout)
                # A reader of the pipe gets the lines at once, and a reader that has ended is noticed.
                sys.stdout.flush()
            if json_file:
                write_json(answer, json_file)
            if csv_writer:
                csv_writer.write(answer)
            if saver:
                saver.save(answer, pixels)
            # Counted last: an answer that could not be written, because its reader has ended, does not count.
            num_answers, num_faces = num_answers + 1, num_faces + len(answer.faces)
        has_reader = True
    # A signal ends the reader of the pipe too, often before this process.
    if not has_reader and not stop.received:
        return
    seconds = time.perf_counter() - started
    if len(sources) > 1 or unreadable or stop.received:
        named = f": {'; '.join(unreadable[:_NAMED])}{' ...' if len(unreadable) > _NAMED else ''}" if unreadable else ""
        with streams.unheard(sys.stderr):
            print(
                f"{num_answers:,} pictures, {num_faces:,} faces, {num_answers / seconds:.1f} pictures/s; "
                f"{len(unreadable):,} files can't be read{named}",
                file=sys.stderr,
            )
    # A few damaged files among thousands are no error; a command without a readable file is one.
    if unreadable and not num_answers:
        raise UserError("none of the files can be read")
    if saver and (not_saved := saver.not_saved):
        raise UserError(f"{len(not_saved):,} files are not saved: {'; '.join(not_saved[:_NAMED])}")
    if stop.received:
        raise Stopped(stop.received)
    if require_face and not num_faces:
        raise UserError("no face is found")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield sys.stdout  # left open, since it was not opened here
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            yield file


def _answers(sources: list[Source], classifier: Classifier, options: dict, every, raw, unreadable, advance) -> Iterator:
    """Yields (answer, pixels of the whole picture) in the order of the sources; appends errors to `unreadable`."""
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for is_stream, group in itertools.groupby(sources, lambda source: _is_stream(source.value)):
            if is_stream:
                for source in group:
                    try:
                        yield from _of_stream(source, classifier, options, every, raw)
                    except UserError as error:
                        unreadable.append(str(error))
                    advance()
                continue
            # The next batch is read while the network classifies this one; no more pictures are kept in memory.
            reading = []
            for batch in itertools.chain(grouped(group, BATCH_SIZE), [[]]):
                following = [executor.submit(_read, source, options) for source in batch]
                yield from _of_pictures([future.result() for future in reading], classifier, options, unreadable)
                advance(len(reading))
                reading = following


def _is_stream(value) -> bool:
    if video.is_video(value):
        return True
    try:
        return pictures.is_animated(value)
    except UserError:
        return False  # reported when it is read


def _read(source: Source, options: dict) -> tuple[Source, pictures.Picture | str]:
    try:
        return source, pictures.read(source.value, reduce=not options["small_faces"])
    except UserError as error:
        return source, str(error)


def _of_pictures(group, classifier: Classifier, options: dict, unreadable: list[str]) -> Iterator:
    unreadable += [message for _, message in group if isinstance(message, str)]
    readable = [(source, picture) for source, picture in group if not isinstance(picture, str)]
    found = classifier([picture for _, picture in readable], **options)
    for (source, _), faces in zip(readable, found, strict=True):
        yield Answer(source.name, faces), source.value


def _of_stream(source: Source, classifier: Classifier, options: dict, every: int, raw: bool) -> Iterator:
    smooth = (lambda faces, _: faces) if raw else Smoother()
    # Each frame of a camera is answered at once.
    size = 1 if isinstance(source.value, int) else BATCH_SIZE
    for batch in grouped(video.frames(source.value, every), size):
        found = classifier.classify_frames(batch, smooth, **options)
        for frame, faces in zip(batch, found, strict=True):
            yield Answer(source.name, faces, frame.index, frame.time), frame.pixels
