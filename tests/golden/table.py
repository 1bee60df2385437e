"""The table at the end of a run: file, largest relative error of outputs, state and gradients.

A plugin that tests/conftest.py names, not a conftest: under pytest-xdist the process that prints collects nothing and would not find it.
"""

KINDS = ('outputs', 'state', 'gradients')


def pytest_terminal_summary(terminalreporter):
  """Reads the reports' properties, which pytest-xdist carries from its workers to this process."""
  reports = [report for group in ('passed', 'failed') for report in terminalreporter.stats.get(group, ()) if report.when == 'call']
  rows = [(value, report.outcome) for report in reports for name, value in report.user_properties if name == 'golden']
  if not rows:
    return
  width = max(len(row['file']) for row, _ in rows)
  terminalreporter.section('golden files: largest relative error')
  terminalreporter.write_line('  '.join([f'{"file":{width}}', *(f'{kind:>10}' for kind in KINDS)]))
  for row, outcome in sorted(rows, key=lambda entry: entry[0]['file']):
    numbers = '  '.join(f'{row[kind]:10.1e}' if kind in row else f'{"-":>10}' for kind in KINDS)
    terminalreporter.write_line(f'{row["file"]:{width}}  ' + row.get('note', numbers) + ('  FAILED' if outcome == 'failed' else ''))
