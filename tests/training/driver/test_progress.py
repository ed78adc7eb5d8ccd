"""The status line of a training run."""

from instruct_ray.training.driver.progress import WINDOW, Progress

METRICS = {
    "step": 40,
    "num_steps": 100,
    "epoch": 0.4,
    "loss": 1.2345,
    "lr": 9.1e-5,
    "grad_norm": 0.567,
    "num_tokens": 1000,
    "num_trained": 100,
    "seconds": 2.0,
    "wait_seconds": 0.1,
}


def test_status_line_shows_metrics_and_time_left() -> None:
    assert Progress().format_step(METRICS) == (
        "step 40/100  epoch 0.40  loss 1.234  lr 9.1e-05  grad norm 0.57  500 tokens/s (50 target tokens/s)  "
        "data wait 5%  0:02:00 left"
    )


def test_after_the_last_step_the_model_is_exported() -> None:
    assert Progress().format_step(METRICS | {"step": 100}).endswith("data wait 5%  exporting the model")


def test_rates_are_averages_over_the_last_steps() -> None:
    progress = Progress()
    progress.format_step(METRICS | {"seconds": 1000.0})
    for _ in range(WINDOW):
        line = progress.format_step(METRICS | {"mfu": 0.414, "gpu_peak_bytes": 3 * 2**30})
    assert "500 tokens/s" in line
    assert "MFU 41%  GPU memory 3.0 GiB  0:02:00 left" in line


def test_skipped_step_has_no_loss() -> None:
    assert "loss none" in Progress().format_step(METRICS | {"loss": None, "grad_norm": None})
