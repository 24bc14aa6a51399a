"""What the stages exchange on disk, written so that every kill is survivable.

- `files`: a file appears whole or not at all;
- `checked_json`: JSON that others may have changed;
- `locking`: one run at a time in a folder;
- `records`: files that grow a line a record, `metrics.jsonl`, `run.json`;
- `samples`: `manifest.jsonl`, the synthetic samples of a folder;
- `checkpoints`: the state of a run, over orbax.

Files come back from disk as anyone may have left them: damaged ones raise `UserError`s
that name the file and the remedy. So do a full disk, a read-only folder and a folder in
use. No link below the workdir is followed for writing.
"""

from gptfl_jax.artifacts.checked_json import read_json
from gptfl_jax.artifacts.checkpoints import (
    CheckpointMismatch,
    Checkpoints,
    restore_checkpoint,
)
from gptfl_jax.artifacts.files import (
    PathLike,
    WriteError,
    make_folder,
    remove_leftovers,
    require_no_link,
    write_bytes,
    write_files,
    write_json,
    write_text,
)
from gptfl_jax.artifacts.locking import WorkdirInUse, lock
from gptfl_jax.artifacts.records import (
    NUMBER,
    Metrics,
    append_records,
    machine,
    read_flops,
    read_metrics,
    read_metrics_until,
    read_records,
    require,
    write_run_record,
)
from gptfl_jax.artifacts.samples import (
    CHANGED,
    ManifestError,
    Sample,
    append_samples,
    digest,
    is_changed,
    read_manifest,
    write_manifest,
)

__all__ = [
    "CHANGED",
    "CheckpointMismatch",
    "Checkpoints",
    "ManifestError",
    "Metrics",
    "NUMBER",
    "PathLike",
    "Sample",
    "WorkdirInUse",
    "WriteError",
    "append_records",
    "append_samples",
    "digest",
    "is_changed",
    "lock",
    "machine",
    "make_folder",
    "read_json",
    "read_manifest",
    "read_metrics",
    "read_metrics_until",
    "read_records",
    "remove_leftovers",
    "require",
    "require_no_link",
    "restore_checkpoint",
    "write_bytes",
    "write_files",
    "write_json",
    "write_manifest",
    "read_flops",
    "write_run_record",
    "write_text",
]
