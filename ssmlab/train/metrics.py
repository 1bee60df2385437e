"""Where the numbers of a run go: metrics.jsonl, metrics.csv, TensorBoard, the terminal, loss.png, optionally Weights & Biases."""

import csv
import json
import pathlib
import shutil
import sys
import time

from ssmlab.core.config import UserError


def read(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


class Recorder:
  """Writes one object per logged step; what an earlier attempt logged after `start` (it will be done again) is dropped."""

  def __init__(self, workdir: pathlib.Path, start: int, steps: int, wandb: str = '', quiet: bool = False):
    self._path, self._csv, self._workdir = workdir / 'metrics.jsonl', workdir / 'metrics.csv', workdir
    self._rows = [row for row in read(self._path) if row['step'] <= start]
    replacement = self._path.with_suffix('.tmp')
    replacement.write_text(''.join(json.dumps(row) + '\n' for row in self._rows))
    replacement.replace(self._path)
    self._file = self._path.open('a')
    self._tensorboard = _Events(workdir / 'tensorboard', self._rows)
    self._steps, self._quiet = steps, quiet
    self._live = sys.stdout.isatty()
    self._wandb = _start_wandb(wandb, workdir) if wandb else None

  def log(self, row: dict[str, float]) -> None:
    """row: {'step': int, name: number, ...}.  The line is on disk when this returns."""
    self._rows.append(row)
    try:
      self._file.write(json.dumps(row) + '\n')
      self._file.flush()
      self._tensorboard.add(row)
    except OSError as error:
      raise UserError(f'{self._path} could not be written: {error.strerror}; complete checkpoints are kept') from error
    if self._wandb:
      self._wandb.log(row, step=row['step'])

  def progress(self, step: int, loss: float, rate: float, flops: float, peak: float | None, left: float) -> None:
    """The live line: loss, tokens/s, FLOP/s (and its share of the chip's peak where that is known), time left."""
    if self._quiet:
      return
    use = f'{flops / peak:5.1%} of peak' if peak else f'{flops / 1e9:.3g} GFLOP/s'
    line = f'step {step:>{len(str(self._steps))}}/{self._steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  {use}  {_clock(left)} left'
    print(f'\r\x1b[2K{line}' if self._live else line, end='' if self._live else '\n', flush=True)

  def say(self, text: str) -> None:
    """A line of its own."""
    if not self._quiet:
      print(('\r\x1b[2K' if self._live else '') + text, flush=True)

  def close(self) -> None:
    """Writes metrics.csv and loss.png and closes everything."""
    self._tensorboard.close()
    self._file.close()
    columns = sorted({name for row in self._rows for name in row} - {'step'})
    with self._csv.open('w', newline='') as file:
      writer = csv.DictWriter(file, ['step', *columns])
      writer.writeheader()
      writer.writerows(self._rows)
    if any('train/loss' in row for row in self._rows):
      plot(self._rows, self._workdir / 'loss.png')
    if self._wandb:
      self._wandb.finish()


class Silent:
  """A Recorder of the hosts that leave the writing to the first."""

  def log(self, *_) -> None:
    pass

  progress = say = close = log


class _Events:
  """TensorBoard's event file.  tensorboardX's own writer is a thread, whose errors nobody could turn into one line."""

  def __init__(self, folder: pathlib.Path, rows: list[dict]):
    from tensorboardX.event_file_writer import EventsWriter
    shutil.rmtree(folder, ignore_errors=True)                # written anew from what metrics.jsonl holds
    folder.mkdir(parents=True)
    self._writer, self._flushed = EventsWriter(str(folder / 'events')), time.monotonic()
    for row in rows:
      self.add(row)

  def add(self, row: dict[str, float]) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != 'step']
    self._writer.write_event(Event(wall_time=time.time(), step=row['step'], summary=Summary(value=values)))
    if time.monotonic() - self._flushed > 10:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._writer.close()


def _start_wandb(project: str, workdir: pathlib.Path):
  try:
    import wandb
  except ImportError as error:
    raise UserError(f"train.wandb={project!r}, but the package wandb is not installed; install it or set train.wandb=''") from error
  wandb.init(project=project, dir=str(workdir), name=workdir.name, resume='allow')
  return wandb


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}h{minutes:02}m' if hours else f'{minutes}m{seconds:02}s'


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """Loss against tokens: training, and every '<name>/loss' that was evaluated."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  figure = Figure(figsize=(7, 4.2), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for name in sorted({key for row in rows for key in row if key.endswith('/loss')}, key=lambda n: n != 'train/loss'):
    points = [(row['tokens'], row[name]) for row in rows if name in row and 'tokens' in row]
    if points:
      style = dict(lw=1, alpha=0.8) if name == 'train/loss' else dict(marker='o', ms=4, lw=1.5)
      axes.plot(*zip(*points), label=name.removesuffix('/loss'), **style)
  axes.set(xlabel='tokens', ylabel='loss, nats per token', title=path.parent.name)
  axes.ticklabel_format(axis='x', style='sci', scilimits=(0, 4))
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path, dpi=130)


class Clock:
  """Seconds of a run over all its attempts."""

  def __init__(self, before: float):
    self._before, self._start = before, time.monotonic()

  def __call__(self) -> float:
    return self._before + time.monotonic() - self._start
