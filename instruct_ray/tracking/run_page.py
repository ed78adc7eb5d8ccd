"""driver: what a registered run shows in MLflow: its data with digests, the figures of its evidence, a description."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The tag that MLflow shows as the description of a run, a model or an experiment, and renders as Markdown.
DESCRIPTION_TAG = "mlflow.note.content"
# MLflow's limits.
MAX_DIGEST = 36
MAX_NAME = 500


@dataclass(frozen=True)
class UsedDataset:
    """Data that a run was trained or evaluated on."""

    name: str
    digest: str
    """sha256 in hex; MLflow keeps its beginning."""
    context: Literal["training", "evaluation"]
    num_rows: int | None = None


def show_datasets(client: "MlflowClient", run_id: str, datasets: Sequence[UsedDataset]) -> None:
    """Show the data on the run's page. What is there already is not added again."""
    from mlflow.entities import Dataset, DatasetInput, InputTag  # noqa: PLC0415  (see connect_mlflow)

    inputs = [
        DatasetInput(
            Dataset(
                name=one.name[:MAX_NAME],
                digest=one.digest[:MAX_DIGEST],
                source_type="local",
                source=json.dumps({"uri": one.name}),
                profile=None if one.num_rows is None else json.dumps({"num_rows": one.num_rows}),
            ),
            [InputTag("mlflow.data.context", one.context)],
        )
        for one in datasets
    ]
    client.log_inputs(run_id, inputs)


def show_figures(
    client: "MlflowClient", run_id: str, model_id: str, figures: Mapping[str, float], datasets: Sequence[UsedDataset]
) -> None:
    """Show figures as metrics of the run and of its model, in one request, with the data that they were measured on."""
    from mlflow.entities import Metric  # noqa: PLC0415  (see connect_mlflow)

    now = int(time.time() * 1000)
    measured_on = next((one for one in datasets if one.context == "evaluation"), None)
    dataset = {} if measured_on is None else {
        "dataset_name": measured_on.name, "dataset_digest": measured_on.digest[:MAX_DIGEST],
    }  # fmt: skip
    metrics = [Metric(name, value, now, step=0, model_id=model_id, **dataset) for name, value in figures.items()]
    client.log_batch(run_id, metrics=metrics)


def show_model(client: "MlflowClient", run_id: str, model_id: str, description: str) -> None:
    """Show the model and a description on the run's page, once."""
    from mlflow.entities import LoggedModelOutput  # noqa: PLC0415  (see connect_mlflow)

    client.set_tag(run_id, DESCRIPTION_TAG, description)
    outputs = client.get_run(run_id).outputs
    if model_id not in [one.model_id for one in (outputs.model_outputs if outputs else ())]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
