"""Log records that name their run, for logs that are collected from many runs."""

import logging
import os
from typing import Any

RUN_VARIABLE = "INSTRUCT_RAY_RUN"
# Ray calls it in every worker of a job, by this name.
WORKER_HOOK = "instruct_ray.run.log_records.name_run"


def name_run() -> None:
    """Make all log records of this process carry the run that `RUN_VARIABLE` names, as `run`."""
    run, make_record = os.environ[RUN_VARIABLE], logging.getLogRecordFactory()

    def make_named_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        record.run = run
        return record

    logging.setLogRecordFactory(make_named_record)
